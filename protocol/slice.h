/*
 * Bounded byte views, and little-endian readers and writers over them.
 *
 * A reader or writer that runs out of room sets `failed` and from then on reads zeros and writes
 * nothing, so that a decoder checks once, at its end.
 */

#ifndef AFF_SLICE_H
#define AFF_SLICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* `len` bytes at `data`, owned by somebody else, not NUL-terminated. */
struct aff_slice {
    const uint8_t *data;
    size_t len;
};

struct aff_reader {
    const uint8_t *pos;
    const uint8_t *end;
    bool failed;
};

struct aff_writer {
    uint8_t *pos;
    uint8_t *end;
    bool failed;
};

static inline struct aff_slice
aff_slice(const void *data, size_t len)
{
    return (struct aff_slice){.data = data, .len = len};
}

static inline struct aff_slice
aff_slice_of(const char *text)
{
    return aff_slice(text, strlen(text));
}

static inline bool
aff_slice_equal(struct aff_slice a, struct aff_slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

static inline const uint8_t *
aff_take(struct aff_reader *r, size_t n)
{
    const uint8_t *p = r->pos;

    if (r->failed || (size_t) (r->end - p) < n) {
        r->failed = true;
        return NULL;
    }

    r->pos += n;
    return p;
}

static inline uint64_t
aff_get_uint(struct aff_reader *r, size_t n)
{
    const uint8_t *p = aff_take(r, n);
    uint64_t value = 0;

    if (p != NULL) {
        for (size_t i = 0; i < n; i++) {
            value |= (uint64_t) p[i] << (8 * i);
        }
    }

    return value;
}

#define aff_get_u8(r)  ((uint8_t) aff_get_uint((r), 1))
#define aff_get_u16(r) ((uint16_t) aff_get_uint((r), 2))
#define aff_get_u32(r) ((uint32_t) aff_get_uint((r), 4))
#define aff_get_u64(r) aff_get_uint((r), 8)

/* Reads exactly `n` bytes into `out`. */
static inline void
aff_get_bytes(struct aff_reader *r, void *out, size_t n)
{
    const uint8_t *p = aff_take(r, n);

    if (p != NULL) {
        memcpy(out, p, n);
    } else {
        memset(out, 0, n);
    }
}

/* Reads a slice written by aff_put_slice(); longer than `max` bytes is a failure. The slice points
 * into the input. */
static inline struct aff_slice
aff_get_slice(struct aff_reader *r, size_t max)
{
    size_t len = aff_get_u16(r);
    const uint8_t *p;

    if (len > max) {
        r->failed = true;
        len = 0;
    }

    p = aff_take(r, len);
    return aff_slice(p, p == NULL ? 0 : len);
}

/* True if `n` more bytes fit; otherwise the writer has failed. */
static inline bool
aff_fits(struct aff_writer *w, size_t n)
{
    if (w->failed || (size_t) (w->end - w->pos) < n) {
        w->failed = true;
    }

    return !w->failed;
}

/* Where `n` bytes are to be written, or NULL. */
static inline uint8_t *
aff_room(struct aff_writer *w, size_t n)
{
    uint8_t *p = w->pos;

    if (!aff_fits(w, n)) {
        return NULL;
    }

    w->pos += n;
    return p;
}

static inline void
aff_put_uint(struct aff_writer *w, uint64_t value, size_t n)
{
    if (aff_fits(w, n)) {
        for (size_t i = 0; i < n; i++) {
            w->pos[i] = (uint8_t) (value >> (8 * i));
        }

        w->pos += n;
    }
}

#define aff_put_u8(w, v)  aff_put_uint((w), (v), 1)
#define aff_put_u16(w, v) aff_put_uint((w), (v), 2)
#define aff_put_u32(w, v) aff_put_uint((w), (v), 4)
#define aff_put_u64(w, v) aff_put_uint((w), (v), 8)

static inline void
aff_put_bytes(struct aff_writer *w, const void *data, size_t n)
{
    uint8_t *p = aff_room(w, n);

    if (p != NULL && n != 0) {
        memcpy(p, data, n);
    }
}

/* Writes a u16 length and the bytes; over 65535 bytes is a failure. */
static inline void
aff_put_slice(struct aff_writer *w, struct aff_slice s)
{
    if (s.len > UINT16_MAX) {
        w->failed = true;
        return;
    }

    aff_put_u16(w, s.len);
    aff_put_bytes(w, s.data, s.len);
}

#endif
