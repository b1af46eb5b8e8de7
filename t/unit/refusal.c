/* Refused calls: round trip, texts that are cut, and every byte tampered with or cut off. */

#include "unit.h"

#include "frame.h"
#include "refusal.h"

static uint8_t out[AFF_REFUSAL_BYTES_MAX];
static uint8_t again[AFF_REFUSAL_BYTES_MAX];
static struct aff_refusal got;

static struct aff_refusal
sample(void)
{
    struct aff_refusal refusal = {
        .merchant_id = 42,
        .livemode = true,
        .source = AFF_SOURCE_BATCH,
        .authentic = true,
        .status = 422,
        .position = 499,
        .refused_ms = 1764000000123,
        .body_bytes = 1234567,
        .key_id = aff_slice_of("ak_live_0123456789abcdefghij"),
        .code = aff_slice_of("validation"),
        .detail = aff_slice_of("Fields of the event are not valid."),
        .idempotency_key = aff_slice_of("NP-1001-approved"),
        .order_id = aff_slice_of("NP-1001"),
        .timestamp = aff_slice_of("1764000000"),
        .target = aff_slice_of("/v1/conversions/batch?a=b"),
        .request_id = aff_slice_of("0123456789abcdef0123456789abcdef"),
        .excerpt = aff_slice_of("{\"a\": tru"),
        .errors_count = 2,
        .errors = {{aff_slice_of("/events/499/amount"), aff_slice_of("is required")},
            {aff_slice_of("/events/499/x"), aff_slice_of("is not known")}},
    };

    fill_random(refusal.body_hash, sizeof(refusal.body_hash));
    return refusal;
}

static void
assert_refusal(const struct aff_refusal *a, const struct aff_refusal *b)
{
    assert_true(a->merchant_id == b->merchant_id && a->livemode == b->livemode &&
                a->source == b->source && a->authentic == b->authentic && a->status == b->status &&
                a->position == b->position && a->refused_ms == b->refused_ms &&
                a->body_bytes == b->body_bytes && a->errors_count == b->errors_count);
    assert_memory_equal(a->body_hash, b->body_hash, sizeof(a->body_hash));
    assert_true(
        aff_slice_equal(a->key_id, b->key_id) && aff_slice_equal(a->code, b->code) &&
        aff_slice_equal(a->detail, b->detail) &&
        aff_slice_equal(a->idempotency_key, b->idempotency_key) &&
        aff_slice_equal(a->order_id, b->order_id) && aff_slice_equal(a->timestamp, b->timestamp) &&
        aff_slice_equal(a->target, b->target) && aff_slice_equal(a->request_id, b->request_id) &&
        aff_slice_equal(a->excerpt, b->excerpt));

    for (unsigned i = 0; i < a->errors_count; i++) {
        assert_true(aff_slice_equal(a->errors[i].pointer, b->errors[i].pointer) &&
                    aff_slice_equal(a->errors[i].rule, b->errors[i].rule));
    }
}

static void
round_trip(void **state)
{
    struct aff_refusal refusal = sample();
    size_t size = aff_refusal_encode(&refusal, out, sizeof(out));

    (void) state;
    assert_true(size > 0);

    for (size_t room = 0; room <= size; room++) {
        struct aff_slice target = exact(out, room);

        assert_int_equal(
            aff_refusal_encode(&refusal, (uint8_t *) target.data, room), room == size ? size : 0);
        drop(target);
    }

    assert_true(aff_refusal_decode(1, aff_slice(out, size), &got));
    assert_refusal(&refusal, &got);
    assert_false(aff_refusal_decode(0, aff_slice(out, size), &got));
    assert_false(aff_refusal_decode(2, aff_slice(out, size), &got));

    for (size_t len = 0; len < size; len++) {
        struct aff_slice copy = exact(out, len);

        assert_false(aff_refusal_decode(1, copy, &got));
        drop(copy);
    }
}

static void
texts_are_cut(void **state)
{
    static uint8_t x[1024];
    struct aff_refusal refusal = sample();
    struct aff_slice text = aff_slice(x, sizeof(x));
    size_t size;

    (void) state;
    memset(x, 'x', sizeof(x));
    refusal.key_id = refusal.code = refusal.detail = refusal.idempotency_key = text;
    refusal.order_id = refusal.timestamp = refusal.target = refusal.request_id = text;
    refusal.excerpt = text;
    refusal.errors_count = AFF_REFUSAL_ERRORS_MAX;
    for (unsigned i = 0; i < AFF_REFUSAL_ERRORS_MAX; i++) {
        refusal.errors[i] = (struct aff_refusal_error){text, text};
    }

    size = aff_refusal_encode(&refusal, out, sizeof(out));
    assert_int_equal(size, AFF_REFUSAL_BYTES_MAX);
    assert_true(aff_refusal_decode(1, aff_slice(out, size), &got));
    assert_int_equal(got.detail.len, AFF_REFUSAL_DETAIL_MAX);
    assert_int_equal(got.errors[7].rule.len, AFF_REFUSAL_RULE_MAX);
}

static void
numbers_are_checked(void **state)
{
    /* offset and byte: livemode, source, authentic, errors, status */
    static const uint8_t table[][2] = {
        {8, 2}, {9, 0}, {9, 4}, {10, 2}, {11, 9}, {11, 1}, {11, 3}, {13, 0}, {13, 3}};
    struct aff_refusal refusal = sample();
    size_t size = aff_refusal_encode(&refusal, out, sizeof(out));

    (void) state;
    for (size_t i = 0; i < COUNT(table); i++) {
        uint8_t kept = out[table[i][0]];

        out[table[i][0]] = table[i][1];
        assert_false(aff_refusal_decode(1, aff_slice(out, size), &got));
        out[table[i][0]] = kept;
    }

    assert_true(aff_refusal_decode(1, aff_slice(out, size), &got));
    refusal.source = 4;
    assert_int_equal(aff_refusal_encode(&refusal, out, sizeof(out)), 0);
    refusal = sample();
    refusal.status = 199;
    assert_int_equal(aff_refusal_encode(&refusal, out, sizeof(out)), 0);
    refusal = sample();
    refusal.errors_count = AFF_REFUSAL_ERRORS_MAX + 1;
    assert_int_equal(aff_refusal_encode(&refusal, out, sizeof(out)), 0);
}

/* A bent payload is refused, or is another refusal in exactly the bytes given. */
static void
tampered(void **state)
{
    struct aff_refusal refusal = sample();
    size_t size = aff_refusal_encode(&refusal, out, sizeof(out));

    (void) state;
    for (size_t i = 0; i < size; i++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            out[i] ^= (uint8_t) (1 << bit);
            if (aff_refusal_decode(1, aff_slice(out, size), &got)) {
                assert_int_equal(aff_refusal_encode(&got, again, sizeof(again)), size);
                assert_memory_equal(out, again, size);
            }
            out[i] ^= (uint8_t) (1 << bit);
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(texts_are_cut),
        cmocka_unit_test(numbers_are_checked),
        cmocka_unit_test(tampered),
    };

    seed_random();
    return RUN(tests);
}
