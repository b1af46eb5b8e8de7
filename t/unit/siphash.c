/* SipHash-2-4 and -1-3: the paper's value, OpenSSL's on random inputs, pieces against the whole. */

#include "unit.h"

#include "siphash.h"

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>

static void
paper_vector(void **state)
{
    uint8_t bytes[16];

    (void) state;

    for (unsigned i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t) i;
    }

    /* Appendix A: key 00..0f, message 00..0e. */
    assert_true(aff_siphash(bytes, bytes, 15) == 0xa129ca6149be45e5);
}

static uint64_t
openssl_siphash(
    EVP_MAC_CTX *ctx, unsigned rounds, const uint8_t key[16], const uint8_t *data, size_t len)
{
    unsigned last = rounds + 2;
    size_t size = 8;
    uint8_t out[8];
    size_t out_len;
    uint64_t value = 0;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_size_t(OSSL_MAC_PARAM_SIZE, &size),
        OSSL_PARAM_construct_uint(OSSL_MAC_PARAM_C_ROUNDS, &rounds),
        OSSL_PARAM_construct_uint(OSSL_MAC_PARAM_D_ROUNDS, &last),
        OSSL_PARAM_construct_end(),
    };

    assert_int_equal(EVP_MAC_init(ctx, key, 16, params), 1);
    assert_int_equal(EVP_MAC_update(ctx, data, len), 1);
    assert_int_equal(EVP_MAC_final(ctx, out, &out_len, sizeof(out)), 1);
    assert_int_equal(out_len, 8);

    for (unsigned i = 0; i < 8; i++) {
        value |= (uint64_t) out[i] << (8 * i);
    }

    return value;
}

static void
against_openssl(void **state)
{
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "SIPHASH", NULL);
    EVP_MAC_CTX *ctx = EVP_MAC_CTX_new(mac);
    uint8_t key[16];
    uint8_t data[700];

    (void) state;
    assert_non_null(ctx);

    for (size_t len = 0; len <= sizeof(data); len++) {
        struct aff_slice copy;

        fill_random(key, sizeof(key));
        fill_random(data, len);
        copy = exact(data, len);
        assert_true(aff_siphash(key, copy.data, len) == openssl_siphash(ctx, 2, key, data, len));
        assert_true(aff_siphash13(key, copy.data, len) == openssl_siphash(ctx, 1, key, data, len));
        drop(copy);
    }

    EVP_MAC_CTX_free(ctx);
    EVP_MAC_free(mac);
}

static void
in_pieces(void **state)
{
    uint8_t key[16];
    uint8_t data[256];

    (void) state;
    fill_random(key, sizeof(key));
    fill_random(data, sizeof(data));

    for (unsigned round = 0; round < 2000; round++) {
        size_t len = next_random() % (sizeof(data) + 1);
        struct aff_siphash s;

        aff_siphash_init(&s, key);

        for (size_t at = 0; at < len;) {
            size_t piece = next_random() % 20;

            piece = piece < len - at ? piece : len - at;
            aff_siphash_update(&s, data + at, piece);
            at += piece;
        }

        aff_siphash_update(&s, NULL, 0);
        assert_true(aff_siphash_final(&s) == aff_siphash(key, data, len));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(paper_vector),
        cmocka_unit_test(against_openssl),
        cmocka_unit_test(in_pieces),
    };

    seed_random();
    return RUN(tests);
}
