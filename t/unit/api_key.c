/* API keys: form of ids and secrets, and what a secret depends on. */

#include "unit.h"

#include "api_key.h"

static struct aff_keyring ring;

static void
ids(void **state)
{
    uint8_t random[AFF_API_KEY_RANDOM_BYTES] = {0};
    char id[AFF_API_KEY_ID_CHARS + 1];
    bool livemode;

    (void) state;
    aff_api_key_make(true, random, id);
    assert_string_equal(id, "ak_live_00000000000000000000");

    random[31] = 61;
    aff_api_key_make(false, random, id);
    assert_string_equal(id, "ak_test_0000000000000000000z");
    random[31] = 62;
    aff_api_key_make(false, random, id);
    assert_string_equal(id, "ak_test_00000000000000000010");

    for (unsigned i = 0; i < 200; i++) {
        fill_random(random, sizeof(random));
        aff_api_key_make(i % 2, random, id);
        assert_int_equal(strlen(id), AFF_API_KEY_ID_CHARS);
        assert_true(aff_api_key_valid(aff_slice_of(id), &livemode));
        assert_int_equal(livemode, i % 2);
    }
}

static void
refused(void **state)
{
    static const char *const table[] = {"", "ak_live_", "ak_live_0000000000000000000",
        "ak_live_000000000000000000000", "ak_prod_00000000000000000000",
        "AK_live_00000000000000000000", "ak_live_0000000000000000000_",
        "ak_live_0000000000000000000-", "ak_live-00000000000000000000",
        "aks_live_0000000000000000000", "ak_live_000000000000000000\xc3\xa9"};
    char secret[AFF_API_KEY_SECRET_CHARS + 1];
    bool livemode;

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        struct aff_slice copy = exact(table[i], strlen(table[i]));

        assert_false(aff_api_key_valid(copy, &livemode));
        assert_false(aff_api_key_secret(&ring.keys[0], copy, secret));
        drop(copy);
    }
}

/* The 256-bit number written out digit by digit, from HKDF's bytes. */
static void
secret_model(const struct aff_master_key *key, const char *id, char out[44])
{
    static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    uint8_t info[8 + AFF_API_KEY_ID_CHARS] = "api_key";
    uint8_t n[32];

    memcpy(info + 8, id, AFF_API_KEY_ID_CHARS);
    assert_true(aff_hkdf(key->master, aff_slice(info, sizeof(info)), n, sizeof(n)));

    for (int at = 42; at >= 0; at--) {
        unsigned rest = 0;

        for (unsigned i = 0; i < 32; i++) {
            rest = rest << 8 | n[i];
            n[i] = (uint8_t) (rest / 62);
            rest %= 62;
        }

        out[at] = digits[rest];
    }

    out[43] = '\0';
}

static void
secrets(void **state)
{
    static const char live[] = "ak_live_0123456789ABCDEFabcd";
    static const char test[] = "ak_test_0123456789ABCDEFabcd";
    char a[AFF_API_KEY_SECRET_CHARS + 1];
    char b[AFF_API_KEY_SECRET_CHARS + 1];
    char want[44];

    (void) state;
    assert_true(aff_api_key_secret(&ring.keys[0], aff_slice_of(live), a));
    assert_int_equal(strlen(a), AFF_API_KEY_SECRET_CHARS);
    assert_memory_equal(a, "aks_live_", 9);
    secret_model(&ring.keys[0], live, want);
    assert_string_equal(a + 9, want);

    assert_true(aff_api_key_secret(&ring.keys[0], aff_slice_of(live), b));
    assert_string_equal(a, b);

    assert_true(aff_api_key_secret(&ring.keys[1], aff_slice_of(live), b));
    assert_string_not_equal(a, b);

    assert_true(aff_api_key_secret(&ring.keys[0], aff_slice_of(test), b));
    assert_memory_equal(b, "aks_test_", 9);
    assert_string_not_equal(a + 9, b + 9);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids),
        cmocka_unit_test(refused),
        cmocka_unit_test(secrets),
    };

    seed_random();
    ring = ring_of(KEY_FILE);
    return RUN(tests);
}
