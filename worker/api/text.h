/* Bytes as text and back: base64 (RFC 4648), with and without the URL's alphabet, base32, hex,
 * UTF-8. */

#ifndef AFFILIATED_API_TEXT_H
#define AFFILIATED_API_TEXT_H

#include "protocol/slice.h"

/* Characters of `n` bytes, without padding. */
#define TEXT_BASE64_CHARS(n) (((n) *4 + 2) / 3)
#define TEXT_BASE32_CHARS(n) (((n) *8 + 4) / 5)

/* Without padding, NUL-terminated. */
void text_base64(struct aff_slice bytes, bool url, char *out);
void text_base32(struct aff_slice bytes, char *out);
void text_hex(struct aff_slice bytes, char *out);

/* Exactly `len` bytes, written in the one form that text_base64() and text_hex() give. */
bool text_from_base64(struct aff_slice text, bool url, uint8_t *out, size_t len);
bool text_from_hex(struct aff_slice text, uint8_t *out, size_t len);

/* Lower-case hex of a SHA-256; NUL-terminated. */
#define TEXT_SHA256_CHARS 64
void text_sha256(struct aff_slice bytes, char out[TEXT_SHA256_CHARS + 1]);

/* Well-formed UTF-8 (RFC 3629): no surrogates, no overlong forms; and no NUL. */
bool text_utf8(struct aff_slice text);

#endif
