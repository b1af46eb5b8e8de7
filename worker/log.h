/*
 * One writer to standard error, plain or JSON, one line an event, whole lines only. What is logged
 * is a change of state, never a request; never a secret.
 */

#ifndef AFFILIATED_LOG_H
#define AFFILIATED_LOG_H

#include <stdbool.h>
#include <stddef.h>

enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARNING,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
};

enum log_format {
    LOG_FORMAT_PLAIN,
    LOG_FORMAT_JSON,
};

#define LOG_LINE_MAX 2048 /* bytes of a message; longer is cut */

/* Both may be called at any time, from any thread. */
void log_configure(enum log_format format, enum log_level level);

/* Names the calling thread in its lines ("clicks"); `tag` is static text or outlives the thread. */
void log_tag(const char *tag);

bool log_enabled(enum log_level level);

void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...)   log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...)    log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)                                                                             \
    do {                                                                                           \
        if (log_enabled(LOG_LEVEL_DEBUG)) {                                                        \
            log_write(LOG_LEVEL_DEBUG, __VA_ARGS__);                                               \
        }                                                                                          \
    } while (0)

/* Copies libpq's or hiredis's message without its line ends. `to` is NUL-terminated. */
void log_flatten(char *to, size_t size, const char *message);

#endif
