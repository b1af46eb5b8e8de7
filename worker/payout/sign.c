#include "worker/payout/sign.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pkcs12.h>
#include <stdio.h>
#include <string.h>

static struct sign_key *
sign_failed(char *error, const char *why)
{
    unsigned long code = ERR_peek_last_error();
    const char *reason = code == 0 ? NULL : ERR_reason_error_string(code);

    snprintf(error, SIGN_ERROR_MAX, "%s%s%s", why, reason == NULL ? "" : ": ",
        reason == NULL ? "" : reason);
    ERR_clear_error();
    return NULL;
}

static PKCS12 *
sign_read(const char *path, char *error)
{
    FILE *file = fopen(path, "re");
    uint8_t bytes[SIGN_PFX_MAX];
    const uint8_t *at = bytes;
    PKCS12 *pfx = NULL;
    size_t len;

    if (file == NULL) {
        snprintf(error, SIGN_ERROR_MAX, "%s", strerror(errno));
        return NULL;
    }

    len = fread(bytes, 1, sizeof(bytes), file);
    if (ferror(file) != 0 || len == sizeof(bytes)) {
        snprintf(error, SIGN_ERROR_MAX, "it can't be read, or is too long");
    } else {
        pfx = d2i_PKCS12(NULL, &at, (long) len);
        if (pfx == NULL) {
            sign_failed(error, "it is no PFX file");
        }
    }

    fclose(file);
    OPENSSL_cleanse(bytes, sizeof(bytes));
    return pfx;
}

struct sign_key *
sign_open(const char *path, const char *password, char error[SIGN_ERROR_MAX])
{
    PKCS12 *pfx;
    EVP_PKEY *key = NULL;
    bool ok;

    ERR_clear_error();
    pfx = sign_read(path, error);
    if (pfx == NULL) {
        return NULL;
    }

    ok = PKCS12_parse(pfx, password, &key, NULL, NULL) == 1;
    PKCS12_free(pfx);
    if (!ok) {
        return sign_failed(error, "its password is another, or its cipher is not known here");
    }

    if (key == NULL || EVP_PKEY_get_base_id(key) != EVP_PKEY_RSA ||
        EVP_PKEY_get_bits(key) < SIGN_RSA_MIN || EVP_PKEY_get_bits(key) > SIGN_RSA_MAX) {
        EVP_PKEY_free(key);
        return sign_failed(error, "it has no RSA key of 2048 to 8192 bits");
    }

    return (struct sign_key *) key;
}

void
sign_close(struct sign_key *key)
{
    EVP_PKEY_free((EVP_PKEY *) key);
}

bool
sign_text(const struct sign_key *key, struct aff_slice text, char out[SIGN_BASE64_MAX])
{
    uint8_t signature[SIGN_RSA_MAX / 8];
    size_t len = sizeof(signature);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    EVP_PKEY_CTX *options = NULL;
    bool ok;

    /* Padding is said, not left to a default: nobody can verify another one. */
    ok = context != NULL &&
         EVP_DigestSignInit(context, &options, EVP_sha256(), NULL, (EVP_PKEY *) key) == 1 &&
         EVP_PKEY_CTX_set_rsa_padding(options, RSA_PKCS1_PADDING) == 1 &&
         EVP_DigestSign(context, signature, &len, text.data, text.len) == 1;
    EVP_MD_CTX_free(context);
    if (ok) {
        EVP_EncodeBlock((uint8_t *) out, signature, (int) len);
    } else {
        ERR_clear_error();
    }

    return ok;
}
