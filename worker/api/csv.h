/*
 * CSV (RFC 4180), read piece by piece and written cell by cell. The reader's memory is the
 * caller's.
 *
 * Taken beyond the RFC, because spreadsheets make them: a byte order mark, lines that end in LF or
 * CR alone, the separators ; and TAB (the first of the three that the header has outside quotes), a
 * quote inside a cell that does not begin with one, empty lines (they are skipped). Not taken: what
 * could be read in two ways.
 */

#ifndef AFFILIATED_API_CSV_H
#define AFFILIATED_API_CSV_H

#include "worker/api/buffer.h"

#define CSV_COLUMNS_MAX 128
#define CSV_CELL_MAX    65536
#define CSV_ROW_MAX     (1024 * 1024UL) /* what a reader should be given for its rows */

enum csv_event {
    CSV_MORE, /* the input is used up; from csv_end(): there is no further row */
    CSV_ROW,  /* a row is in the reader until the next call */
    CSV_BAD,  /* `problem` says why; nothing can be read any more */
};

enum csv_state {
    CSV_AT_ROW,
    CSV_AT_CELL,
    CSV_IN_CELL,
    CSV_IN_QUOTES,
    CSV_AFTER_QUOTE,
    CSV_FAILED,
};

struct csv_reader {
    uint8_t *bytes; /* the row's cells, one behind the other */
    size_t size;
    size_t used;
    uint32_t ends[CSV_COLUMNS_MAX]; /* where each cell ends in `bytes` */
    unsigned columns;
    unsigned long row;   /* of this row, the header is 1; where it is bad: of the bad one */
    const char *problem; /* a rule, as in "row 7 must …" */
    enum csv_state state;
    uint8_t separator; /* 0 until the header has shown it */
    uint8_t bom;       /* bytes of the mark that were met; 4: past the beginning */
    bool skip_lf;      /* behind a CR */
    bool fresh;        /* the row was given out: the next begins anew */
};

/* `bytes` has room for the longest row, without its separators and quotes. */
void csv_init(struct csv_reader *reader, uint8_t *bytes, size_t size);

/* Goes on through `*input`, which then begins behind what was read. */
enum csv_event csv_read(struct csv_reader *reader, struct aff_slice *input);

/* At the end of the input: the last row, if it had no line end; to be called until CSV_MORE. */
enum csv_event csv_end(struct csv_reader *reader);

/* Cell `n` of the row, from 0: valid UTF-8 without NUL, as is every one of them. */
static inline struct aff_slice
csv_cell(const struct csv_reader *reader, unsigned n)
{
    uint32_t begin = n == 0 ? 0 : reader->ends[n - 1];

    return aff_slice(reader->bytes + begin, reader->ends[n] - begin);
}

/*
 * Writes a cell. What a spreadsheet would take for a formula gets a ' in front; numbers are left as
 * they are, also negative ones.
 */
void csv_put(struct buffer *out, struct aff_slice text);

#endif
