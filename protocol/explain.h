/*
 * Why a signature is not the call's: for merchants whose program signs something else than what it
 * sends. Nothing that is told tells of the secret more than whether it was used.
 */

#ifndef AFF_EXPLAIN_H
#define AFF_EXPLAIN_H

#include "signature.h"

/* The lines of the string to sign; the last one is all that is left. */
enum aff_explain_line {
    AFF_EXPLAIN_VERSION,
    AFF_EXPLAIN_TIMESTAMP,
    AFF_EXPLAIN_METHOD,
    AFF_EXPLAIN_PATH,
    AFF_EXPLAIN_IDEMPOTENCY_KEY,
    AFF_EXPLAIN_BODY,
    AFF_EXPLAIN_LINES,
};

struct aff_explained_line {
    bool same;
    size_t at;        /* the first byte that differs */
    const char *hint; /* what kind of difference it is; NULL: none that is known. Static. */
    struct aff_slice signed_part;   /* what the program signed there; into the text given */
    struct aff_slice expected_part; /* what the server signs there; into the request */
};

/* "version", "timestamp" …; NULL out of range */
const char *aff_explain_line_name(unsigned line);

/*
 * Compares the string that a program signed with the request, line by line. The request's body is
 * one piece. Returns the number of lines that differ; 0: it is the string to sign.
 */
unsigned aff_explain_text(struct aff_slice text, const struct aff_signed_request *request,
    struct aff_explained_line lines[AFF_EXPLAIN_LINES]);

/*
 * The mistake by which some program makes exactly this header, as a static sentence; NULL if none
 * of those that are known does. Ask only where the signature is wrong: a right one is no mistake.
 * `key_id` is the key's public id. The body is one piece.
 */
const char *aff_explain_signature(struct aff_slice secret, struct aff_slice key_id,
    const struct aff_signed_request *request, struct aff_slice header);

#endif
