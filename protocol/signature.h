/*
 * Merchants' request signature:
 *
 *   string_to_sign = "v1\n" timestamp "\n" METHOD "\n" path_with_query "\n"
 *                    idempotency_key "\n" raw_body
 *   signature      = lower-case hex HMAC-SHA256 (RFC 2104) with the secret exactly as printed
 *
 * Header Affiliate-Signature: v1=<hex>[,v1=<hex>…], so that a merchant may sign with two secrets
 * while rotating.
 */

#ifndef AFF_SIGNATURE_H
#define AFF_SIGNATURE_H

#include "slice.h"

#define AFF_SIGNATURE_BYTES  32
#define AFF_SIGNATURES_MAX   4
#define AFF_TIMESTAMP_SKEW_S 300

/* What is signed; every part as it stood on the wire. */
struct aff_signed_request {
    struct aff_slice timestamp;
    struct aff_slice method;
    struct aff_slice path_with_query;
    struct aff_slice idempotency_key; /* empty where none was sent */
    const struct aff_slice *body;     /* pieces, in order */
    size_t body_pieces;
};

/* HMAC-SHA256 over the string to sign. False only when OpenSSL fails. */
bool aff_sign(struct aff_slice secret, const struct aff_signed_request *request,
    uint8_t signature[AFF_SIGNATURE_BYTES]);

/* 64 lower-case hex digits, no NUL. */
void aff_hex(const uint8_t *bytes, size_t len, char *out);

/*
 * Parses an Affiliate-Signature header into at most AFF_SIGNATURES_MAX signatures. Schemes other
 * than v1 are passed over, spaces around commas are allowed. Returns their number, 0 if the header
 * is malformed, has none, or has more.
 */
unsigned aff_signature_parse(
    struct aff_slice header, uint8_t out[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES]);

/* True if any of `count` signatures equals `expected`; time does not depend on their bytes. */
bool aff_signature_match(const uint8_t expected[AFF_SIGNATURE_BYTES],
    uint8_t given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES], unsigned count);

/* Unix seconds of an all-digit timestamp of 1..11 digits; false otherwise. */
bool aff_timestamp_parse(struct aff_slice text, int64_t *seconds);

#endif
