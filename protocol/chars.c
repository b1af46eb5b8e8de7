/* The table behind chars.h: 1 for a URL's byte, 2 for an unreserved one, 4 for one of a word. */

#include "chars.h"

/* clang-format off */
const uint8_t aff_char_classes[256] = {
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* 0x00 */
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* 0x10 */
    0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 7, 3, 1, /* 0x20 */
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 1, 1, 0, 1, 0, 1, /* 0x30 */
    1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, /* 0x40 */
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 1, 0, 1, 0, 7, /* 0x50 */
    0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, /* 0x60 */
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 3, 0, /* 0x70 */
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* 0x80 */
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* 0x90 */
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* 0xa0 */
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* 0xb0 */
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* 0xc0 */
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* 0xd0 */
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* 0xe0 */
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* 0xf0 */
};
/* clang-format on */

typedef uint8_t block __attribute__((vector_size(16)));

/* Each gives bytes that are not zero where `b` has one that is not of the class. */

static inline block
not_url(block b)
{
    return (block) (b < 0x21) | (block) (b > 0x7e) | (block) (b == '"') | (block) (b == '<') |
           (block) (b == '>') | (block) (b == '\\') | (block) (b == '^') | (block) (b == '`') |
           (block) ((b >= '{') & (b <= '}'));
}

static inline block
not_unreserved(block b)
{
    block letter = (b | 0x20) - 'a';
    block digit = b - '0';

    return ~((block) (letter < 26) | (block) (digit < 10) | (block) (b == '-') |
             (block) (b == '.') | (block) (b == '_') | (block) (b == '~'));
}

static inline block
not_visible(block b)
{
    return (block) (b < 0x21) | (block) (b > 0x7e);
}

/* Whether `foreign` finds nothing in `text`; it is inlined, and so is what it calls. */
static inline __attribute__((always_inline)) bool
none_foreign(struct aff_slice text, block (*foreign)(block))
{
    block bad = {0};
    block b = {0};
    uint64_t words[2];
    size_t i = 0;

    for (; i + sizeof(block) <= text.len; i += sizeof(block)) {
        memcpy(&b, text.data + i, sizeof(block));
        bad |= foreign(b);
    }

    /* The last sixteen once more, for what is left. */
    memcpy(&b, text.data + text.len - sizeof(block), sizeof(block));
    bad |= foreign(b);

    memcpy(words, &bad, sizeof(words));
    return (words[0] | words[1]) == 0;
}

bool
aff_chars_url(struct aff_slice text)
{
    return text.len < sizeof(block) ? aff_chars_all(text, AFF_CHAR_URL)
                                    : none_foreign(text, not_url);
}

bool
aff_chars_unreserved(struct aff_slice text)
{
    return text.len < sizeof(block) ? aff_chars_all(text, AFF_CHAR_UNRESERVED)
                                    : none_foreign(text, not_unreserved);
}

bool
aff_chars_visible(struct aff_slice text)
{
    bool visible = true;

    if (text.len >= sizeof(block)) {
        return none_foreign(text, not_visible);
    }

    for (size_t i = 0; i < text.len; i++) {
        visible = visible && text.data[i] >= 0x21 && text.data[i] <= 0x7e;
    }

    return visible;
}
