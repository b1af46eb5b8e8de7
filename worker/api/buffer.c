#include "worker/api/buffer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUFFER_FIRST 4096
#define BUFFER_LINE  1024

void
buffer_open(struct buffer *buffer, size_t max, const char *directory)
{
    *buffer = (struct buffer){.max = max, .directory = directory, .fd = -1};
}

static void
buffer_drop_file(struct buffer *buffer)
{
    if (buffer->map != NULL) {
        munmap(buffer->map, buffer->written);
        buffer->map = NULL;
    }

    if (buffer->fd >= 0) {
        close(buffer->fd);
        buffer->fd = -1;
    }

    buffer->written = 0;
}

void
buffer_close(struct buffer *buffer)
{
    buffer_drop_file(buffer);

    /* It may have held a password or a secret. */
    if (buffer->data != NULL) {
        explicit_bzero(buffer->data, buffer->size);
        free(buffer->data);
    }

    buffer->data = NULL;
    buffer->len = buffer->size = 0;
}

void
buffer_reset(struct buffer *buffer)
{
    buffer_drop_file(buffer);
    buffer->len = 0;
    buffer->failed = false;
}

static bool
buffer_write(struct buffer *buffer)
{
    size_t done = 0;
    ssize_t n;

    if (buffer->fd < 0) {
        buffer->fd = open(buffer->directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (buffer->fd < 0) {
            return false;
        }
    }

    while (done < buffer->len) {
        n = write(buffer->fd, buffer->data + done, buffer->len - done);
        if (n < 0 && errno != EINTR) {
            return false;
        }

        done += n < 0 ? 0 : (size_t) n;
    }

    buffer->written += buffer->len;
    buffer->len = 0;
    return true;
}

/* Room for `n` more bytes in memory, at most BUFFER_MEMORY_MAX or what `n` itself needs. */
static bool
buffer_reserve(struct buffer *buffer, size_t n)
{
    size_t size = buffer->size == 0 ? BUFFER_FIRST : buffer->size;
    uint8_t *data;

    if (n > buffer->max || buffer_total(buffer) > buffer->max - n) {
        return false;
    }

    if (buffer->directory != NULL && buffer->len > 0 && buffer->len + n > BUFFER_MEMORY_MAX &&
        !buffer_write(buffer)) {
        return false;
    }

    while (size < buffer->len + n) {
        size *= 2;
    }

    if (size != buffer->size) {
        data = realloc(buffer->data, size);
        if (data == NULL) {
            return false;
        }

        buffer->data = data;
        buffer->size = size;
    }

    return true;
}

void
buffer_put(struct buffer *buffer, const void *data, size_t len)
{
    if (buffer->failed || len == 0) {
        return;
    }

    if (!buffer_reserve(buffer, len)) {
        buffer->failed = true;
        return;
    }

    memcpy(buffer->data + buffer->len, data, len);
    buffer->len += len;
}

void
buffer_puts(struct buffer *buffer, const char *text)
{
    buffer_put(buffer, text, strlen(text));
}

void
buffer_printf(struct buffer *buffer, const char *format, ...)
{
    char line[BUFFER_LINE];
    va_list args;
    int len;

    va_start(args, format);
    len = vsnprintf(line, sizeof(line), format, args);
    va_end(args);

    if (len < 0 || (size_t) len >= sizeof(line)) {
        buffer->failed = true;
        return;
    }

    buffer_put(buffer, line, (size_t) len);
}

void
buffer_json(struct buffer *buffer, struct aff_slice text)
{
    size_t plain = 0;

    buffer_puts(buffer, "\"");
    for (size_t i = 0; i < text.len; i++) {
        uint8_t c = text.data[i];

        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f) {
            continue;
        }

        buffer_put(buffer, text.data + plain, i - plain);
        plain = i + 1;
        if (c == '"' || c == '\\') {
            buffer_printf(buffer, "\\%c", c);
        } else {
            buffer_printf(buffer, "\\u%04x", c);
        }
    }

    buffer_put(buffer, text.data + plain, text.len - plain);
    buffer_puts(buffer, "\"");
}

bool
buffer_whole(struct buffer *buffer, struct aff_slice *whole)
{
    if (buffer->failed) {
        return false;
    }

    if (buffer->fd < 0) {
        *whole = aff_slice(buffer->len == 0 ? (const uint8_t *) "" : buffer->data, buffer->len);
        return true;
    }

    if (buffer->map == NULL) {
        if (!buffer_write(buffer)) {
            return false;
        }

        buffer->map = mmap(NULL, buffer->written, PROT_READ, MAP_PRIVATE, buffer->fd, 0);
        if (buffer->map == MAP_FAILED) {
            buffer->map = NULL;
            return false;
        }
    }

    *whole = aff_slice(buffer->map, buffer->written);
    return true;
}
