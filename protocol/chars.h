/* Classes of bytes that several formats share. Not the C library's ctype: no locale may change what
 * a code or a URL is. */

#ifndef AFF_CHARS_H
#define AFF_CHARS_H

#include "slice.h"

enum aff_char_class {
    AFF_CHAR_URL = 1,        /* what a destination may hold, see aff_url_check() */
    AFF_CHAR_UNRESERVED = 2, /* RFC 3986: [A-Za-z0-9._~-] */
    AFF_CHAR_WORD = 4,       /* [A-Za-z0-9_-] */
};

/* Bits of enum aff_char_class for each byte. */
extern const uint8_t aff_char_classes[256];

static inline bool
aff_char_is(uint8_t c, enum aff_char_class class)
{
    return (aff_char_classes[c] & class) != 0;
}

static inline bool
aff_char_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

/* 0..15, or -1 if `c` is no hexadecimal digit. */
static inline int
aff_char_hex(uint8_t c)
{
    if (aff_char_digit(c)) {
        return c - '0';
    }

    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static inline uint8_t
aff_char_lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t) (c | 0x20) : c;
}

/* True if every byte of `text` is of `class`; so also for an empty one. */
static inline bool
aff_chars_all(struct aff_slice text, enum aff_char_class class)
{
    const uint8_t *p = text.data;
    unsigned all = class;
    size_t i = 0;

    /* No early way out: it is nearly always true. */
    for (; i + 4 <= text.len; i += 4) {
        all &= aff_char_classes[p[i]] & aff_char_classes[p[i + 1]] & aff_char_classes[p[i + 2]] &
               aff_char_classes[p[i + 3]];
    }

    for (; i < text.len; i++) {
        all &= aff_char_classes[p[i]];
    }

    return all != 0;
}

/* The same as aff_chars_all() for AFF_CHAR_URL and AFF_CHAR_UNRESERVED, sixteen bytes at a time. */
bool aff_chars_url(struct aff_slice text);
bool aff_chars_unreserved(struct aff_slice text);

/* True if every byte is a VCHAR of RFC 5234, 0x21..0x7e: nothing that could end a header. */
bool aff_chars_visible(struct aff_slice text);

/* True if `text` is 1..max characters of [A-Za-z0-9_-]. */
static inline bool
aff_word_valid(struct aff_slice text, size_t max)
{
    return text.len >= 1 && text.len <= max && aff_chars_all(text, AFF_CHAR_WORD);
}

#endif
