/* Request signatures. */

#include "signature.h"

#include "chars.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>

static bool
update(EVP_MAC_CTX *ctx, struct aff_slice part)
{
    return part.len == 0 || EVP_MAC_update(ctx, part.data, part.len) == 1;
}

static bool
update_line(EVP_MAC_CTX *ctx, struct aff_slice part)
{
    return update(ctx, part) && update(ctx, aff_slice_of("\n"));
}

static bool
update_request(EVP_MAC_CTX *ctx, const struct aff_signed_request *request)
{
    if (!update_line(ctx, aff_slice_of("v1")) || !update_line(ctx, request->timestamp) ||
        !update_line(ctx, request->method) || !update_line(ctx, request->path_with_query) ||
        !update_line(ctx, request->idempotency_key)) {
        return false;
    }

    for (size_t i = 0; i < request->body_pieces; i++) {
        if (!update(ctx, request->body[i])) {
            return false;
        }
    }

    return true;
}

bool
aff_sign(struct aff_slice secret, const struct aff_signed_request *request,
    uint8_t signature[AFF_SIGNATURE_BYTES])
{
    EVP_MAC *mac;
    EVP_MAC_CTX *ctx = NULL;
    size_t len = 0;
    bool ok = false;

    /* OpenSSL takes the name as a pointer to what is not const, and only reads it. */
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *) "SHA256", 0),
        OSSL_PARAM_construct_end(),
    };

    /* A failure here must not turn up in the error queue of someone else's TLS connection. */
    ERR_set_mark();

    mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    if (mac != NULL) {
        ctx = EVP_MAC_CTX_new(mac);
    }

    if (ctx != NULL && EVP_MAC_init(ctx, secret.data, secret.len, params) == 1 &&
        update_request(ctx, request)) {
        ok = EVP_MAC_final(ctx, signature, &len, AFF_SIGNATURE_BYTES) == 1 &&
             len == AFF_SIGNATURE_BYTES;
    }

    EVP_MAC_CTX_free(ctx);
    EVP_MAC_free(mac);
    ERR_pop_to_mark();

    return ok;
}

void
aff_hex(const uint8_t *bytes, size_t len, char *out)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < len; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
}

static struct aff_slice
trim(struct aff_slice s)
{
    while (s.len > 0 && (s.data[0] == ' ' || s.data[0] == '\t')) {
        s = aff_slice(s.data + 1, s.len - 1);
    }

    while (s.len > 0 && (s.data[s.len - 1] == ' ' || s.data[s.len - 1] == '\t')) {
        s.len--;
    }

    return s;
}

/* 64 lower-case hexadecimal digits; upper case is refused, so that a signature has one spelling. */
static bool
parse_digest(struct aff_slice hex, uint8_t out[AFF_SIGNATURE_BYTES])
{
    if (hex.len != 2 * (size_t) AFF_SIGNATURE_BYTES) {
        return false;
    }

    for (size_t i = 0; i < hex.len; i++) {
        int digit = aff_char_hex(hex.data[i]);

        if (digit < 0 || aff_char_lower(hex.data[i]) != hex.data[i]) {
            return false;
        }

        out[i / 2] = (uint8_t) (i % 2 == 0 ? digit << 4 : out[i / 2] | digit);
    }

    return true;
}

unsigned
aff_signature_parse(struct aff_slice header, uint8_t out[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES])
{
    unsigned count = 0;
    size_t pos = 0;

    if (header.len == 0) {
        return 0;
    }

    /* <=: a comma at the very end leaves an empty element behind it, which is malformed. */
    while (pos <= header.len) {
        const uint8_t *start = header.data + pos;
        const uint8_t *comma = memchr(start, ',', header.len - pos);
        size_t len = comma == NULL ? header.len - pos : (size_t) (comma - start);
        struct aff_slice element = trim(aff_slice(start, len));
        const uint8_t *equals = element.len == 0 ? NULL : memchr(element.data, '=', element.len);
        struct aff_slice scheme;
        struct aff_slice value;

        if (equals == NULL) {
            return 0;
        }

        scheme = aff_slice(element.data, (size_t) (equals - element.data));
        value = aff_slice(equals + 1, element.len - scheme.len - 1);

        if (!aff_word_valid(scheme, element.len) || value.len == 0) {
            return 0;
        }

        if (aff_slice_equal(scheme, aff_slice_of("v1"))) {
            if (count == AFF_SIGNATURES_MAX || !parse_digest(value, out[count])) {
                return 0;
            }

            count++;
        }

        pos += len + 1;
    }

    return count;
}

bool
aff_signature_match(const uint8_t expected[AFF_SIGNATURE_BYTES],
    uint8_t given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES], unsigned count)
{
    unsigned matches = 0;

    for (unsigned i = 0; i < count && i < AFF_SIGNATURES_MAX; i++) {
        matches += CRYPTO_memcmp(expected, given[i], AFF_SIGNATURE_BYTES) == 0;
    }

    return matches != 0;
}

bool
aff_timestamp_parse(struct aff_slice text, int64_t *seconds)
{
    int64_t value = 0;

    if (text.len < 1 || text.len > 11) {
        return false;
    }

    for (size_t i = 0; i < text.len; i++) {
        if (!aff_char_digit(text.data[i])) {
            return false;
        }

        value = value * 10 + (text.data[i] - '0');
    }

    *seconds = value;
    return true;
}
