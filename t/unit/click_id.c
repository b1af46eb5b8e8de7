/* UUIDv7 order and layout; click_ids made, read back, tampered with, rotated. */

#include "unit.h"

#include "click_id.h"
#include "siphash.h"

static const char alphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";
static struct aff_keyring ring;

static void
make_uuid(uint64_t now_ms, uint8_t uuid[AFF_UUID_BYTES])
{
    struct aff_click_clock clock = {0};
    uint8_t random[AFF_RANDOM_BYTES];

    fill_random(random, sizeof(random));
    aff_uuid_make(&clock, now_ms, random, uuid);
}

static void
uuid_layout(void **state)
{
    static const uint8_t random[AFF_RANDOM_BYTES] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    struct aff_click_clock clock = {0};
    uint8_t uuid[AFF_UUID_BYTES];

    (void) state;
    aff_uuid_make(&clock, 0x0123456789abULL, random, uuid);
    assert_memory_equal(uuid, "\x01\x23\x45\x67\x89\xab", 6);
    assert_int_equal(uuid[6] >> 4, 7);
    assert_memory_equal(uuid + 8, "\xbf\xff\xff\xff\xff\xff\xff\xff", 8);
    assert_true(aff_uuid_ms(uuid) == 0x0123456789abULL);
}

/* Ids rise although the clock stands, jumps back, and the counter runs over more than once. */
static void
uuid_order(void **state)
{
    struct aff_click_clock clock = {0};
    uint8_t last[AFF_UUID_BYTES] = {0};

    (void) state;

    for (unsigned i = 0; i < 20000; i++) {
        uint64_t now_ms = i < 10000 ? 1764000000000 : 1763999999000 + i / 1000;
        uint8_t random[AFF_RANDOM_BYTES];
        uint8_t uuid[AFF_UUID_BYTES];

        fill_random(random, sizeof(random));
        aff_uuid_make(&clock, now_ms, random, uuid);
        assert_true(memcmp(last, uuid, sizeof(uuid)) < 0);
        assert_true(aff_uuid_ms(uuid) >= 1764000000000);
        assert_true(aff_uuid_ms(uuid) <= 1764000000010);
        memcpy(last, uuid, sizeof(uuid));
    }
}

/* The 195 bits one by one, as the header words it. */
static void
encode_model(const uint8_t bytes[AFF_CLICK_ID_BYTES], char out[AFF_CLICK_ID_CHARS])
{
    for (unsigned i = 0; i < AFF_CLICK_ID_CHARS; i++) {
        unsigned value = 0;

        for (unsigned bit = 5 * i; bit < 5 * i + 5; bit++) {
            value = value << 1 | (bit < 192 ? bytes[bit / 8] >> (7 - bit % 8) & 1 : 0);
        }

        out[i] = alphabet[value];
    }
}

static void
format_is_as_worded(void **state)
{
    (void) state;

    for (unsigned i = 0; i < 500; i++) {
        uint64_t merchant = next_random();
        uint8_t bytes[AFF_UUID_BYTES + 9];
        uint8_t whole[AFF_CLICK_ID_BYTES];
        uint8_t decoded[AFF_CLICK_ID_BYTES];
        char want[AFF_CLICK_ID_CHARS];
        char got[AFF_CLICK_ID_CHARS];
        uint64_t mac;

        make_uuid(next_random() >> 16, bytes);

        for (unsigned n = 0; n < 8; n++) {
            bytes[AFF_UUID_BYTES + n] = (uint8_t) (merchant >> (8 * n));
        }
        bytes[AFF_UUID_BYTES + 8] = 1;

        mac = aff_siphash(ring.keys[0].click_id, bytes, sizeof(bytes));
        memcpy(whole, bytes, AFF_UUID_BYTES);

        for (unsigned n = 0; n < 8; n++) {
            whole[AFF_UUID_BYTES + n] = (uint8_t) (mac >> (8 * n));
        }

        encode_model(whole, want);
        aff_click_id_format(&ring.keys[0], bytes, merchant, true, got);
        assert_memory_equal(got, want, sizeof(want));
        assert_true(aff_click_id_decode(aff_slice(got, sizeof(got)), decoded));
        assert_memory_equal(decoded, whole, sizeof(whole));
    }
}

static void
verified(void **state)
{
    struct aff_keyring before = ring_before(&ring);
    uint8_t uuid[AFF_UUID_BYTES];
    uint8_t got[AFF_UUID_BYTES];
    char text[AFF_CLICK_ID_CHARS];
    struct aff_slice slice = aff_slice(text, sizeof(text));

    (void) state;
    make_uuid(1764000000000, uuid);

    /* Made before the rotation: verifies after it, but not the other way round. */
    aff_click_id_format(&before.keys[0], uuid, 42, true, text);
    assert_int_equal(aff_click_id_verify(&ring, slice, 42, true, got), AFF_CLICK_ID_OK);
    assert_memory_equal(got, uuid, sizeof(uuid));

    aff_click_id_format(&ring.keys[0], uuid, 42, true, text);
    assert_int_equal(aff_click_id_verify(&ring, slice, 42, true, got), AFF_CLICK_ID_OK);
    assert_int_equal(aff_click_id_verify(&before, slice, 42, true, got), AFF_CLICK_ID_FORGED);

    assert_int_equal(
        aff_click_id_verify(&ring, slice, 42, false, got), AFF_CLICK_ID_WRONG_LIVEMODE);
    assert_int_equal(aff_click_id_verify(&ring, slice, 43, true, got), AFF_CLICK_ID_FORGED);
    assert_int_equal(aff_click_id_verify(&ring, slice, 43, false, got), AFF_CLICK_ID_FORGED);
}

static void
aliases(void **state)
{
    uint8_t uuid[AFF_UUID_BYTES];
    uint8_t got[AFF_UUID_BYTES];
    char text[AFF_CLICK_ID_CHARS];

    (void) state;

    for (unsigned round = 0; round < 50; round++) {
        make_uuid(1764000000000 + round, uuid);
        aff_click_id_format(&ring.keys[0], uuid, 1, false, text);

        for (unsigned i = 0; i < sizeof(text); i++) {
            if (text[i] == '0') {
                text[i] = "oO0"[next_random() % 3];
            } else if (text[i] == '1') {
                text[i] = "iIlL1"[next_random() % 5];
            } else if (text[i] >= 'a' && next_random() % 2 == 0) {
                text[i] = (char) (text[i] - 32);
            }
        }

        assert_int_equal(aff_click_id_verify(&ring, aff_slice(text, sizeof(text)), 1, false, got),
            AFF_CLICK_ID_OK);
        assert_memory_equal(got, uuid, sizeof(uuid));
    }
}

/* Every byte value at every place: only the same character, in any spelling, is still genuine. */
static void
tampered(void **state)
{
    uint8_t uuid[AFF_UUID_BYTES];
    char text[AFF_CLICK_ID_CHARS];

    (void) state;
    make_uuid(1764000000000, uuid);
    aff_click_id_format(&ring.keys[0], uuid, 7, true, text);

    for (unsigned at = 0; at < sizeof(text); at++) {
        for (unsigned c = 0; c < 256; c++) {
            char bent[AFF_CLICK_ID_CHARS];
            uint8_t bytes[AFF_CLICK_ID_BYTES];
            uint8_t got[AFF_UUID_BYTES];
            enum aff_click_id_result result;

            memcpy(bent, text, sizeof(text));
            bent[at] = (char) c;
            result = aff_click_id_verify(&ring, aff_slice(bent, sizeof(bent)), 7, true, got);

            if (result == AFF_CLICK_ID_OK) {
                char again[AFF_CLICK_ID_CHARS];

                assert_true(aff_click_id_decode(aff_slice(bent, sizeof(bent)), bytes));
                encode_model(bytes, again);
                assert_memory_equal(again, text, sizeof(text));
            } else {
                assert_true(result == AFF_CLICK_ID_FORGED || result == AFF_CLICK_ID_MALFORMED);
                assert_int_not_equal((char) c, text[at]);
            }
        }
    }
}

static void
malformed(void **state)
{
    uint8_t uuid[AFF_UUID_BYTES];
    uint8_t bytes[AFF_CLICK_ID_BYTES];
    char text[AFF_CLICK_ID_CHARS + 1];

    (void) state;
    make_uuid(1764000000000, uuid);
    aff_click_id_format(&ring.keys[0], uuid, 7, true, text);
    text[AFF_CLICK_ID_CHARS] = '0';

    for (size_t len = 0; len <= sizeof(text); len++) {
        struct aff_slice cut = exact(text, len);

        assert_int_equal(aff_click_id_decode(cut, bytes), len == AFF_CLICK_ID_CHARS);
        drop(cut);
    }

    assert_false(
        aff_click_id_decode(aff_slice_of("uuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu"), bytes));

    /* Not version 7; not the RFC's variant; bits in the padding. */
    text[AFF_CLICK_ID_CHARS] = '\0';
    uuid[6] = (uint8_t) (0x40 | (uuid[6] & 15));
    aff_click_id_format(&ring.keys[0], uuid, 7, true, text);
    assert_int_equal(
        aff_click_id_verify(&ring, aff_slice(text, 39), 7, true, bytes), AFF_CLICK_ID_MALFORMED);

    make_uuid(1764000000000, uuid);
    uuid[8] |= 0x40;
    aff_click_id_format(&ring.keys[0], uuid, 7, true, text);
    assert_false(aff_click_id_decode(aff_slice(text, 39), bytes));

    make_uuid(1764000000000, uuid);
    aff_click_id_format(&ring.keys[0], uuid, 7, true, text);
    text[38] = alphabet[strchr(alphabet, text[38]) - alphabet + 1];
    assert_false(aff_click_id_decode(aff_slice(text, 39), bytes));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uuid_layout),
        cmocka_unit_test(uuid_order),
        cmocka_unit_test(format_is_as_worded),
        cmocka_unit_test(verified),
        cmocka_unit_test(aliases),
        cmocka_unit_test(tampered),
        cmocka_unit_test(malformed),
    };

    seed_random();
    ring = ring_of(KEY_FILE);
    return RUN(tests);
}
