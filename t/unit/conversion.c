/* Conversions: round trip, limits on both sides, and every byte tampered with or cut off. */

#include "unit.h"

#include "amount.h"
#include "conversion.h"
#include "frame.h"

static uint8_t out[AFF_FRAME_PAYLOAD_MAX + 1];
static uint8_t again[AFF_FRAME_PAYLOAD_MAX + 1];
static struct aff_conversion sample;
static struct aff_conversion got;

static void
make_sample(void)
{
    sample = (struct aff_conversion){
        .merchant_id = 42,
        .livemode = true,
        .source = AFF_SOURCE_BATCH,
        .position = 499,
        .key_id = aff_slice_of("ak_live_0123456789abcdefghij"),
        .idempotency_key = aff_slice_of("NP-1001-approved"),
        .received_ms = 1764000000123,
        .occurred_ms = 1763999999000,
        .order_id = aff_slice_of("NP-1001"),
        .status = AFF_STATUS_APPROVED,
        .customer = AFF_CUSTOMER_NEW,
        .has_amount = true,
        .amount_minor = 125050,
        .currency = "NPR",
        .refund_id = aff_slice_of("R1"),
        .reason = aff_slice_of("because"),
        .items_count = 2,
        .items = {{aff_slice_of("sku-1"), aff_slice_of("shoes"), 2, 100050},
            {aff_slice_of(""), aff_slice_of(""), 1, 25000}},
    };
    fill_random(sample.body_hash, sizeof(sample.body_hash));
    fill_random(sample.click_id, sizeof(sample.click_id));
}

static void
assert_conversion(const struct aff_conversion *a, const struct aff_conversion *b)
{
    assert_true(a->merchant_id == b->merchant_id && a->livemode == b->livemode &&
                a->source == b->source && a->position == b->position &&
                a->received_ms == b->received_ms && a->occurred_ms == b->occurred_ms &&
                a->status == b->status && a->customer == b->customer &&
                a->has_amount == b->has_amount && a->amount_minor == b->amount_minor &&
                a->items_count == b->items_count);
    assert_memory_equal(a->body_hash, b->body_hash, sizeof(a->body_hash));
    assert_memory_equal(a->click_id, b->click_id, sizeof(a->click_id));
    assert_string_equal(a->currency, b->currency);
    assert_true(aff_slice_equal(a->key_id, b->key_id) &&
                aff_slice_equal(a->idempotency_key, b->idempotency_key) &&
                aff_slice_equal(a->order_id, b->order_id) &&
                aff_slice_equal(a->refund_id, b->refund_id) &&
                aff_slice_equal(a->reason, b->reason));

    for (unsigned i = 0; i < a->items_count; i++) {
        assert_true(aff_slice_equal(a->items[i].sku, b->items[i].sku) &&
                    aff_slice_equal(a->items[i].category, b->items[i].category) &&
                    a->items[i].quantity == b->items[i].quantity &&
                    a->items[i].amount_minor == b->items[i].amount_minor);
    }
}

static void
round_trip(void **state)
{
    size_t size;

    (void) state;
    make_sample();
    size = aff_conversion_encode(&sample, out, sizeof(out));
    assert_true(size > 0);

    for (size_t room = 0; room <= size; room++) {
        struct aff_slice target = exact(out, room);

        assert_int_equal(
            aff_conversion_encode(&sample, (uint8_t *) target.data, room), room == size ? size : 0);
        drop(target);
    }

    assert_true(aff_conversion_decode(1, aff_slice(out, size), &got));
    assert_conversion(&sample, &got);
    assert_false(aff_conversion_decode(0, aff_slice(out, size), &got));
    assert_false(aff_conversion_decode(2, aff_slice(out, size), &got));

    /* Nothing said but what must be. */
    sample.has_amount = false;
    sample.currency[0] = '\0';
    sample.items_count = 0;
    sample.reason = sample.refund_id = aff_slice(NULL, 0);
    size = aff_conversion_encode(&sample, out, sizeof(out));
    assert_true(aff_conversion_decode(1, aff_slice(out, size), &got));
    assert_int_equal(got.amount_minor, 0);
    assert_string_equal(got.currency, "");
}

static void
largest_fits_a_frame(void **state)
{
    static uint8_t x[AFF_REASON_TEXT_MAX];
    size_t size;

    (void) state;
    memset(x, 'x', sizeof(x));
    make_sample();
    sample.key_id = aff_slice(x, AFF_API_KEY_ID_MAX);
    sample.idempotency_key = aff_slice(x, AFF_IDEMPOTENCY_KEY_MAX);
    sample.order_id = aff_slice(x, AFF_ORDER_ID_MAX);
    sample.refund_id = aff_slice(x, AFF_REFUND_ID_MAX);
    sample.reason = aff_slice(x, AFF_REASON_TEXT_MAX);
    sample.amount_minor = AFF_AMOUNT_MINOR_MAX;
    sample.items_count = AFF_ITEMS_MAX;

    for (unsigned i = 0; i < AFF_ITEMS_MAX; i++) {
        sample.items[i] = (struct aff_item){aff_slice(x, AFF_SKU_MAX),
            aff_slice(x, AFF_CATEGORY_MAX), UINT32_MAX, AFF_AMOUNT_MINOR_MAX};
    }

    size = aff_conversion_encode(&sample, out, AFF_FRAME_PAYLOAD_MAX);
    assert_true(size > 15000);
    assert_true(aff_conversion_decode(1, aff_slice(out, size), &got));
    assert_conversion(&sample, &got);

    for (size_t len = 0; len < size; len += 1 + len / 50) {
        struct aff_slice copy = exact(out, len);

        assert_false(aff_conversion_decode(1, copy, &got));
        drop(copy);
    }
}

#define REFUSED(change)                                                                            \
    do {                                                                                           \
        make_sample();                                                                             \
        change;                                                                                    \
        assert_int_equal(aff_conversion_encode(&sample, out, sizeof(out)), 0);                     \
    } while (0)

static void
encoder_refuses(void **state)
{
    static const uint8_t x[AFF_REASON_TEXT_MAX + 1];

    (void) state;
    REFUSED(sample.source = 0);
    REFUSED(sample.source = 4);
    REFUSED(sample.status = 0);
    REFUSED(sample.status = 6);
    REFUSED(sample.customer = 3);
    REFUSED(sample.amount_minor = -1);
    REFUSED(sample.amount_minor = AFF_AMOUNT_MINOR_MAX + 1);
    REFUSED(memcpy(sample.currency, "NpR", 4));
    REFUSED(memcpy(sample.currency, "NP", 3));
    REFUSED(memcpy(sample.currency, "NPRX", 4));
    REFUSED(sample.items_count = AFF_ITEMS_MAX + 1);
    REFUSED(sample.items[1].amount_minor = -1);
    REFUSED(sample.items[1].amount_minor = AFF_AMOUNT_MINOR_MAX + 1);
    REFUSED(sample.items[0].sku = aff_slice(x, AFF_SKU_MAX + 1));
    REFUSED(sample.items[0].category = aff_slice(x, AFF_CATEGORY_MAX + 1));
    REFUSED(sample.key_id = aff_slice(x, AFF_API_KEY_ID_MAX + 1));
    REFUSED(sample.idempotency_key = aff_slice(x, AFF_IDEMPOTENCY_KEY_MAX + 1));
    REFUSED(sample.order_id = aff_slice(x, AFF_ORDER_ID_MAX + 1));
    REFUSED(sample.refund_id = aff_slice(x, AFF_REFUND_ID_MAX + 1));
    REFUSED(sample.reason = aff_slice(x, AFF_REASON_TEXT_MAX + 1));
}

static void
decoder_refuses(void **state)
{
    /* offset and byte: livemode, source, status, customer, has amount, currency, amount, items. */
    static const uint8_t table[][2] = {{8, 2}, {9, 0}, {9, 4}, {60, 0}, {60, 6}, {61, 3}, {62, 0},
        {62, 2}, {63, 0}, {64, 'p'}, {65, 0}, {73, 0x80}, {73, 2}, {74, 101}, {74, 1}, {74, 3}};
    size_t size;

    (void) state;
    make_sample();
    size = aff_conversion_encode(&sample, out, sizeof(out));

    for (size_t i = 0; i < COUNT(table); i++) {
        uint8_t kept = out[table[i][0]];

        out[table[i][0]] = table[i][1];
        assert_false(aff_conversion_decode(1, aff_slice(out, size), &got));
        out[table[i][0]] = kept;
    }

    assert_true(aff_conversion_decode(1, aff_slice(out, size), &got));
}

/* A bent payload is refused, or is another conversion in exactly the bytes given. */
static void
tampered(void **state)
{
    size_t size;

    (void) state;
    make_sample();
    size = aff_conversion_encode(&sample, out, sizeof(out));

    for (size_t at = 0; at < size; at++) {
        for (unsigned flip = 1; flip < 256; flip++) {
            struct aff_slice copy;

            out[at] ^= (uint8_t) flip;
            copy = exact(out, size);

            if (aff_conversion_decode(1, copy, &got)) {
                assert_int_equal(aff_conversion_encode(&got, again, sizeof(again)), size);
                assert_memory_equal(again, out, size);
            }

            drop(copy);
            out[at] ^= (uint8_t) flip;
        }
    }
}

static void
truncated(void **state)
{
    size_t size;

    (void) state;
    make_sample();
    size = aff_conversion_encode(&sample, out, sizeof(out));
    out[size] = 0;

    for (size_t len = 0; len <= size + 1; len++) {
        struct aff_slice copy = exact(out, len);

        assert_int_equal(aff_conversion_decode(1, copy, &got), len == size);
        drop(copy);
    }
}

static void
names(void **state)
{
    (void) state;

    for (unsigned i = AFF_STATUS_PENDING; i <= AFF_STATUS_REFUNDED; i++) {
        assert_int_equal(aff_status_of(aff_slice_of(aff_status_name(i))), i);
    }

    assert_string_equal(aff_status_name(AFF_STATUS_CANCELLED), "cancelled");
    assert_null(aff_status_name(0));
    assert_null(aff_status_name(6));
    assert_int_equal(aff_status_of(aff_slice_of("Pending")), 0);
    assert_int_equal(aff_status_of(aff_slice_of("pendin")), 0);
    assert_int_equal(aff_status_of(aff_slice_of("")), 0);
    assert_null(aff_customer_name(AFF_CUSTOMER_UNSAID));
    assert_string_equal(aff_customer_name(AFF_CUSTOMER_RETURNING), "returning");
    assert_null(aff_customer_name(3));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(largest_fits_a_frame),
        cmocka_unit_test(encoder_refuses),
        cmocka_unit_test(decoder_refuses),
        cmocka_unit_test(tampered),
        cmocka_unit_test(truncated),
        cmocka_unit_test(names),
    };

    seed_random();
    return RUN(tests);
}
