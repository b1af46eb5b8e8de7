/*
 * A conversion event, as a merchant reported it and the module accepted it. Payload of
 * AFF_FRAME_CONVERSION, version 1. Amounts are integer minor units of `currency` (paisa, cents).
 */

#ifndef AFF_CONVERSION_H
#define AFF_CONVERSION_H

#include "click_id.h"

#define AFF_CONVERSION_VERSION  1
#define AFF_ORDER_ID_MAX        128
#define AFF_IDEMPOTENCY_KEY_MAX 128
#define AFF_REFUND_ID_MAX       128
#define AFF_REASON_TEXT_MAX     256
#define AFF_SKU_MAX             64
#define AFF_CATEGORY_MAX        64
#define AFF_ITEMS_MAX           100
#define AFF_API_KEY_ID_MAX      64
#define AFF_BODY_HASH_BYTES     16

enum aff_status {
    AFF_STATUS_PENDING = 1,
    AFF_STATUS_APPROVED = 2,
    AFF_STATUS_CANCELLED = 3,
    AFF_STATUS_RETURNED = 4,
    AFF_STATUS_REFUNDED = 5,
};

enum aff_customer {
    AFF_CUSTOMER_UNSAID = 0,
    AFF_CUSTOMER_NEW = 1,
    AFF_CUSTOMER_RETURNING = 2,
};

enum aff_source {
    AFF_SOURCE_SINGLE = 1,
    AFF_SOURCE_BATCH = 2,
    AFF_SOURCE_POSTBACK = 3,
};

struct aff_item {
    struct aff_slice sku;
    struct aff_slice category;
    uint32_t quantity;
    int64_t amount_minor; /* of the whole line, not of one piece */
};

struct aff_conversion {
    uint64_t merchant_id;
    bool livemode;
    uint8_t source;                   /* enum aff_source */
    uint16_t position;                /* within its batch call, from 0; 0 for a single event */
    struct aff_slice key_id;          /* ak_live_… */
    struct aff_slice idempotency_key; /* of the call; with `position` it names the event */
    uint8_t body_hash[AFF_BODY_HASH_BYTES]; /* first bytes of SHA-256 of the call's body (postback:
                                               its query) */
    uint64_t received_ms;                   /* unix ms by the receiving nginx */
    uint64_t occurred_ms;                   /* unix ms by the merchant; 0 = not said */
    uint8_t click_id[AFF_UUID_BYTES];
    struct aff_slice order_id;
    uint8_t status;   /* enum aff_status */
    uint8_t customer; /* enum aff_customer */
    bool has_amount;
    int64_t amount_minor;
    char currency[4]; /* ISO 4217, upper case, NUL; empty if not said */
    struct aff_slice refund_id;
    struct aff_slice reason;
    unsigned items_count;
    struct aff_item items[AFF_ITEMS_MAX];
};

const char *aff_status_name(unsigned status);  /* "pending" …; NULL out of range */
unsigned aff_status_of(struct aff_slice name); /* 0 if none */
const char *aff_customer_name(
    unsigned customer); /* "new", "returning"; NULL for unsaid or out of range */

/* Writes the payload into out[0..room). Returns its bytes, 0 if a field is over its limit or it
 * does not fit. */
size_t aff_conversion_encode(const struct aff_conversion *conversion, uint8_t *out, size_t room);

/* False on anything but a whole, well-formed version-1 payload. Slices point into the input. */
bool aff_conversion_decode(
    uint8_t version, struct aff_slice payload, struct aff_conversion *conversion);

#endif
