/*
 * Redis through hiredis, blocking, one connection a role. Any error of the connection closes it:
 * what a late reply belongs to can't be known any more.
 */

#ifndef AFFILIATED_REDIS_H
#define AFFILIATED_REDIS_H

#include "worker/config.h"

#include "protocol/batch.h"

#include <hiredis.h>

#define REDIS_RUN_ID_MAX 64
#define REDIS_ID_MAX     48 /* bytes of a stream id with its end: two 64-bit numbers */

/* Entries that one command may ask for, and bytes that are read for it: one of the
 * largest batches of each stream. */
#define REDIS_ENTRIES_MAX AFF_STREAMS_MAX
#define REDIS_REPLY_MAX   ((REDIS_ENTRIES_MAX + 1UL) * AFF_BATCH_MAX)

struct redis {
    redisContext *context; /* NULL when not connected */
    unsigned pending;      /* appended commands whose replies were not read yet */
    size_t elements;       /* that arrays of the reply that is being read have claimed */
    char error[CONFIG_ERROR_MAX];
};

/* Tries each address in turn until one answers as a master. False with `error` set if none does. */
bool redis_connect(struct redis *redis, const struct config *config);
void redis_close(struct redis *redis);

/*
 * One command and its reply, which the caller frees. NULL on an error; `error` then holds what the
 * server said (the connection stays open), or why it is gone (context is NULL).
 */
redisReply *redis_command(struct redis *redis, const char *format, ...);
redisReply *redis_command_argv(
    struct redis *redis, int argc, const char **argv, const size_t *lengths);

/* A pipeline: append commands, then collect. An error reply among them makes redis_collect() false.
 */
bool redis_append(struct redis *redis, const char *format, ...);
bool redis_append_argv(struct redis *redis, int argc, const char **argv, const size_t *lengths);
bool redis_collect(struct redis *redis);

/* A field of INFO `section`; false if it can't be asked, or has none of this name. */
bool redis_info(
    struct redis *redis, const char *section, const char *field, char *value, size_t size);

/* Changes with every start of the server. `run_id` has REDIS_RUN_ID_MAX bytes. */
bool redis_run_id(struct redis *redis, char *run_id);

/* The server's clock, unix milliseconds; negative on an error. */
int64_t redis_time_ms(struct redis *redis);

/* Whether a reply is a stream id "ms-seq", below REDIS_ID_MAX bytes. */
bool redis_is_id(const redisReply *reply);
/* Milliseconds inside it; 2^48 for any later time. */
int64_t redis_id_ms(const char *id);
/* Order of two stream ids, like strcmp(). */
int redis_id_compare(const char *a, const char *b);

#endif
