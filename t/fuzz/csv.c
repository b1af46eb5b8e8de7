/* Rows are the same whatever pieces they come in; and what is written of them is read as the same
 * rows. */

#include "fuzz.h"

#include "worker/api/csv.h"

#define ROOM 512

struct rows {
    uint8_t bytes[1 << 16];
    size_t used;
    unsigned long count;
    const char *problem;
    unsigned long row;
};

/* Adds the row as text that no other row gives: each cell behind its length. */
static void
add(struct rows *rows, const struct csv_reader *reader)
{
    require(reader->columns >= 1 && reader->columns <= CSV_COLUMNS_MAX);
    require(reader->row == ++rows->count);

    for (unsigned n = 0; n < reader->columns; n++) {
        struct aff_slice cell = csv_cell(reader, n);
        uint32_t len = (uint32_t) cell.len;

        require(within(cell, aff_slice(reader->bytes, reader->size)));
        require(memchr(cell.data, '\0', cell.len) == NULL);
        if (rows->used + sizeof(len) + len <= sizeof(rows->bytes)) {
            memcpy(rows->bytes + rows->used, &len, sizeof(len));
            memcpy(rows->bytes + rows->used + sizeof(len), cell.data, len);
            rows->used += sizeof(len) + len;
        }
    }
}

static void
read_rows(struct rows *rows, const uint8_t *data, size_t size, size_t piece)
{
    uint8_t room[ROOM];
    struct csv_reader reader;
    enum csv_event event = CSV_MORE;

    memset(rows, 0, sizeof(*rows));
    csv_init(&reader, room, sizeof(room));
    while (size > 0 && event != CSV_BAD) {
        struct aff_slice input = aff_slice(data, size < piece ? size : piece);

        data += input.len;
        size -= input.len;
        while ((event = csv_read(&reader, &input)) == CSV_ROW) {
            add(rows, &reader);
        }

        require(event == CSV_BAD || input.len == 0);
    }

    while (event != CSV_BAD && (event = csv_end(&reader)) == CSV_ROW) {
        add(rows, &reader);
    }

    if (event == CSV_BAD) {
        rows->problem = reader.problem;
        rows->row = reader.row;
        require(rows->problem != NULL && rows->row == rows->count + 1);
    }
}

/* A cell that is written is one cell again, with a ' in front at most. */
static void
write_cell(struct aff_slice cell)
{
    struct buffer out;
    uint8_t room[ROOM + 1];
    struct csv_reader reader;
    struct aff_slice input;
    struct aff_slice again;

    buffer_open(&out, 1 << 20, NULL);
    buffer_puts(&out, "x,");
    csv_put(&out, cell);
    buffer_puts(&out, "\r\n");
    require(buffer_whole(&out, &input));

    csv_init(&reader, room, sizeof(room));
    require(csv_read(&reader, &input) == CSV_ROW && reader.columns == 2);
    again = csv_cell(&reader, 1);
    if (again.len == cell.len + 1) {
        require(again.data[0] == '\'');
        again = aff_slice(again.data + 1, again.len - 1);
    } else {
        require(cell.len == 0 || memchr("=@", cell.data[0], 2) == NULL);
    }

    require(aff_slice_equal(again, cell));
    buffer_close(&out);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct rows whole;
    static struct rows pieces;
    size_t at = 0;

    read_rows(&whole, data, size, SIZE_MAX);
    for (size_t piece = 1; piece <= 7; piece += 2) {
        read_rows(&pieces, data, size, piece);
        require(pieces.count == whole.count && pieces.row == whole.row);
        require(pieces.problem == whole.problem && pieces.used == whole.used);
        require(memcmp(pieces.bytes, whole.bytes, whole.used) == 0);
    }

    while (at < whole.used) {
        uint32_t len;

        memcpy(&len, whole.bytes + at, sizeof(len));
        write_cell(aff_slice(whole.bytes + at + sizeof(len), len));
        at += sizeof(len) + len;
    }

    return 0;
}
