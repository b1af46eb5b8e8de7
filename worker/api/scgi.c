#include "worker/api/scgi.h"

#include "protocol/chars.h"

#define SCGI_DIGITS_MAX 5 /* of the netstring's length */

/* "123:" in front of the content. */
static enum scgi_result
scgi_length(struct aff_slice input, size_t *length, size_t *consumed)
{
    size_t value = 0;

    for (size_t i = 0; i < input.len; i++) {
        uint8_t c = input.data[i];

        if (c == ':') {
            *length = value;
            *consumed = i + 1;
            return i == 0 ? SCGI_MALFORMED : SCGI_DONE;
        }

        if (!aff_char_digit(c) || (i > 0 && value == 0)) {
            return SCGI_MALFORMED;
        }

        value = value * 10 + (size_t) (c - '0');
        if (i == SCGI_DIGITS_MAX || value > SCGI_HEAD_MAX) {
            return SCGI_TOO_LARGE;
        }
    }

    return SCGI_MORE;
}

/* Takes one NUL-ended text off `*rest`. */
static bool
scgi_text(struct aff_slice *rest, struct aff_slice *text)
{
    const uint8_t *end = rest->len == 0 ? NULL : memchr(rest->data, '\0', rest->len);

    if (end == NULL) {
        return false;
    }

    *text = aff_slice(rest->data, (size_t) (end - rest->data));
    *rest = aff_slice(end + 1, rest->len - text->len - 1);
    return true;
}

/* Decimal digits, at most 18 of them: no sign, no blanks. */
static bool
scgi_number(struct aff_slice text, uint64_t *number)
{
    *number = 0;
    for (size_t i = 0; i < text.len; i++) {
        if (!aff_char_digit(text.data[i])) {
            return false;
        }

        *number = *number * 10 + (uint64_t) (text.data[i] - '0');
    }

    return text.len >= 1 && text.len <= 18;
}

static enum scgi_result
scgi_pairs(struct aff_slice content, struct scgi_head *head)
{
    struct aff_slice name, value;

    while (content.len > 0) {
        if (!scgi_text(&content, &name) || !scgi_text(&content, &value) || name.len == 0) {
            return SCGI_MALFORMED;
        }

        if (head->count == SCGI_PAIRS_MAX) {
            return SCGI_TOO_LARGE;
        }

        head->pairs[head->count++] = (struct scgi_pair){.name = name, .value = value};
    }

    return SCGI_DONE;
}

enum scgi_result
scgi_parse(struct aff_slice input, struct scgi_head *head, size_t *consumed)
{
    size_t length = 0, start = 0;
    enum scgi_result result = scgi_length(input, &length, &start);
    struct aff_slice value;

    if (result != SCGI_DONE) {
        return result;
    }

    if (input.len - start < length + 1) {
        return SCGI_MORE;
    }

    head->count = 0;
    if (input.data[start + length] != ',') {
        return SCGI_MALFORMED;
    }

    result = scgi_pairs(aff_slice(input.data + start, length), head);
    if (result != SCGI_DONE) {
        return result;
    }

    /* The protocol wants CONTENT_LENGTH to come first, and "SCGI" to be "1". */
    if (head->count == 0 || !aff_slice_equal(head->pairs[0].name, aff_slice_of("CONTENT_LENGTH")) ||
        !scgi_number(head->pairs[0].value, &head->content_length) ||
        scgi_find(head, "CONTENT_LENGTH", &value) != 1 || scgi_find(head, "SCGI", &value) != 1 ||
        !aff_slice_equal(value, aff_slice_of("1"))) {
        return SCGI_MALFORMED;
    }

    *consumed = start + length + 1;
    return SCGI_DONE;
}

unsigned
scgi_find(const struct scgi_head *head, const char *name, struct aff_slice *value)
{
    struct aff_slice wanted = aff_slice_of(name);
    unsigned count = 0;

    *value = aff_slice("", 0);
    for (unsigned i = 0; i < head->count; i++) {
        if (aff_slice_equal(head->pairs[i].name, wanted)) {
            *value = head->pairs[i].value;
            count++;
        }
    }

    return count;
}
