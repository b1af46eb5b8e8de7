#include "worker/api/totp.h"

#include "protocol/bytes.h"
#include "protocol/chars.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#define RECOVERY_BYTES 10
#define RECOVERY_TYPED 16 /* characters without hyphens */

uint32_t
totp_code(const uint8_t secret[TOTP_SECRET_BYTES], int64_t step)
{
    uint8_t message[8], digest[EVP_MAX_MD_SIZE];
    unsigned len = 0, offset;

    aff_store_be64(message, (uint64_t) step);
    if (HMAC(EVP_sha1(), secret, TOTP_SECRET_BYTES, message, sizeof(message), digest, &len) ==
            NULL ||
        len != 20) {
        return UINT32_MAX;
    }

    /* RFC 4226, 5.3: four bytes from where the last one points, without their sign. */
    offset = digest[len - 1] & 15;
    return (aff_load_be32(digest + offset) & 0x7fffffff) % 1000000;
}

bool
totp_check(const uint8_t secret[TOTP_SECRET_BYTES], struct aff_slice code, int64_t now_s,
    int64_t last, int64_t *step)
{
    uint32_t given = 0;
    bool found = false;

    if (code.len != TOTP_DIGITS) {
        return false;
    }

    for (size_t i = 0; i < code.len; i++) {
        if (!aff_char_digit(code.data[i])) {
            return false;
        }

        given = given * 10 + (uint32_t) (code.data[i] - '0');
    }

    /* All three in any case. */
    for (int64_t s = now_s / TOTP_STEP_S - 1; s <= now_s / TOTP_STEP_S + 1; s++) {
        if (totp_code(secret, s) == given && s > last) {
            *step = s;
            found = true;
        }
    }

    return found;
}

bool
recovery_make(char codes[RECOVERY_CODES][RECOVERY_CHARS + 1],
    char hashes[RECOVERY_CODES][TEXT_SHA256_CHARS + 1])
{
    uint8_t random[RECOVERY_CODES][RECOVERY_BYTES];
    char plain[RECOVERY_TYPED + 1];

    if (RAND_bytes(&random[0][0], sizeof(random)) != 1) {
        return false;
    }

    for (unsigned i = 0; i < RECOVERY_CODES; i++) {
        char *out = codes[i];

        text_base32(aff_slice(random[i], RECOVERY_BYTES), plain);
        for (unsigned k = 0; k < RECOVERY_TYPED; k++) {
            if (k > 0 && k % 4 == 0) {
                *out++ = '-';
            }

            plain[k] = (char) aff_char_lower((uint8_t) plain[k]);
            *out++ = plain[k];
        }

        *out = '\0';
        text_sha256(aff_slice(plain, RECOVERY_TYPED), hashes[i]);
    }

    OPENSSL_cleanse(random, sizeof(random));
    OPENSSL_cleanse(plain, sizeof(plain));
    return true;
}

bool
recovery_hash(struct aff_slice code, char hash[TEXT_SHA256_CHARS + 1])
{
    char plain[RECOVERY_TYPED];
    size_t n = 0;

    for (size_t i = 0; i < code.len; i++) {
        uint8_t c = aff_char_lower(code.data[i]);

        if (c == '-' || c == ' ') {
            continue;
        }

        if (n == RECOVERY_TYPED || !((c >= 'a' && c <= 'z') || (c >= '2' && c <= '7'))) {
            return false;
        }

        plain[n++] = (char) c;
    }

    if (n != RECOVERY_TYPED) {
        return false;
    }

    text_sha256(aff_slice(plain, n), hash);
    OPENSSL_cleanse(plain, sizeof(plain));
    return true;
}
