#include "worker/api/text.h"

#include "protocol/chars.h"
#include "protocol/signature.h"

#include <openssl/sha.h>

static const char text_base64_digits[2][65] = {
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
};

/* Groups of `bits` bits, most significant first, the last one filled up with zeros. */
static void
text_encode(struct aff_slice bytes, const char *digits, unsigned bits, char *out)
{
    uint32_t rest = 0;
    unsigned have = 0;

    for (size_t i = 0; i < bytes.len; i++) {
        rest = (rest << 8 | bytes.data[i]) & 0xffff;
        for (have += 8; have >= bits; have -= bits) {
            *out++ = digits[rest >> (have - bits) & ((1U << bits) - 1)];
        }
    }

    if (have > 0) {
        *out++ = digits[rest << (bits - have) & ((1U << bits) - 1)];
    }

    *out = '\0';
}

void
text_base64(struct aff_slice bytes, bool url, char *out)
{
    text_encode(bytes, text_base64_digits[url], 6, out);
}

void
text_base32(struct aff_slice bytes, char *out)
{
    text_encode(bytes, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 5, out);
}

void
text_hex(struct aff_slice bytes, char *out)
{
    aff_hex(bytes.data, bytes.len, out);
    out[2 * bytes.len] = '\0';
}

bool
text_from_base64(struct aff_slice text, bool url, uint8_t *out, size_t len)
{
    uint32_t rest = 0;
    unsigned have = 0;
    size_t n = 0;

    if (text.len != TEXT_BASE64_CHARS(len)) {
        return false;
    }

    for (size_t i = 0; i < text.len; i++) {
        const char *digit =
            text.data[i] == '\0' ? NULL : strchr(text_base64_digits[url], (char) text.data[i]);

        if (digit == NULL) {
            return false;
        }

        rest = (rest << 6 | (uint32_t) (digit - text_base64_digits[url])) & 0xffff;
        have += 6;
        if (have >= 8) {
            have -= 8;
            out[n++] = (uint8_t) (rest >> have);
        }
    }

    /* What is left over is zero, so that nothing has two spellings. */
    return (rest & ((1U << have) - 1)) == 0;
}

bool
text_from_hex(struct aff_slice text, uint8_t *out, size_t len)
{
    if (text.len != 2 * len) {
        return false;
    }

    for (size_t i = 0; i < text.len; i++) {
        int digit = aff_char_hex(text.data[i]);

        if (digit < 0 || aff_char_lower(text.data[i]) != text.data[i]) {
            return false;
        }

        out[i / 2] = (uint8_t) (i % 2 == 0 ? digit << 4 : out[i / 2] | digit);
    }

    return true;
}

void
text_sha256(struct aff_slice bytes, char out[TEXT_SHA256_CHARS + 1])
{
    uint8_t digest[SHA256_DIGEST_LENGTH];

    SHA256(bytes.data, bytes.len, digest);
    text_hex(aff_slice(digest, sizeof(digest)), out);
}

bool
text_utf8(struct aff_slice text)
{
    const uint8_t *p = text.data, *end = text.data + text.len;

    while (p < end) {
        uint8_t c = *p++;
        uint8_t low = 0x80, high = 0xbf;
        unsigned more;

        if (c < 0x80) {
            if (c == '\0') {
                return false;
            }

            continue;
        }

        if (c < 0xc2 || c > 0xf4) {
            return false;
        }

        more = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
        low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : low;
        high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : high;
        for (; more > 0; more--, p++) {
            if (p == end || *p < low || *p > high) {
                return false;
            }

            low = 0x80;
            high = 0xbf;
        }
    }

    return true;
}
