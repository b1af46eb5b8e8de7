/*
 * The conversion's payload, version 1, little-endian; a string is a u16 length and its bytes:
 *
 *   0  u64  merchant id
 *   8  u8   livemode    0 or 1
 *   9  u8   source
 *  10  u16  position
 *  12  16   body hash
 *  28  u64  received ms
 *  36  u64  occurred ms
 *  44  16   click id
 *  60  u8   status
 *  61  u8   customer
 *  62  u8   has amount  0 or 1
 *  63  3    currency    three zero bytes if not said
 *  66  i64  amount      0 if there is none
 *  74  u8   items
 *  75  ...  strings: key id, idempotency key, order id, refund id, reason
 *      ...  each item: strings sku and category, u32 quantity, i64 amount
 */

#include "conversion.h"

#include "amount.h"
#include "frame.h"

#define FIXED_BYTES 75

_Static_assert(AFF_ITEMS_MAX <= UINT8_MAX, "the number of items is one byte");
_Static_assert(FIXED_BYTES + (2 + AFF_API_KEY_ID_MAX) + (2 + AFF_IDEMPOTENCY_KEY_MAX) +
                       (2 + AFF_ORDER_ID_MAX) + (2 + AFF_REFUND_ID_MAX) +
                       (2 + AFF_REASON_TEXT_MAX) +
                       AFF_ITEMS_MAX * (2 + AFF_SKU_MAX + 2 + AFF_CATEGORY_MAX + 4 + 8) <=
                   AFF_FRAME_PAYLOAD_MAX,
    "the largest conversion does not fit a frame");

static const char *const status_names[] = {
    [AFF_STATUS_PENDING] = "pending",
    [AFF_STATUS_APPROVED] = "approved",
    [AFF_STATUS_CANCELLED] = "cancelled",
    [AFF_STATUS_RETURNED] = "returned",
    [AFF_STATUS_REFUNDED] = "refunded",
};

const char *
aff_status_name(unsigned status)
{
    return status <= AFF_STATUS_REFUNDED ? status_names[status] : NULL;
}

unsigned
aff_status_of(struct aff_slice name)
{
    for (unsigned i = AFF_STATUS_PENDING; i <= AFF_STATUS_REFUNDED; i++) {
        if (aff_slice_equal(aff_slice_of(status_names[i]), name)) {
            return i;
        }
    }

    return 0;
}

const char *
aff_customer_name(unsigned customer)
{
    switch (customer) {
    case AFF_CUSTOMER_NEW:
        return "new";
    case AFF_CUSTOMER_RETURNING:
        return "returning";
    default:
        return NULL;
    }
}

static bool
amount_valid(int64_t amount_minor)
{
    return amount_minor >= 0 && amount_minor <= AFF_AMOUNT_MINOR_MAX;
}

static bool
currency_valid(const char currency[4])
{
    if (memcmp(currency, "\0\0\0", 4) == 0) {
        return true;
    }

    for (unsigned i = 0; i < 3; i++) {
        if (currency[i] < 'A' || currency[i] > 'Z') {
            return false;
        }
    }

    return currency[3] == '\0';
}

/* What holds for both directions, besides the strings' lengths and the currency. */
static bool
fields_valid(const struct aff_conversion *c)
{
    return c->source >= AFF_SOURCE_SINGLE && c->source <= AFF_SOURCE_POSTBACK &&
           c->status >= AFF_STATUS_PENDING && c->status <= AFF_STATUS_REFUNDED &&
           c->customer <= AFF_CUSTOMER_RETURNING && c->items_count <= AFF_ITEMS_MAX &&
           (!c->has_amount || amount_valid(c->amount_minor));
}

static void
put_string(struct aff_writer *w, struct aff_slice s, size_t max)
{
    if (s.len > max) {
        w->failed = true;
        return;
    }

    aff_put_slice(w, s);
}

static void
put_item(struct aff_writer *w, const struct aff_item *item)
{
    put_string(w, item->sku, AFF_SKU_MAX);
    put_string(w, item->category, AFF_CATEGORY_MAX);
    aff_put_u32(w, item->quantity);
    aff_put_u64(w, (uint64_t) item->amount_minor);

    if (!amount_valid(item->amount_minor)) {
        w->failed = true;
    }
}

size_t
aff_conversion_encode(const struct aff_conversion *c, uint8_t *out, size_t room)
{
    struct aff_writer w = {.pos = out, .end = out + room};
    char currency[4] = "";

    /* What follows the NUL of an empty currency is nobody's business, least of all the wire's. */
    if (c->currency[0] != '\0') {
        memcpy(currency, c->currency, sizeof(currency));
    }

    if (!fields_valid(c) || !currency_valid(currency)) {
        return 0;
    }

    aff_put_u64(&w, c->merchant_id);
    aff_put_u8(&w, c->livemode);
    aff_put_u8(&w, c->source);
    aff_put_u16(&w, c->position);
    aff_put_bytes(&w, c->body_hash, AFF_BODY_HASH_BYTES);
    aff_put_u64(&w, c->received_ms);
    aff_put_u64(&w, c->occurred_ms);
    aff_put_bytes(&w, c->click_id, AFF_UUID_BYTES);
    aff_put_u8(&w, c->status);
    aff_put_u8(&w, c->customer);
    aff_put_u8(&w, c->has_amount);
    aff_put_bytes(&w, currency, 3);
    aff_put_u64(&w, c->has_amount ? (uint64_t) c->amount_minor : 0);
    aff_put_u8(&w, c->items_count);

    put_string(&w, c->key_id, AFF_API_KEY_ID_MAX);
    put_string(&w, c->idempotency_key, AFF_IDEMPOTENCY_KEY_MAX);
    put_string(&w, c->order_id, AFF_ORDER_ID_MAX);
    put_string(&w, c->refund_id, AFF_REFUND_ID_MAX);
    put_string(&w, c->reason, AFF_REASON_TEXT_MAX);

    for (unsigned i = 0; i < c->items_count; i++) {
        put_item(&w, &c->items[i]);
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

static int64_t
get_amount(struct aff_reader *r)
{
    uint64_t value = aff_get_u64(r);

    if (value > AFF_AMOUNT_MINOR_MAX) {
        r->failed = true;
        return 0;
    }

    return (int64_t) value;
}

static void
get_item(struct aff_reader *r, struct aff_item *item)
{
    item->sku = aff_get_slice(r, AFF_SKU_MAX);
    item->category = aff_get_slice(r, AFF_CATEGORY_MAX);
    item->quantity = aff_get_u32(r);
    item->amount_minor = get_amount(r);
}

bool
aff_conversion_decode(uint8_t version, struct aff_slice payload, struct aff_conversion *c)
{
    struct aff_reader r;

    if (version != AFF_CONVERSION_VERSION || payload.len < FIXED_BYTES ||
        payload.len > AFF_FRAME_PAYLOAD_MAX) {
        return false;
    }

    r.pos = payload.data;
    r.end = payload.data + payload.len;
    r.failed = false;

    c->merchant_id = aff_get_u64(&r);
    c->livemode = get_bool(&r);
    c->source = aff_get_u8(&r);
    c->position = aff_get_u16(&r);
    aff_get_bytes(&r, c->body_hash, AFF_BODY_HASH_BYTES);
    c->received_ms = aff_get_u64(&r);
    c->occurred_ms = aff_get_u64(&r);
    aff_get_bytes(&r, c->click_id, AFF_UUID_BYTES);
    c->status = aff_get_u8(&r);
    c->customer = aff_get_u8(&r);
    c->has_amount = get_bool(&r);
    aff_get_bytes(&r, c->currency, 3);
    c->currency[3] = '\0';
    c->amount_minor = get_amount(&r);
    c->items_count = aff_get_u8(&r);

    c->key_id = aff_get_slice(&r, AFF_API_KEY_ID_MAX);
    c->idempotency_key = aff_get_slice(&r, AFF_IDEMPOTENCY_KEY_MAX);
    c->order_id = aff_get_slice(&r, AFF_ORDER_ID_MAX);
    c->refund_id = aff_get_slice(&r, AFF_REFUND_ID_MAX);
    c->reason = aff_get_slice(&r, AFF_REASON_TEXT_MAX);

    if (r.failed || !fields_valid(c) || !currency_valid(c->currency) ||
        (!c->has_amount && c->amount_minor != 0)) {
        return false;
    }

    for (unsigned i = 0; i < c->items_count; i++) {
        get_item(&r, &c->items[i]);
    }

    return !r.failed && r.pos == r.end;
}
