/* Key files: what is taken and what is refused; derivation against HMAC written out. */

#include "unit.h"

#include "keyring.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#define HEX_A "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
#define HEX_B "F0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFFE0E1E2E3E4E5E6E7E8E9EAEBECEDEEEF"

static void
accepted(void **state)
{
    struct aff_keyring ring =
        ring_of("\n  # comment\nnew " HEX_A "\r\n\told_1-X \t " HEX_B "  \n#end");
    const struct aff_master_key *key;

    (void) state;
    assert_int_equal(ring.count, 2);
    assert_string_equal(ring.keys[0].id, "new");
    assert_string_equal(ring.keys[1].id, "old_1-X");
    assert_int_equal(ring.keys[0].master[31], 0x1f);
    assert_int_equal(ring.keys[1].master[0], 0xf0);
    assert_memory_not_equal(ring.keys[0].click_id, ring.keys[0].batch, AFF_MAC_KEY_BYTES);
    assert_memory_not_equal(ring.keys[0].click_id, ring.keys[1].click_id, AFF_MAC_KEY_BYTES);

    key = aff_keyring_find(&ring, aff_slice_of("old_1-X"));
    assert_ptr_equal(key, &ring.keys[1]);
    assert_null(aff_keyring_find(&ring, aff_slice_of("old_1")));
    assert_null(aff_keyring_find(&ring, aff_slice_of("")));

    aff_keyring_wipe(&ring);
    assert_int_equal(ring.count, 0);
    assert_int_equal(ring.keys[1].master[0], 0);
}

static void
refused(void **state)
{
    static const struct {
        const char *file;
        const char *error;
    } table[] = {
        {"", "there is no key"},
        {"# only a comment\n\n", "there is no key"},
        {"a " HEX_A "\nb 00", "line 2: behind the id"},
        {"a " HEX_A "0", "line 1: behind the id"},
        {"a " HEX_A " x", "line 1: behind the id"},
        {"\na 0001020304050607"
         "08090a0b0c0d0e0f101112131415161718191a1b1c1d1eXY",
            "line 2: behind"},
        {"a", "line 1: behind the id"},
        {HEX_A, "line 1: the id"},
        {"a.b " HEX_A, "line 1: the id"},
        {"12345678901234567 " HEX_A, "line 1: the id"},
        {"a " HEX_A "\na " HEX_B, "line 2: this id is there"},
        {"1 " HEX_A "\n2 " HEX_A "\n3 " HEX_A "\n4 " HEX_A "\n5 " HEX_A "\n6 " HEX_A "\n7 " HEX_A
         "\n8 " HEX_A "\n9 " HEX_A,
            "line 9: there are more than 8"},
    };

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        struct aff_keyring ring;
        struct aff_slice file = exact(table[i].file, strlen(table[i].file));
        char error[128] = "";

        assert_false(aff_keyring_parse(&ring, file, error, sizeof(error)));
        assert_int_equal(ring.count, 0);
        assert_memory_equal(error, table[i].error, strlen(table[i].error));
        assert_null(strstr(error, "0102"));
        drop(file);
    }
}

/* RFC 5869 written out over HMAC: no salt, one block of output. */
static void
hkdf_model(const uint8_t master[32], const void *info, size_t info_len, uint8_t out[32])
{
    static const uint8_t salt[32];
    uint8_t prk[32];
    uint8_t message[64];

    assert_true(info_len < sizeof(message));
    assert_non_null(HMAC(EVP_sha256(), salt, sizeof(salt), master, 32, prk, NULL));
    memcpy(message, info, info_len);
    message[info_len] = 1;
    assert_non_null(HMAC(EVP_sha256(), prk, sizeof(prk), message, info_len + 1, out, NULL));
}

static void
derivation(void **state)
{
    static const uint8_t day_info[12] = {'v', 'i', 's', 'i', 't', 'o', 'r', 0, 0x15, 0x4f, 0, 0};
    struct aff_keyring ring = ring_of(KEY_FILE);
    uint8_t want[32];
    uint8_t got[32];

    (void) state;

    for (unsigned i = 0; i < ring.count; i++) {
        hkdf_model(ring.keys[i].master, "click_id", 8, want);
        assert_memory_equal(ring.keys[i].click_id, want, AFF_MAC_KEY_BYTES);
        hkdf_model(ring.keys[i].master, "projection", 10, want);
        assert_memory_equal(ring.keys[i].projection, want, AFF_MAC_KEY_BYTES);
        hkdf_model(ring.keys[i].master, "batch", 5, want);
        assert_memory_equal(ring.keys[i].batch, want, AFF_MAC_KEY_BYTES);
    }

    hkdf_model(ring.keys[0].master, day_info, sizeof(day_info), want);
    assert_true(aff_visitor_key(&ring, 0x4f15, got));
    assert_memory_equal(got, want, AFF_MAC_KEY_BYTES);

    hkdf_model(ring.keys[0].master, "", 0, want);
    assert_true(aff_hkdf(ring.keys[0].master, aff_slice_of(""), got, sizeof(got)));
    assert_memory_equal(got, want, sizeof(got));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepted),
        cmocka_unit_test(refused),
        cmocka_unit_test(derivation),
    };

    return RUN(tests);
}
