#include "worker/webhook/sign.h"

#include "worker/api/text.h"

#include <openssl/evp.h>
#include <openssl/params.h>

#include <stdio.h>
#include <string.h>

/* 32 bytes end in one character of padding. */
#define SIGN_BASE64_CHARS 43

_Static_assert(TEXT_BASE64_CHARS(SIGN_SECRET_BYTES) == SIGN_BASE64_CHARS, "of 32 bytes");

void
sign_secret_text(const uint8_t secret[SIGN_SECRET_BYTES], char text[SIGN_SECRET_CHARS + 1])
{
    char base64[SIGN_BASE64_CHARS + 1];

    text_base64(aff_slice(secret, SIGN_SECRET_BYTES), false, base64);
    snprintf(text, SIGN_SECRET_CHARS + 1, "whsec_%s=", base64);
    explicit_bzero(base64, sizeof(base64));
}

static bool
sign_mac(EVP_MAC_CTX *ctx, const uint8_t *secret, struct aff_slice head, struct aff_slice body,
    uint8_t digest[32])
{
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string("digest", (char[]){"SHA256"}, 0), OSSL_PARAM_END};
    size_t len = 0;

    return EVP_MAC_init(ctx, secret, SIGN_SECRET_BYTES, params) == 1 &&
           EVP_MAC_update(ctx, head.data, head.len) == 1 &&
           EVP_MAC_update(ctx, body.data, body.len) == 1 &&
           EVP_MAC_final(ctx, digest, &len, 32) == 1 && len == 32;
}

bool
sign_webhook(const uint8_t secret[SIGN_SECRET_BYTES], const char *id, int64_t timestamp_s,
    struct aff_slice body, char text[SIGN_CHARS + 1])
{
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    EVP_MAC_CTX *ctx = mac == NULL ? NULL : EVP_MAC_CTX_new(mac);
    uint8_t digest[32] = {0};
    char head[128], base64[SIGN_BASE64_CHARS + 1];
    bool ok;

    snprintf(head, sizeof(head), "%.64s.%lld.", id, (long long) timestamp_s);
    ok = ctx != NULL && sign_mac(ctx, secret, aff_slice_of(head), body, digest);
    EVP_MAC_CTX_free(ctx);
    EVP_MAC_free(mac);

    text_base64(aff_slice(digest, sizeof(digest)), false, base64);
    snprintf(text, SIGN_CHARS + 1, "v1,%s=", base64);
    return ok;
}
