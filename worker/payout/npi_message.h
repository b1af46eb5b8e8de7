/*
 * The messages of NPI, the National Payments Interface of Nepal Clearing House Ltd. (NCHL), as its
 * public specification has them: sections 5 (API) and 6 (response codes) of "NPI Specification",
 * doc.connectips.com. What it leaves open is taken so that money is not paid twice.
 *
 * Nothing here needs a connection.
 */

#ifndef AFFILIATED_PAYOUT_NPI_MESSAGE_H
#define AFFILIATED_PAYOUT_NPI_MESSAGE_H

#include "worker/api/buffer.h"
#include "worker/payout/provider.h"

#define NPI_TOKEN_MAX    4096
#define NPI_REQUEST_MAX  (16UL * 1024 * 1024)
#define NPI_ANSWER_MAX   (32UL * 1024 * 1024)
#define NPI_ACCESS_S     300
#define NPI_REFRESH_S    (12 * 3600LL)
#define NPI_MATCH_MIN    80 /* per cent, of names: more than that */
#define NPI_OFF_US_MINOR 200000000LL
#define NPI_ON_US_MINOR  20000000000LL

/* Whose account is debited, and who signs. */
struct npi_debtor {
    const char *bank;
    const char *branch;
    const char *account;
    const char *name;
    const char *user;
    const char *purpose;     /* of deferred batches; that of real-time ones is fixed */
    const char *head_office; /* branch of a creditor who names none */
};

struct npi_token {
    char access[NPI_TOKEN_MAX]; /* "" if there is none */
    char refresh[NPI_TOKEN_MAX];
    int64_t expires_s; /* of `access` */
};

/* One item goes in real time, several as a deferred batch: they are different calls. */
static inline bool
npi_real_time(size_t items)
{
    return items == 1;
}

/* What is signed: the fields that move money, separated by commas (5.4.1, 5.4.2). */
void npi_signed_text(
    const struct npi_debtor *debtor, const struct payout_batch *batch, struct buffer *out);

/* The request itself; `token` is the signature. */
void npi_request(const struct npi_debtor *debtor, const struct payout_batch *batch,
    const char *token, struct buffer *out);

/* Whether a batch keeps the limits of its call; if not, `detail` (PAYOUT_DETAIL_MAX) says why. */
bool npi_fits(const struct npi_debtor *debtor, const struct payout_batch *batch, char *detail);

/* The answer of /oauth/token; false if it has not even one token. */
bool npi_token_parse(struct aff_slice answer, struct npi_token *token);

/* "E003 INVALID TOKEN" out of an answer that is an error (section 6); or the status. `code`, if
 * asked for, has 16 bytes. */
void npi_error(long status, struct aff_slice answer, char *code, char *detail);

/* Of /api/validatebankaccount (5.3): SUBMITTED if the item has a verdict, else HELD or AWAY. */
enum payout_outcome npi_validated(
    long status, struct aff_slice answer, struct payout_item *item, char *detail);

/*
 * What became of a batch by the answer to its submission, and by the report on it (5.5): every item
 * has a verdict afterwards, and a detail where there is one to tell, if the outcome is SUBMITTED,
 * REFUSED or IN_DOUBT.
 */
enum payout_outcome npi_submitted(
    long status, struct aff_slice answer, struct payout_batch *batch, char *detail);
enum payout_outcome npi_reported(
    long status, struct aff_slice answer, struct payout_batch *batch, char *detail);

/* By the codes of both legs and of the reversal; "" for one that is not there. */
enum payout_verdict npi_verdict(
    bool real_time, const char *debit, const char *credit, const char *reversal);

#endif
