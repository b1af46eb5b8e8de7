/*
 * What hands batches of payouts to a rail, and asks it what became of them. A provider knows the
 * rail's messages; when something may be sent, and what is done about an answer, is the role's.
 *
 * Of a batch that was handed over one thing matters: whether the rail may have it. A provider says
 * PAYOUT_AWAY or PAYOUT_HELD only if it certainly has not, and in doubt PAYOUT_IN_DOUBT.
 */

#ifndef AFFILIATED_PAYOUT_PROVIDER_H
#define AFFILIATED_PAYOUT_PROVIDER_H

#include "worker/config.h"

#define PAYOUT_ITEMS_MAX       10000
#define PAYOUT_DETAIL_MAX      256
#define PAYOUT_INSTRUCTION_MAX 31 /* with its NUL */
#define PAYOUT_REFERENCE_MAX   101

enum payout_verdict {
    PAYOUT_ACCEPTED, /* its account is one that can be paid to */
    PAYOUT_PENDING,
    PAYOUT_SETTLED,
    PAYOUT_REJECTED, /* it was not paid, and never will be */
    PAYOUT_UNKNOWN,
};

enum payout_outcome {
    PAYOUT_SUBMITTED, /* the rail has the batch: items have verdicts */
    PAYOUT_REFUSED,   /* it has not, and never will: nothing of it was paid */
    PAYOUT_IN_DOUBT,  /* nobody knows */
    PAYOUT_HELD,      /* it does not go out as it is; nothing was sent */
    PAYOUT_AWAY,      /* the rail was not reached, or let us not in; nothing was taken */
};

/* Texts are the caller's; `bank` and `branch` are codes of the rail, `branch` may be NULL. */
struct payout_item {
    const char *instruction;
    const char *bank;
    const char *branch;
    const char *account;
    const char *holder;
    int64_t amount_minor;
    bool checked;

    enum payout_verdict verdict;
    char detail[PAYOUT_DETAIL_MAX];       /* why, "" if there is nothing to say */
    char reference[PAYOUT_REFERENCE_MAX]; /* the rail's name of it */
};

struct payout_batch {
    const char *reference;
    const char *currency;
    int decimals;
    size_t sent; /* of a batch that was handed over: how many items it had then */
    size_t count;
    struct payout_item *items;
};

struct payout_provider;

struct payout_provider_kind {
    const char *name;

    /*
     * Ready to work, logged in; NULL with the reason in `error` (CONFIG_ERROR_MAX bytes). `turn` is
     * called now and then while it waits, and true if it should give up: it does, except where an
     * answer is about to come that tells what became of a batch.
     */
    struct payout_provider *(*open)(
        const struct config *config, bool (*turn)(void *context), void *context, char *error);
    void (*close)(struct payout_provider *provider);

    /* Whether a batch can go out as it is, before anything is asked: SUBMITTED or HELD. */
    enum payout_outcome (*fits)(
        struct payout_provider *provider, const struct payout_batch *batch, char *detail);

    /* Asks for the account of one item, whose verdict becomes ACCEPTED or REJECTED: SUBMITTED, or
     * AWAY. */
    enum payout_outcome (*validate)(
        struct payout_provider *provider, struct payout_item *item, char *detail);

    /* Hands the batch over, once. */
    enum payout_outcome (*submit)(
        struct payout_provider *provider, struct payout_batch *batch, char *detail);

    /* Asks what became of it: SUBMITTED, REFUSED, IN_DOUBT, or AWAY. */
    enum payout_outcome (*query)(
        struct payout_provider *provider, struct payout_batch *batch, char *detail);
};

extern const struct payout_provider_kind npi_provider;

/* For `affiliated check`: looks at the settings, and logs in. `said` gets what is to be told. */
bool npi_check(const struct config *config, char *said, size_t size);

#endif
