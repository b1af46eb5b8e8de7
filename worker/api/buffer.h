/*
 * Bytes that grow: in memory while they are few, in a nameless temporary file when they are many. A
 * body of any permitted size so costs a bounded piece of memory.
 */

#ifndef AFFILIATED_API_BUFFER_H
#define AFFILIATED_API_BUFFER_H

#include "protocol/slice.h"

#define BUFFER_MEMORY_MAX (1024 * 1024UL)

struct buffer {
    uint8_t *data; /* in memory, or what was not written to the file yet */
    size_t len, size;
    const char *directory; /* of the file; NULL: it may not leave memory */
    size_t max;            /* of everything */
    size_t written;        /* bytes in the file */
    int fd;                /* -1: none */
    void *map;
    bool failed; /* no memory, no room, or more than `max`: nothing more is taken */
};

void buffer_open(struct buffer *buffer, size_t max, const char *directory);
void buffer_close(struct buffer *buffer);

/* Forgets what is in it, to be filled again. */
void buffer_reset(struct buffer *buffer);

void buffer_put(struct buffer *buffer, const void *data, size_t len);
void buffer_puts(struct buffer *buffer, const char *text);
void buffer_printf(struct buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* As a JSON string, with its quotes. `text` is valid UTF-8. */
void buffer_json(struct buffer *buffer, struct aff_slice text);

static inline size_t
buffer_total(const struct buffer *buffer)
{
    return buffer->written + buffer->len;
}

/* All of it, in one piece; it stays the buffer's, and is not added to any more. False when the file
 * does not work. */
bool buffer_whole(struct buffer *buffer, struct aff_slice *whole);

#endif
