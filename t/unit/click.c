/* Clicks: round trip, cutting, limits, and every byte tampered with or cut off. */

#include "unit.h"

#include "click.h"
#include "frame.h"

static const char text[] =
    "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130 Mobile";

static struct aff_click
full_click(void)
{
    struct aff_click click = {
        .link_id = 0x0102030405060708,
        .merchant_id = 2,
        .campaign_id = 3,
        .affiliate_id = UINT64_MAX,
        .visitor = 0xfedcba9876543210,
        .reasons = AFF_REASON_HEAD | AFF_REASON_SIGNAL,
        .verdict = AFF_VERDICT_PREFETCH,
        .livemode = true,
        .address_family = 6,
        .prefix = {1, 2, 3, 4, 5, 6},
        .sub_ids =
            {[0] = aff_slice_of("a"), [2] = aff_slice_of("newsletter"), [4] = aff_slice_of("e")},
        .signals = aff_slice_of("vpn=1;rate=2"),
        .user_agent = aff_slice_of(text),
        .referrer = aff_slice_of("https://example.com.np/page"),
    };

    fill_random(click.id, sizeof(click.id));
    return click;
}

static void
assert_click(const struct aff_click *a, const struct aff_click *b)
{
    assert_memory_equal(a->id, b->id, sizeof(a->id));
    assert_true(a->link_id == b->link_id && a->merchant_id == b->merchant_id &&
                a->campaign_id == b->campaign_id && a->affiliate_id == b->affiliate_id &&
                a->visitor == b->visitor);
    assert_true(a->reasons == b->reasons && a->verdict == b->verdict &&
                a->livemode == b->livemode && a->address_family == b->address_family);
    assert_memory_equal(a->prefix, b->prefix, sizeof(a->prefix));
    assert_true(aff_slice_equal(a->signals, b->signals));
    assert_true(aff_slice_equal(a->user_agent, b->user_agent));
    assert_true(aff_slice_equal(a->referrer, b->referrer));

    for (unsigned i = 0; i < AFF_SUB_IDS; i++) {
        assert_true(aff_slice_equal(a->sub_ids[i], b->sub_ids[i]));
    }
}

static void
round_trip(void **state)
{
    struct aff_click click = full_click();
    struct aff_click got;
    uint8_t out[AFF_CLICK_PAYLOAD_MAX];
    size_t size = aff_click_encode(&click, out, sizeof(out));
    struct aff_slice copy;

    (void) state;
    assert_int_equal(size, aff_click_size(&click));

    for (size_t room = 0; room < size; room++) {
        struct aff_slice target = exact(out, room);

        assert_int_equal(aff_click_encode(&click, (uint8_t *) target.data, room), 0);
        drop(target);
    }

    copy = exact(out, size);
    assert_true(aff_click_decode(1, copy, &got));
    assert_click(&click, &got);
    assert_false(aff_click_decode(0, copy, &got));
    assert_false(aff_click_decode(2, copy, &got));
    drop(copy);
}

static void
fixed_part_is_small(void **state)
{
    struct aff_click click = {.address_family = 4, .prefix = {10, 0, 1}};
    uint8_t out[AFF_CLICK_PAYLOAD_MAX];
    size_t size = aff_click_encode(&click, out, sizeof(out));

    (void) state;
    assert_true(size > 0);
    assert_true(aff_frame_length(size) <= 120);
}

static void
long_strings_are_cut(void **state)
{
    static uint8_t long_text[70000];
    static uint8_t out[AFF_CLICK_PAYLOAD_MAX];
    struct aff_slice longest = aff_slice(long_text, sizeof(long_text));
    struct aff_click click = full_click();
    struct aff_click got;
    size_t size;

    (void) state;
    memset(long_text, 'x', sizeof(long_text));
    click.signals = click.user_agent = click.referrer = longest;

    for (unsigned i = 0; i < AFF_SUB_IDS; i++) {
        click.sub_ids[i] = longest;
    }

    size = aff_click_encode(&click, out, sizeof(out));
    assert_int_equal(size, aff_click_size(&click));
    assert_true(aff_click_decode(1, aff_slice(out, size), &got));
    assert_int_equal(got.user_agent.len, AFF_USER_AGENT_MAX);
    assert_int_equal(got.referrer.len, AFF_REFERRER_MAX);
    assert_int_equal(got.signals.len, AFF_SIGNALS_MAX);
    assert_int_equal(got.sub_ids[4].len, AFF_SUB_ID_MAX);
}

/* What the address must not keep is not even on the wire. */
static void
address_is_truncated(void **state)
{
    static const uint8_t kept[][2] = {{0, 0}, {4, 3}, {6, 6}};
    uint8_t out[AFF_CLICK_PAYLOAD_MAX];

    (void) state;

    for (size_t i = 0; i < COUNT(kept); i++) {
        struct aff_click click = {.address_family = kept[i][0], .prefix = {1, 2, 3, 4, 5, 6}};
        struct aff_click got;
        size_t size = aff_click_encode(&click, out, sizeof(out));

        assert_true(aff_click_decode(1, aff_slice(out, size), &got));
        for (unsigned n = 0; n < sizeof(got.prefix); n++) {
            assert_int_equal(got.prefix[n], n < kept[i][1] ? n + 1 : 0);
        }
    }
}

/* A bent payload is refused, or is another click in exactly the bytes given. */
static void
tampered(void **state)
{
    struct aff_click click = full_click();
    uint8_t out[AFF_CLICK_PAYLOAD_MAX];
    uint8_t again[AFF_CLICK_PAYLOAD_MAX];
    size_t size = aff_click_encode(&click, out, sizeof(out));

    (void) state;

    for (size_t at = 0; at < size; at++) {
        for (unsigned flip = 1; flip < 256; flip++) {
            struct aff_slice copy;
            struct aff_click got;

            out[at] ^= (uint8_t) flip;
            copy = exact(out, size);

            if (aff_click_decode(1, copy, &got)) {
                assert_int_equal(aff_click_encode(&got, again, sizeof(again)), size);
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
    struct aff_click click = full_click();
    struct aff_click got;
    uint8_t out[AFF_CLICK_PAYLOAD_MAX];
    size_t size = aff_click_encode(&click, out, sizeof(out));

    (void) state;
    out[size] = 0;

    for (size_t len = 0; len <= size + 1; len++) {
        struct aff_slice copy = exact(out, len);

        assert_int_equal(aff_click_decode(1, copy, &got), len == size);
        drop(copy);
    }
}

static void
refused_fields(void **state)
{
    /* offset and byte: verdict, livemode, family, prefix of no address, over-long sub-id. */
    static const uint8_t table[][2] = {{60, AFF_VERDICTS}, {61, 2}, {62, 5}, {68, 1}, {69, 129}};
    struct aff_click click = {.sub_ids = {aff_slice(text, 1)}};
    struct aff_click got;
    uint8_t out[AFF_CLICK_PAYLOAD_MAX] = {0};

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        size_t size = aff_click_encode(&click, out, sizeof(out));

        assert_true(aff_click_decode(1, aff_slice(out, size), &got));
        out[table[i][0]] = table[i][1];
        size = table[i][0] == 69 ? size + 128 : size;
        assert_false(aff_click_decode(1, aff_slice(out, size), &got));
    }
}

static void
names(void **state)
{
    (void) state;
    assert_string_equal(aff_verdict_name(AFF_VERDICT_VALID), "valid");
    assert_string_equal(aff_verdict_name(AFF_VERDICT_BOT), "bot");
    assert_string_equal(aff_verdict_name(AFF_VERDICTS), "unknown");
    assert_string_equal(aff_reason_name(0), "bot_agent");
    assert_string_equal(aff_reason_name(9), "signal");
    assert_string_equal(aff_reason_name(AFF_REASONS), "unknown");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(fixed_part_is_small),
        cmocka_unit_test(long_strings_are_cut),
        cmocka_unit_test(address_is_truncated),
        cmocka_unit_test(tampered),
        cmocka_unit_test(truncated),
        cmocka_unit_test(refused_fields),
        cmocka_unit_test(names),
    };

    seed_random();
    return RUN(tests);
}
