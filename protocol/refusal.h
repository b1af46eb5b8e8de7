/*
 * A merchant's call that was refused, or a refused event of a batch call, or, in test mode, one
 * that was accepted before: what the merchant is told of it later. Payload of AFF_FRAME_REFUSAL,
 * version 1. It is for people to read, never for money: texts that are too long are cut, and it may
 * be lost.
 *
 * It holds no secret, no signature, no address, and of the body only its length, its hash and,
 * where it is no JSON, the few bytes at the fault.
 */

#ifndef AFF_REFUSAL_H
#define AFF_REFUSAL_H

#include "conversion.h"

#define AFF_REFUSAL_VERSION        1
#define AFF_REFUSAL_HASH_BYTES     32
#define AFF_REFUSAL_CODE_MAX       40
#define AFF_REFUSAL_DETAIL_MAX     256
#define AFF_REFUSAL_TIMESTAMP_MAX  11
#define AFF_REFUSAL_TARGET_MAX     512
#define AFF_REFUSAL_REQUEST_ID_MAX 64
#define AFF_REFUSAL_EXCERPT_MAX    32
#define AFF_REFUSAL_POINTER_MAX    192
#define AFF_REFUSAL_RULE_MAX       128
#define AFF_REFUSAL_ERRORS_MAX     8
#define AFF_REFUSAL_BYTES_MAX                                                                      \
    (60 + (2 + AFF_API_KEY_ID_MAX) + (2 + AFF_REFUSAL_CODE_MAX) + (2 + AFF_REFUSAL_DETAIL_MAX) +   \
        (2 + AFF_IDEMPOTENCY_KEY_MAX) + (2 + AFF_ORDER_ID_MAX) + (2 + AFF_REFUSAL_TIMESTAMP_MAX) + \
        (2 + AFF_REFUSAL_TARGET_MAX) + (2 + AFF_REFUSAL_REQUEST_ID_MAX) +                          \
        (2 + AFF_REFUSAL_EXCERPT_MAX) +                                                            \
        AFF_REFUSAL_ERRORS_MAX * (2 + AFF_REFUSAL_POINTER_MAX + 2 + AFF_REFUSAL_RULE_MAX))

struct aff_refusal_error {
    struct aff_slice pointer; /* JSON pointer into the body, or a header's name */
    struct aff_slice rule;
};

struct aff_refusal {
    uint64_t merchant_id; /* the key's */
    bool livemode;
    uint8_t source;      /* enum aff_source */
    bool authentic;      /* its signature was right: nobody else can have made the call */
    uint16_t status;     /* HTTP */
    uint16_t position;   /* of the event, in a batch call */
    uint64_t refused_ms; /* unix ms */
    uint32_t body_bytes;
    uint8_t body_hash[AFF_REFUSAL_HASH_BYTES]; /* SHA-256; zeros if the body was not read */
    struct aff_slice key_id;
    struct aff_slice code;   /* of the problem, "bad_signature" … */
    struct aff_slice detail; /* a sentence for people */
    struct aff_slice idempotency_key;
    struct aff_slice order_id;
    struct aff_slice timestamp; /* as sent */
    struct aff_slice target;    /* path and query; of a postback the path */
    struct aff_slice request_id;
    struct aff_slice excerpt;
    unsigned errors_count;
    struct aff_refusal_error errors[AFF_REFUSAL_ERRORS_MAX];
};

/* Writes the payload into out[0..room). Returns its bytes, at most AFF_REFUSAL_BYTES_MAX; 0 if it
 * does not fit, or a number is out of its range. */
size_t aff_refusal_encode(const struct aff_refusal *refusal, uint8_t *out, size_t room);

/* False on anything but a whole, well-formed version-1 payload. Slices point into the input. */
bool aff_refusal_decode(uint8_t version, struct aff_slice payload, struct aff_refusal *refusal);

#endif
