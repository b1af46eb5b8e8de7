/* Lines are put together on the stack and leave by one write(), so that threads never mix them. */

#include "worker/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int log_current_format = LOG_FORMAT_PLAIN;
static atomic_int log_current_level = LOG_LEVEL_INFO;
static _Thread_local const char *log_current_tag = "main";

static const char *const log_level_names[] = {"error", "warning", "info", "debug"};

void
log_configure(enum log_format format, enum log_level level)
{
    atomic_store(&log_current_format, format);
    atomic_store(&log_current_level, level);
}

void
log_tag(const char *tag)
{
    log_current_tag = tag;
}

bool
log_enabled(enum log_level level)
{
    return (int) level <= atomic_load_explicit(&log_current_level, memory_order_relaxed);
}

void
log_flatten(char *to, size_t size, const char *message)
{
    size_t len = 0;
    bool space = false;

    for (; *message != '\0' && len + 2 < size; message++) {
        if (*message == '\n' || *message == '\r' || *message == '\t' || *message == ' ') {
            space = len > 0;
            continue;
        }

        if (space) {
            to[len++] = ' ';
            space = false;
        }

        to[len++] = *message;
    }

    to[len] = '\0';
}

/* Appends `text` as the inside of a JSON string. Room for six bytes is always left. */
static size_t
log_json_escape(char *out, size_t room, const char *text)
{
    size_t len = 0;

    for (; *text != '\0' && len + 7 < room; text++) {
        unsigned char c = (unsigned char) *text;

        if (c == '"' || c == '\\') {
            out[len++] = '\\';
            out[len++] = (char) c;
        } else if (c < 0x20) {
            len += (size_t) snprintf(out + len, 7, "\\u%04x", c);
        } else {
            out[len++] = (char) c;
        }
    }

    return len;
}

void
log_write(enum log_level level, const char *format, ...)
{
    char message[LOG_LINE_MAX];
    char line[LOG_LINE_MAX * 2 + 256];
    char when[64];
    size_t len;
    struct timespec now;
    struct tm tm;
    va_list args;

    if (!log_enabled(level)) {
        return;
    }

    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    len = strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(when + len, sizeof(when) - len, ".%03ldZ", now.tv_nsec / 1000000);

    if (atomic_load_explicit(&log_current_format, memory_order_relaxed) == LOG_FORMAT_JSON) {
        len = (size_t) snprintf(line, sizeof(line),
            "{\"time\":\"%s\",\"level\":\"%s\",\"role\":\"%s\",\"message\":\"", when,
            log_level_names[level], log_current_tag);
        len += log_json_escape(line + len, sizeof(line) - len - 4, message);
        line[len++] = '"';
        line[len++] = '}';
    } else {
        for (char *p = message; *p != '\0'; p++) {
            if ((unsigned char) *p < 0x20) {
                *p = ' ';
            }
        }

        len = (size_t) snprintf(line, sizeof(line), "%s %s %s: %s", when, log_level_names[level],
            log_current_tag, message);
    }

    line[len++] = '\n';

    /* Standard error is all there is: nowhere to report that it does not work. */
    if (write(STDERR_FILENO, line, len) < 0) {
        return;
    }
}
