/*
 * Comma-separated values (RFC 4180), in and out. In: a header line first; commas, semicolons or
 * tabs between, whichever the header has most of; LF or CRLF; quotes where a cell needs them. Out:
 * commas, CRLF.
 */

#ifndef AFFILIATED_API_CSV_H
#define AFFILIATED_API_CSV_H

#include "worker/api/buffer.h"

#define CSV_COLUMNS_MAX 128
#define CSV_CELL_MAX    65536

struct csv_reader {
    struct aff_slice rest;
    uint8_t separator;
    uint64_t line; /* of the text, where the last row began, from 1 */
    uint64_t next_line;
    struct buffer scratch; /* cells that had doubled quotes */
};

struct csv_row {
    struct aff_slice cells[CSV_COLUMNS_MAX]; /* valid until the next row */
    unsigned count;
};

enum csv_result {
    CSV_ROW,
    CSV_END,
    CSV_MALFORMED, /* a quote that does not end, or stands within a cell; NUL; no UTF-8 */
    CSV_TOO_LARGE, /* a cell, or the number of columns */
};

/* `text` outlives the reader. A byte order mark in front is passed over. */
void csv_open(struct csv_reader *reader, struct aff_slice text);
void csv_close(struct csv_reader *reader);

/* The next row; lines without a character are passed over. */
enum csv_result csv_next(struct csv_reader *reader, struct csv_row *row);

/* Writes a cell. A text that a spreadsheet would take for a formula gets an apostrophe in front; a
 * number stays one. */
void csv_put(struct buffer *out, struct aff_slice text);

#endif
