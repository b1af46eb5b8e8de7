/*
 * One request and its answer, on a lane: a thread that takes connections one after the other and
 * has a connection of its own to PostgreSQL.
 *
 * The steps return false when they have answered themselves, with a problem; then nothing more is
 * done but to send it.
 */

#ifndef AFFILIATED_API_EXCHANGE_H
#define AFFILIATED_API_EXCHANGE_H

#include "worker/api/buffer.h"
#include "worker/api/rate.h"
#include "worker/api/request.h"
#include "worker/api/scgi.h"
#include "worker/api/text.h"
#include "worker/role.h"

#include "protocol/api_key.h"

#define EXCHANGE_CODE_MAX 64
#define EXCHANGE_ID_MAX   40
#define EXCHANGE_COOKIE   "__Host-affiliate"
#define EXCHANGE_TOKEN    43 /* base64url characters of a session's token, and of its CSRF token */

struct lane {
    struct role *role;
    struct aff_keyring ring;
    PGconn *pg; /* NULL: none just now */
    bool lost;  /* it was lost within a request: its life is over */
    uint8_t input[SCGI_INPUT_MAX];
    struct scgi_head head;
};

/* Who calls, as far as C knows: SQL knows the rest. */
enum credential_kind {
    CREDENTIAL_NONE,
    CREDENTIAL_SESSION,
    CREDENTIAL_KEY,
};

struct credential {
    enum credential_kind kind;
    char token[EXCHANGE_TOKEN + 1];      /* the cookie's; a secret */
    char next[EXCHANGE_TOKEN + 1];       /* the one that is to take its place */
    char session[TEXT_SHA256_CHARS + 1]; /* its hash */
    char csrf[TEXT_SHA256_CHARS + 1];    /* of the header's token; empty without one */
    char key[AFF_API_KEY_ID_CHARS + 1];
};

struct exchange {
    struct lane *lane;
    const struct config *config;
    int fd;
    int64_t begun_us;

    /* The request. Slices point into the lane's input. */
    struct aff_slice method, target, path, query, address, idempotency_key;
    struct buffer input;
    struct aff_slice body;
    char body_hash[TEXT_SHA256_CHARS + 1]; /* call_body_hash() makes it once, however many calls */
    char id[EXCHANGE_ID_MAX];
    char prefix[REQUEST_ADDRESS_MAX]; /* of the address */
    const struct route *route;
    json_t *fields;
    bool csv; /* the answer is to be */
    struct credential credential;
    int64_t user_id; /* whose secrets are sealed and opened */

    /* The answer. */
    int status;                   /* 0: none yet */
    char code[EXCHANGE_CODE_MAX]; /* a problem's */
    struct buffer headers, answer;
    struct rate_policy policy; /* whose state RateLimit tells; no name: none */
    struct rate_state rate;
};

/* Connects to PostgreSQL, in place of what was lost. */
bool lane_connect(struct lane *lane, struct pg_error *error);

/* How long PostgreSQL may work for a statement. */
bool lane_limit(struct lane *lane, int64_t ms, struct pg_error *error);

/* Microseconds of the monotonic clock. */
int64_t exchange_now_us(void);

/* A header of the request, "HTTP_IDEMPOTENCY_KEY", that may be there once. */
bool exchange_header(struct exchange *x, const char *name, struct aff_slice *value);

/* A header of the answer. */
void answer_header(struct exchange *x, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * The answer is a problem document (RFC 9457). `more` is an object of further members, or NULL, and
 * is given away; its "retry_after" (seconds) becomes a header. Always false.
 */
bool answer_problem(struct exchange *x, int status, const char *code, json_t *more,
    const char *format, ...) __attribute__((format(printf, 5, 6)));
bool answer_fault(struct exchange *x, const struct request_fault *fault);
bool answer_unavailable(struct exchange *x, const char *detail);

/* Sends what there is, in the time that there is. False if nobody took it. */
bool answer_send(struct exchange *x);

/* auth.c: what the headers say of who calls, and whether a key's signature is the call's. */
bool auth_identify(struct exchange *x);
bool auth_key(struct exchange *x);

/* auth.c: what a call costs its key, session or address. */
bool rate_charge(struct exchange *x);

/* Who shows keys or sessions that are none too often is not looked up any more: the guard is before
 * the call, what was learnt of it behind. */
bool rate_guard(struct exchange *x);
void rate_learn(const struct exchange *x);
void rate_known(struct aff_slice who);

/* One more of `who` under a policy of its own, which RateLimit then tells. */
bool rate_limit(
    struct exchange *x, const char *name, int64_t quota, int64_t window_s, struct aff_slice who);

/* call.c: the operation, in SQL. */
bool call_operation(struct exchange *x);

/*
 * A statement with text parameters and one result; repeated when PostgreSQL asks for that, and
 * after a lost connection if it is `repeatable`. NULL: answered with the problem that it raised.
 * The caller clears the result.
 */
PGresult *call_query(
    struct exchange *x, const char *sql, int count, const char *const *values, bool repeatable);

/* The single jsonb of `select affiliate.FUNCTION(...)`, as an object or null; NULL as above. */
json_t *call_value(
    struct exchange *x, const char *sql, int count, const char *const *values, bool repeatable);

/* The jsonb parameters p_credential and p_meta. The caller frees them; NULL: no memory. */
char *call_credential(const struct exchange *x);
char *call_meta(struct exchange *x);

/* What an operation's rows said; see call.c. */
struct outcome {
    json_t *head;
    json_t *row; /* the first row of data, if it was to be kept */
    uint64_t rows;
    uint64_t limit; /* of a list; 0: all */
    bool list, keep, more, failed;
    char next[1024];
};

/* Runs `operation` with x->fields; its rows are in `outcome`, and in x->answer unless kept. */
bool call_rows(struct exchange *x, const char *operation, struct outcome *outcome);
void outcome_free(struct outcome *outcome);

/* Sets status and headers as the head says. */
bool call_head(struct exchange *x, const json_t *head);

/* Ends as most operations do: an object, without the members that are ours. */
bool answer_row(struct exchange *x, const struct outcome *outcome);

/* native.c: what C does around an operation of SQL, or instead of it. */
struct native {
    const char *operation;
    bool (*instead)(struct exchange *x);
    bool (*before)(struct exchange *x);             /* changes x->fields */
    bool (*after)(struct exchange *x, json_t *row); /* changes the row */
};

const struct native *native_find(const char *operation);

/* sandbox.c: `_checks` and `_event` of a call that is described; `_result` of what was signed. */
bool sandbox_dry_run(struct exchange *x);
bool sandbox_signature_check(struct exchange *x);

/* upload.c */
bool upload_operation(struct exchange *x);

#endif
