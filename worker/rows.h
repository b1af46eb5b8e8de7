/* A record as a row of COPY's binary format: of the table that holds clicks, and of the stages of
 * conversions and of refused calls. */

#ifndef AFFILIATED_ROWS_H
#define AFFILIATED_ROWS_H

#include "protocol/batch.h"
#include "protocol/click.h"
#include "protocol/conversion.h"
#include "protocol/refusal.h"
#include "worker/copy.h"

/* Room that one row needs at most: fixed fields, and each text three times as long (see
 * copy_put_sanitized()). */
#define CLICK_ROW_MAX                                                                              \
    (1024 + 3 * (AFF_USER_AGENT_MAX + AFF_REFERRER_MAX + AFF_SIGNALS_MAX +                         \
                    AFF_SUB_IDS * AFF_SUB_ID_MAX))

#define CONVERSION_ROW_MAX                                                                         \
    (2048 + AFF_API_KEY_ID_MAX + AFF_IDEMPOTENCY_KEY_MAX + AFF_ORDER_ID_MAX + AFF_REFUND_ID_MAX +  \
        AFF_REASON_TEXT_MAX + AFF_ITEMS_MAX * (AFF_SKU_MAX + AFF_CATEGORY_MAX + 32))

/* Each field has a length of four bytes, an array five more such words. */
#define REFUSAL_ROW_MAX (1024 + 3 * AFF_REFUSAL_BYTES_MAX)

#define CLICK_ROW_COLUMNS                                                                          \
    "id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons, "            \
    "address_prefix, visitor, "                                                                    \
    "sub_ids, signals, user_agent, referrer"

#define CONVERSION_ROW_COLUMNS                                                                     \
    "spool_id, segment, sequence, record, merchant_id, livemode, source, position, key_id, "       \
    "idempotency_key, "                                                                            \
    "body_hash, received_at, occurred_at, click_id, order_id, status, customer, amount_minor, "    \
    "currency, refund_id, "                                                                        \
    "reason, item_sku, item_category, item_quantity, item_amount"

#define REFUSAL_ROW_COLUMNS                                                                        \
    "spool_id, segment, sequence, record, merchant_id, livemode, authentic, source, status, "      \
    "position, at, "                                                                               \
    "body_bytes, body_hash, key_id, code, detail, idempotency_key, order_id, sent_timestamp, "     \
    "target, request_id, "                                                                         \
    "excerpt, pointers, rules"

/* All write one row at `p` and return the place behind it; the caller has made the room. */
uint8_t *clicks_put_row(uint8_t *p, const struct aff_click *click);
/* `batch` and `record` name the record for ever. */
uint8_t *conversions_put_row(uint8_t *p, const struct aff_batch *batch, int64_t record,
    const struct aff_conversion *conversion);

uint8_t *refusals_put_row(
    uint8_t *p, const struct aff_batch *batch, int64_t record, const struct aff_refusal *refusal);

/* What keeps a conversion from being a row (static text), NULL if nothing does. */
const char *conversions_problem(const struct aff_conversion *conversion);

#endif
