/*
 * The refusal's payload, version 1, little-endian; a string is a u16 length and its bytes:
 *
 *   0  u64  merchant id
 *   8  u8   livemode    0 or 1
 *   9  u8   source
 *  10  u8   authentic   0 or 1
 *  11  u8   errors
 *  12  u16  status
 *  14  u16  position
 *  16  u64  refused ms
 *  24  u32  body bytes
 *  28  32   body hash
 *  60  ...  strings: key id, code, detail, idempotency key, order id, timestamp, target,
 *           request id, excerpt
 *      ...  each error: strings pointer and rule
 */

#include "refusal.h"

#include "frame.h"

#define FIXED_BYTES 60

_Static_assert(AFF_REFUSAL_BYTES_MAX <= AFF_FRAME_PAYLOAD_MAX, "the largest refusal fits a frame");

static bool
numbers_valid(const struct aff_refusal *r)
{
    return r->source >= AFF_SOURCE_SINGLE && r->source <= AFF_SOURCE_POSTBACK && r->status >= 200 &&
           r->status <= 599 && r->errors_count <= AFF_REFUSAL_ERRORS_MAX;
}

static void
put_text(struct aff_writer *w, struct aff_slice text, size_t max)
{
    if (text.len > max) {
        text.len = max;
    }

    aff_put_slice(w, text);
}

size_t
aff_refusal_encode(const struct aff_refusal *r, uint8_t *out, size_t room)
{
    struct aff_writer w = {.pos = out, .end = out + room};

    if (!numbers_valid(r)) {
        return 0;
    }

    aff_put_u64(&w, r->merchant_id);
    aff_put_u8(&w, r->livemode);
    aff_put_u8(&w, r->source);
    aff_put_u8(&w, r->authentic);
    aff_put_u8(&w, r->errors_count);
    aff_put_u16(&w, r->status);
    aff_put_u16(&w, r->position);
    aff_put_u64(&w, r->refused_ms);
    aff_put_u32(&w, r->body_bytes);
    aff_put_bytes(&w, r->body_hash, AFF_REFUSAL_HASH_BYTES);

    put_text(&w, r->key_id, AFF_API_KEY_ID_MAX);
    put_text(&w, r->code, AFF_REFUSAL_CODE_MAX);
    put_text(&w, r->detail, AFF_REFUSAL_DETAIL_MAX);
    put_text(&w, r->idempotency_key, AFF_IDEMPOTENCY_KEY_MAX);
    put_text(&w, r->order_id, AFF_ORDER_ID_MAX);
    put_text(&w, r->timestamp, AFF_REFUSAL_TIMESTAMP_MAX);
    put_text(&w, r->target, AFF_REFUSAL_TARGET_MAX);
    put_text(&w, r->request_id, AFF_REFUSAL_REQUEST_ID_MAX);
    put_text(&w, r->excerpt, AFF_REFUSAL_EXCERPT_MAX);

    for (unsigned i = 0; i < r->errors_count; i++) {
        put_text(&w, r->errors[i].pointer, AFF_REFUSAL_POINTER_MAX);
        put_text(&w, r->errors[i].rule, AFF_REFUSAL_RULE_MAX);
    }

    return w.failed ? 0 : (size_t) (w.pos - out);
}

/* Only 0 and 1 are taken, so that one record has one encoding. */
static bool
get_bool(struct aff_reader *r)
{
    uint8_t value = aff_get_u8(r);

    if (value > 1) {
        r->failed = true;
    }

    return value == 1;
}

bool
aff_refusal_decode(uint8_t version, struct aff_slice payload, struct aff_refusal *refusal)
{
    struct aff_reader r = {.pos = payload.data, .end = payload.data + payload.len};

    if (version != AFF_REFUSAL_VERSION || payload.len < FIXED_BYTES ||
        payload.len > AFF_REFUSAL_BYTES_MAX) {
        return false;
    }

    refusal->merchant_id = aff_get_u64(&r);
    refusal->livemode = get_bool(&r);
    refusal->source = aff_get_u8(&r);
    refusal->authentic = get_bool(&r);
    refusal->errors_count = aff_get_u8(&r);
    refusal->status = aff_get_u16(&r);
    refusal->position = aff_get_u16(&r);
    refusal->refused_ms = aff_get_u64(&r);
    refusal->body_bytes = aff_get_u32(&r);
    aff_get_bytes(&r, refusal->body_hash, AFF_REFUSAL_HASH_BYTES);

    refusal->key_id = aff_get_slice(&r, AFF_API_KEY_ID_MAX);
    refusal->code = aff_get_slice(&r, AFF_REFUSAL_CODE_MAX);
    refusal->detail = aff_get_slice(&r, AFF_REFUSAL_DETAIL_MAX);
    refusal->idempotency_key = aff_get_slice(&r, AFF_IDEMPOTENCY_KEY_MAX);
    refusal->order_id = aff_get_slice(&r, AFF_ORDER_ID_MAX);
    refusal->timestamp = aff_get_slice(&r, AFF_REFUSAL_TIMESTAMP_MAX);
    refusal->target = aff_get_slice(&r, AFF_REFUSAL_TARGET_MAX);
    refusal->request_id = aff_get_slice(&r, AFF_REFUSAL_REQUEST_ID_MAX);
    refusal->excerpt = aff_get_slice(&r, AFF_REFUSAL_EXCERPT_MAX);

    if (r.failed || !numbers_valid(refusal)) {
        return false;
    }

    for (unsigned i = 0; i < refusal->errors_count; i++) {
        refusal->errors[i].pointer = aff_get_slice(&r, AFF_REFUSAL_POINTER_MAX);
        refusal->errors[i].rule = aff_get_slice(&r, AFF_REFUSAL_RULE_MAX);
    }

    return !r.failed && r.pos == r.end;
}
