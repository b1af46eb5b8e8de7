#include "worker/copy.h"

#include <stdlib.h>

static const uint8_t copy_header[] =
    "PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0"; /* signature, flags 0, no extension */
#define COPY_HEADER_BYTES 19

static const uint8_t copy_trailer[] = {0xff, 0xff};

_Static_assert(
    sizeof(copy_header) == COPY_HEADER_BYTES, "signature (11), flags (4), extension length (4)");

uint8_t *
copy_room(struct copy_buffer *buffer, size_t bytes)
{
    if (buffer->size - buffer->len < bytes) {
        size_t size = buffer->size == 0 ? COPY_CHUNK : buffer->size;
        uint8_t *data;

        while (size - buffer->len < bytes) {
            size *= 2;
        }

        data = realloc(buffer->data, size);
        if (data == NULL) {
            return NULL;
        }

        buffer->data = data;
        buffer->size = size;
    }

    return buffer->data + buffer->len;
}

void
copy_free(struct copy_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct copy_buffer){0};
}

bool
copy_begin(PGconn *conn, const char *sql, struct pg_error *error)
{
    PGresult *result = PQexec(conn, sql);
    bool ok = PQresultStatus(result) == PGRES_COPY_IN;

    if (!ok) {
        pg_error_of(conn, result, error);
    }

    PQclear(result);
    if (ok && PQputCopyData(conn, (const char *) copy_header, COPY_HEADER_BYTES) != 1) {
        pg_error_of(conn, NULL, error);
        return false;
    }

    return ok;
}

bool
copy_send(PGconn *conn, struct copy_buffer *buffer, struct pg_error *error)
{
    bool ok = buffer->len == 0 ||
              PQputCopyData(conn, (const char *) buffer->data, (int) buffer->len) == 1;

    buffer->len = 0;
    if (!ok) {
        pg_error_of(conn, NULL, error);
    }

    return ok;
}

/* Takes what is left of a COPY's results; the first error counts. */
static bool
copy_finish(PGconn *conn, struct pg_error *error)
{
    PGresult *result;
    bool ok = true;

    while ((result = PQgetResult(conn)) != NULL) {
        if (PQresultStatus(result) != PGRES_COMMAND_OK && ok) {
            ok = false;
            pg_error_of(conn, result, error);
        }

        PQclear(result);
        if (PQstatus(conn) == CONNECTION_BAD) {
            break;
        }
    }

    return ok;
}

bool
copy_end(PGconn *conn, struct pg_error *error)
{
    if (PQputCopyData(conn, (const char *) copy_trailer, sizeof(copy_trailer)) != 1 ||
        PQputCopyEnd(conn, NULL) != 1) {
        pg_error_of(conn, NULL, error);
        return false;
    }

    return copy_finish(conn, error);
}

/* Length of the well-formed UTF-8 sequence at p (RFC 3629), 0 if it is none, or is NUL. */
static size_t
copy_sequence(const uint8_t *p, size_t len)
{
    uint8_t low = 0x80, high = 0xbf;
    size_t need;

    if (p[0] < 0x80) {
        return p[0] != 0;
    }

    if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        need = 2;
    } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        need = 3;
        low = p[0] == 0xe0 ? 0xa0 : low;   /* no overlong forms */
        high = p[0] == 0xed ? 0x9f : high; /* no surrogates */
    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        need = 4;
        low = p[0] == 0xf0 ? 0x90 : low;
        high = p[0] == 0xf4 ? 0x8f : high; /* up to U+10FFFF */
    } else {
        return 0;
    }

    if (len < need || p[1] < low || p[1] > high) {
        return 0;
    }

    for (size_t i = 2; i < need; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }

    return need;
}

/* Bytes at the front that are ASCII without NUL, eight at a time; a few may be left to the slow
 * way. */
static size_t
copy_plain_prefix(const uint8_t *p, size_t len)
{
    size_t i = 0;

    for (; i + 8 <= len; i += 8) {
        uint64_t word;

        memcpy(&word, p + i, sizeof(word));
        if (((word | ((word - 0x0101010101010101ULL) & ~word)) & 0x8080808080808080ULL) != 0) {
            break;
        }
    }

    return i;
}

bool
copy_text_valid(struct aff_slice text)
{
    size_t i = copy_plain_prefix(text.data, text.len);

    while (i < text.len) {
        size_t n = copy_sequence(text.data + i, text.len - i);

        if (n == 0) {
            return false;
        }

        i += n;
    }

    return true;
}

uint8_t *
copy_put_sanitized(uint8_t *p, struct aff_slice text)
{
    static const uint8_t replacement[] = {0xef, 0xbf, 0xbd}; /* U+FFFD */
    uint8_t *begin = p;
    size_t i = copy_plain_prefix(text.data, text.len);

    p += 4;
    memcpy(p, text.data, i);
    p += i;

    while (i < text.len) {
        size_t n = copy_sequence(text.data + i, text.len - i);

        if (n == 0) {
            memcpy(p, replacement, sizeof(replacement));
            p += sizeof(replacement);
            i++;
            continue;
        }

        memcpy(p, text.data + i, n);
        p += n;
        i += n;
    }

    copy_raw32(begin, (uint32_t) (p - begin) - 4);
    return p;
}
