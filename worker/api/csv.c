#include "worker/api/csv.h"

#include "worker/api/text.h"

void
csv_open(struct csv_reader *reader, struct aff_slice text)
{
    static const uint8_t candidates[] = {',', ';', '\t'};
    const uint8_t *end;
    size_t counts[3] = {0}, line, best = 0;

    if (text.len >= 3 && memcmp(text.data, "\xef\xbb\xbf", 3) == 0) {
        text = aff_slice(text.data + 3, text.len - 3);
    }

    end = text.len == 0 ? NULL : memchr(text.data, '\n', text.len);
    line = end == NULL ? text.len : (size_t) (end - text.data);
    for (size_t i = 0; i < line; i++) {
        for (size_t k = 0; k < sizeof(candidates); k++) {
            counts[k] += text.data[i] == candidates[k];
        }
    }

    for (size_t k = 1; k < sizeof(candidates); k++) {
        best = counts[k] > counts[best] ? k : best;
    }

    *reader = (struct csv_reader){.rest = text, .separator = candidates[best], .next_line = 1};
    buffer_open(&reader->scratch, (size_t) CSV_COLUMNS_MAX * CSV_CELL_MAX, NULL);
}

void
csv_close(struct csv_reader *reader)
{
    buffer_close(&reader->scratch);
}

/* A quoted cell, from behind its first quote: `*end` is its closing one. False if it has none. */
static bool
csv_quoted_end(struct csv_reader *reader, const uint8_t **end, bool *doubled)
{
    const uint8_t *p = reader->rest.data, *stop = p + reader->rest.len;

    *doubled = false;
    for (; p < stop; p++) {
        reader->next_line += *p == '\n';
        if (*p != '"') {
            continue;
        }

        if (p + 1 < stop && p[1] == '"') {
            *doubled = true;
            p++;
        } else {
            *end = p;
            return true;
        }
    }

    return false;
}

/* `text` with each two quotes as one, in the scratch memory. It may move: `cell` is an offset
 * there. */
static void
csv_undouble(struct csv_reader *reader, struct aff_slice *text)
{
    size_t start = reader->scratch.len;

    for (size_t i = 0; i < text->len; i++) {
        buffer_put(&reader->scratch, text->data + i, 1);
        i += text->data[i] == '"';
    }

    *text = aff_slice(NULL, reader->scratch.len - start);
}

static enum csv_result
csv_cell(struct csv_reader *reader, struct aff_slice *cell)
{
    const uint8_t *p = reader->rest.data, *stop = p + reader->rest.len, *end;
    bool doubled;

    if (p < stop && *p == '"') {
        reader->rest = aff_slice(p + 1, reader->rest.len - 1);
        if (!csv_quoted_end(reader, &end, &doubled)) {
            return CSV_MALFORMED;
        }

        *cell = aff_slice(p + 1, (size_t) (end - p - 1));
        reader->rest = aff_slice(end + 1, (size_t) (stop - end - 1));
        if (!text_utf8(*cell)) {
            return CSV_MALFORMED;
        }

        if (cell->len > CSV_CELL_MAX) {
            return CSV_TOO_LARGE;
        }

        if (doubled) {
            csv_undouble(reader, cell);
        }

        return CSV_ROW;
    }

    while (p < stop && *p != reader->separator && *p != '\n' && *p != '"') {
        p++;
    }

    *cell = aff_slice(reader->rest.data, (size_t) (p - reader->rest.data));
    reader->rest = aff_slice(p, (size_t) (stop - p));
    if (cell->len > 0 && cell->data[cell->len - 1] == '\r' && (p == stop || *p == '\n')) {
        cell->len--;
    }

    if ((p < stop && *p == '"') || !text_utf8(*cell)) {
        return CSV_MALFORMED;
    }

    return cell->len > CSV_CELL_MAX ? CSV_TOO_LARGE : CSV_ROW;
}

/* True if the row goes on behind a cell; else the line's end is taken. */
static bool
csv_more(struct csv_reader *reader, enum csv_result *result)
{
    struct aff_slice *rest = &reader->rest;

    if (rest->len > 1 && rest->data[0] == '\r' && rest->data[1] == '\n') {
        *rest = aff_slice(rest->data + 1, rest->len - 1);
    }

    if (rest->len == 0) {
        return false;
    }

    if (rest->data[0] == reader->separator || rest->data[0] == '\n') {
        bool more = rest->data[0] == reader->separator;

        reader->next_line += !more;
        *rest = aff_slice(rest->data + 1, rest->len - 1);
        return more;
    }

    /* Something behind a closing quote. */
    *result = CSV_MALFORMED;
    return false;
}

static void
csv_skip_empty(struct csv_reader *reader)
{
    struct aff_slice *rest = &reader->rest;

    while (rest->len > 0 && (rest->data[0] == '\n' || rest->data[0] == '\r')) {
        reader->next_line += rest->data[0] == '\n';
        *rest = aff_slice(rest->data + 1, rest->len - 1);
    }
}

enum csv_result
csv_next(struct csv_reader *reader, struct csv_row *row)
{
    enum csv_result result = CSV_ROW;
    size_t at = 0;

    buffer_reset(&reader->scratch);
    row->count = 0;
    csv_skip_empty(reader);
    reader->line = reader->next_line;
    if (reader->rest.len == 0) {
        return CSV_END;
    }

    do {
        if (row->count == CSV_COLUMNS_MAX) {
            return CSV_TOO_LARGE;
        }

        result = csv_cell(reader, &row->cells[row->count]);
        row->count++;
    } while (result == CSV_ROW && csv_more(reader, &result));

    if (reader->scratch.failed) {
        return CSV_TOO_LARGE;
    }

    /* Only now does the scratch memory stay where it is. */
    for (unsigned i = 0; i < row->count; i++) {
        if (row->cells[i].data == NULL) {
            row->cells[i].data = reader->scratch.data + at;
            at += row->cells[i].len;
        }
    }

    return result;
}

/* "-12.50": digits, at most one dot, perhaps a sign in front. */
static bool
csv_number(struct aff_slice text)
{
    unsigned digits = 0, dots = 0;

    for (size_t i = 0; i < text.len; i++) {
        uint8_t c = text.data[i];

        if (c >= '0' && c <= '9') {
            digits++;
        } else if (c == '.') {
            dots++;
        } else if (c != '-' || i > 0) {
            return false;
        }
    }

    return digits > 0 && dots <= 1;
}

void
csv_put(struct buffer *out, struct aff_slice text)
{
    bool quote = false;
    bool formula = text.len > 0 && memchr("=+-@\t\r", text.data[0], 6) != NULL && !csv_number(text);
    size_t plain = 0;

    for (size_t i = 0; i < text.len; i++) {
        uint8_t c = text.data[i];

        quote = quote || c == '"' || c == ',' || c == ';' || c == '\t' || c == '\n' || c == '\r';
    }

    buffer_puts(out, quote ? "\"" : "");
    buffer_puts(out, formula ? "'" : "");
    for (size_t i = 0; quote && i < text.len; i++) {
        if (text.data[i] == '"') {
            buffer_put(out, text.data + plain, i + 1 - plain);
            plain = i;
        }
    }

    buffer_put(out, text.data + plain, text.len - plain);
    buffer_puts(out, quote ? "\"" : "");
}
