/* One byte at a time through the states of a cell; runs of plain bytes in one go. */

#include "worker/api/csv.h"

#include "protocol/chars.h"
#include "worker/api/text.h"

#define BOM_PASSED 4

static const uint8_t bom_bytes[3] = {0xef, 0xbb, 0xbf};

void
csv_init(struct csv_reader *r, uint8_t *bytes, size_t size)
{
    *r = (struct csv_reader){.bytes = bytes, .size = size, .state = CSV_AT_ROW, .fresh = true};
}

static enum csv_event
bad(struct csv_reader *r, const char *problem)
{
    r->state = CSV_FAILED;
    r->problem = problem;
    return CSV_BAD;
}

static size_t
cell_length(const struct csv_reader *r)
{
    return r->used - (r->columns == 0 ? 0 : r->ends[r->columns - 1]);
}

static bool
put(struct csv_reader *r, const uint8_t *data, size_t len)
{
    if (len > r->size - r->used) {
        (void) bad(r, "must be shorter");
        return false;
    }

    memcpy(r->bytes + r->used, data, len);
    r->used += len;
    if (cell_length(r) > CSV_CELL_MAX) {
        (void) bad(r, "must have no cell of more than 65536 bytes");
        return false;
    }

    return true;
}

static bool
end_cell(struct csv_reader *r)
{
    if (r->columns == CSV_COLUMNS_MAX) {
        (void) bad(r, "must have at most 128 cells");
        return false;
    }

    r->ends[r->columns++] = (uint32_t) r->used;
    if (!text_utf8(csv_cell(r, r->columns - 1))) {
        (void) bad(r, "must be text in UTF-8, without NUL");
        return false;
    }

    r->state = CSV_AT_CELL;
    return true;
}

static enum csv_event
end_row(struct csv_reader *r)
{
    if (!end_cell(r)) {
        return CSV_BAD;
    }

    r->state = CSV_AT_ROW;
    r->fresh = true;
    return CSV_ROW;
}

static bool
is_separator(struct csv_reader *r, uint8_t c)
{
    if (r->separator == 0 && r->row == 1 && (c == ',' || c == ';' || c == '\t')) {
        r->separator = c;
    }

    return c == r->separator && c != 0;
}

/* Takes the bytes of a quoted cell up to its next quote. */
static bool
take_quoted(struct csv_reader *r, struct aff_slice *input)
{
    const uint8_t *quote = memchr(input->data, '"', input->len);
    size_t n = quote == NULL ? input->len : (size_t) (quote - input->data);

    if (!put(r, input->data, n)) {
        return false;
    }

    if (quote != NULL) {
        r->state = CSV_AFTER_QUOTE;
        n++;
    }

    *input = aff_slice(input->data + n, input->len - n);
    return true;
}

/* Takes the bytes of a plain cell, of which the first is no separator and no line end. */
static bool
take_plain(struct csv_reader *r, struct aff_slice *input)
{
    size_t n = 1;

    while (n < input->len && input->data[n] != '\n' && input->data[n] != '\r' &&
           !is_separator(r, input->data[n])) {
        n++;
    }

    r->state = CSV_IN_CELL;
    if (!put(r, input->data, n)) {
        return false;
    }

    *input = aff_slice(input->data + n, input->len - n);
    return true;
}

/* One step. CSV_MORE: go on, if there is more input. */
static enum csv_event
step(struct csv_reader *r, struct aff_slice *input)
{
    uint8_t c = input->data[0];

    if (r->state == CSV_IN_QUOTES) {
        return take_quoted(r, input) ? CSV_MORE : CSV_BAD;
    }

    if (r->state == CSV_AFTER_QUOTE && c == '"') {
        r->state = CSV_IN_QUOTES;
        *input = aff_slice(input->data + 1, input->len - 1);
        return put(r, &c, 1) ? CSV_MORE : CSV_BAD;
    }

    if (c == '"' && (r->state == CSV_AT_ROW || r->state == CSV_AT_CELL)) {
        r->state = CSV_IN_QUOTES;
    } else if (c == '\n' || c == '\r') {
        *input = aff_slice(input->data + 1, input->len - 1);
        r->skip_lf = c == '\r';
        if (r->state == CSV_AT_ROW) {
            r->row--;
            r->fresh = true;
            return CSV_MORE;
        }

        return end_row(r);
    } else if (is_separator(r, c)) {
        if (!end_cell(r)) {
            return CSV_BAD;
        }
    } else if (r->state == CSV_AFTER_QUOTE) {
        return bad(r, "must have nothing between a closing quote and the next separator");
    } else {
        return take_plain(r, input) ? CSV_MORE : CSV_BAD;
    }

    *input = aff_slice(input->data + 1, input->len - 1);
    return CSV_MORE;
}

/* The bytes that looked like the beginning of a mark are those of the first cell. */
static bool
no_bom(struct csv_reader *r)
{
    size_t met = r->bom;

    r->bom = BOM_PASSED;
    if (met == 0 || met == sizeof(bom_bytes)) {
        return true;
    }

    r->fresh = false;
    r->row = 1;
    r->state = CSV_IN_CELL;
    return put(r, bom_bytes, met);
}

static bool
pass_bom(struct csv_reader *r, struct aff_slice *input)
{
    while (r->bom < sizeof(bom_bytes) && input->len > 0 && input->data[0] == bom_bytes[r->bom]) {
        r->bom++;
        *input = aff_slice(input->data + 1, input->len - 1);
    }

    return (input->len == 0 && r->bom < sizeof(bom_bytes)) || no_bom(r);
}

enum csv_event
csv_read(struct csv_reader *r, struct aff_slice *input)
{
    if (r->state == CSV_FAILED) {
        return CSV_BAD;
    }

    if (r->bom != BOM_PASSED && !pass_bom(r, input)) {
        return CSV_BAD;
    }

    while (input->len > 0) {
        enum csv_event event;

        if (r->skip_lf) {
            r->skip_lf = false;
            if (input->data[0] == '\n') {
                *input = aff_slice(input->data + 1, input->len - 1);
                continue;
            }
        }

        if (r->fresh) {
            r->fresh = false;
            r->used = 0;
            r->columns = 0;
            r->row++;
        }

        event = step(r, input);
        if (event != CSV_MORE) {
            return event;
        }
    }

    return CSV_MORE;
}

enum csv_event
csv_end(struct csv_reader *r)
{
    if (r->state == CSV_FAILED || (r->bom != BOM_PASSED && !no_bom(r))) {
        return CSV_BAD;
    }

    switch (r->state) {
    case CSV_IN_QUOTES:
        return bad(r, "must have an end to each quote");
    case CSV_AT_ROW:
        return CSV_MORE;
    default:
        return end_row(r);
    }
}

/* -12.5 and +3 are numbers, which no spreadsheet calculates with anything. */
static bool
is_number(struct aff_slice text)
{
    size_t i = 1;
    size_t digits = 0;

    while (i < text.len && aff_char_digit(text.data[i])) {
        i++;
        digits++;
    }

    if (i < text.len && text.data[i] == '.' && digits > 0) {
        digits = 0;
        for (i++; i < text.len && aff_char_digit(text.data[i]); i++) {
            digits++;
        }
    }

    return digits > 0 && i == text.len;
}

static bool
is_formula(struct aff_slice text)
{
    if (text.len == 0) {
        return false;
    }

    /* Their full-width twins, U+FF1D, FF0B, FF0D and FF20, begin formulas in East Asian
     * spreadsheets. */
    if (text.len >= 3 && text.data[0] == 0xef && text.data[1] == 0xbc) {
        uint8_t twin = text.data[2];

        return twin == 0x9d || twin == 0x8b || twin == 0x8d || twin == 0xa0;
    }

    switch (text.data[0]) {
    case '=':
    case '@':
    case '\t':
    case '\r':
    case '\n':
        return true;
    case '+':
    case '-':
        return !is_number(text);
    default:
        return false;
    }
}

static bool
needs_quotes(struct aff_slice text)
{
    for (size_t i = 0; i < text.len; i++) {
        uint8_t c = text.data[i];

        if (c == '"' || c == ',' || c == ';' || c == '\t' || c == '\r' || c == '\n') {
            return true;
        }
    }

    return false;
}

void
csv_put(struct buffer *out, struct aff_slice text)
{
    bool quotes = needs_quotes(text);

    buffer_puts(out, quotes ? "\"" : "");
    buffer_puts(out, is_formula(text) ? "'" : "");
    while (text.len > 0) {
        const uint8_t *quote = quotes ? memchr(text.data, '"', text.len) : NULL;
        size_t n = quote == NULL ? text.len : (size_t) (quote - text.data) + 1;

        buffer_put(out, text.data, n);
        buffer_puts(out, quote == NULL ? "" : "\"");
        text = aff_slice(text.data + n, text.len - n);
    }

    buffer_puts(out, quotes ? "\"" : "");
}
