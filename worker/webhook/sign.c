#include "worker/webhook/sign.h"

#include "worker/api/text.h"

#include <openssl/evp.h>
#include <openssl/params.h>

#include <stdio.h>
#include <string.h>

_Static_assert(
    TEXT_BASE64_CHARS(SIGN_SECRET_BYTES) == 43, "32 bytes end in one character of padding");

void
sign_secret_text(const uint8_t secret[SIGN_SECRET_BYTES], char text[SIGN_SECRET_CHARS + 1])
{
    memcpy(text, "whsec_", 6);
    text_base64(aff_slice(secret, SIGN_SECRET_BYTES), false, text + 6);
    memcpy(text + SIGN_SECRET_CHARS - 1, "=", 2);
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
    char head[128];
    bool ok;

    snprintf(head, sizeof(head), "%.64s.%lld.", id, (long long) timestamp_s);
    ok = ctx != NULL && sign_mac(ctx, secret, aff_slice_of(head), body, digest);
    EVP_MAC_CTX_free(ctx);
    EVP_MAC_free(mac);

    memcpy(text, "v1,", 3);
    text_base64(aff_slice(digest, sizeof(digest)), false, text + 3);
    memcpy(text + SIGN_CHARS - 1, "=", 2);
    return ok;
}
