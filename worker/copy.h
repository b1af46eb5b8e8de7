/*
 * Rows in COPY's binary format ("COPY", File Formats, in PostgreSQL's manual), and their way to the
 * server.
 *
 * Each copy_put_*() writes one field, its length first, at `p` and returns the place behind it.
 * None checks for room: copy_room() makes it once a row.
 */

#ifndef AFFILIATED_COPY_H
#define AFFILIATED_COPY_H

#include "worker/pg.h"

#include <endian.h>

#define COPY_CHUNK          (64 * 1024UL) /* handed to libpq at a time */
#define COPY_OID_BOOL       16
#define COPY_OID_INT8       20
#define COPY_OID_INT4       23
#define COPY_OID_TEXT       25
#define COPY_OID_BOOL_ARRAY 1000
#define COPY_OID_INT4_ARRAY 1007
#define COPY_OID_TEXT_ARRAY 1009
#define COPY_OID_INT8_ARRAY 1016

/* Rows for one relation; memory is kept from use to use. */
struct copy_buffer {
    uint8_t *data;
    size_t len;
    size_t size;
};

/* Room for `bytes` more, or NULL if memory is exhausted. The caller adds to `len` what it wrote. */
uint8_t *copy_room(struct copy_buffer *buffer, size_t bytes);
void copy_free(struct copy_buffer *buffer);

/* Starts `sql`, a COPY … FROM STDIN BINARY. */
bool copy_begin(PGconn *conn, const char *sql, struct pg_error *error);
/* Sends and empties the buffer. */
bool copy_send(PGconn *conn, struct copy_buffer *buffer, struct pg_error *error);
/* Ends the COPY and waits for its outcome. */
bool copy_end(PGconn *conn, struct pg_error *error);

/* True if PostgreSQL takes `text` as it is: valid UTF-8 without NUL. */
bool copy_text_valid(struct aff_slice text);
/* The text's bytes, each that PostgreSQL would not take replaced by U+FFFD: at most three times as
 * many. */
uint8_t *copy_put_sanitized(uint8_t *p, struct aff_slice text);

static inline uint8_t *
copy_raw16(uint8_t *p, uint16_t value)
{
    value = htobe16(value);
    memcpy(p, &value, sizeof(value));
    return p + sizeof(value);
}

static inline uint8_t *
copy_raw32(uint8_t *p, uint32_t value)
{
    value = htobe32(value);
    memcpy(p, &value, sizeof(value));
    return p + sizeof(value);
}

static inline uint8_t *
copy_raw64(uint8_t *p, uint64_t value)
{
    value = htobe64(value);
    memcpy(p, &value, sizeof(value));
    return p + sizeof(value);
}

static inline uint8_t *
copy_put_null(uint8_t *p)
{
    return copy_raw32(p, UINT32_MAX);
}

static inline uint8_t *
copy_put_bytes(uint8_t *p, const void *data, size_t len)
{
    p = copy_raw32(p, (uint32_t) len);
    memcpy(p, data, len);
    return p + len;
}

static inline uint8_t *
copy_put_bool(uint8_t *p, bool value)
{
    p = copy_raw32(p, 1);
    *p = value;
    return p + 1;
}

static inline uint8_t *
copy_put_int2(uint8_t *p, uint16_t value)
{
    return copy_raw16(copy_raw32(p, 2), value);
}

static inline uint8_t *
copy_put_int4(uint8_t *p, uint32_t value)
{
    return copy_raw32(copy_raw32(p, 4), value);
}

static inline uint8_t *
copy_put_int8(uint8_t *p, uint64_t value)
{
    return copy_raw64(copy_raw32(p, 8), value);
}

/* An empty text is NULL. */
static inline uint8_t *
copy_put_optional(uint8_t *p, struct aff_slice text)
{
    return text.len == 0 ? copy_put_null(p) : copy_put_sanitized(p, text);
}

/* Opens a one-dimensional array of `count` elements (fields, each with its length, follow). Ended
 * by copy_array_end().
 */
static inline uint8_t *
copy_array_begin(uint8_t *p, uint32_t element_oid, uint32_t count, bool has_nulls)
{
    p = copy_raw32(p + 4, 1);
    p = copy_raw32(p, has_nulls);
    p = copy_raw32(p, element_oid);
    p = copy_raw32(p, count);
    return copy_raw32(p, 1);
}

static inline void
copy_array_end(uint8_t *begin, const uint8_t *end)
{
    copy_raw32(begin, (uint32_t) (end - begin) - 4);
}

#endif
