#include "worker/redis.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define MS_MAX (1LL << 48) /* what is later is no time */

/* Of all arrays of one reply. The largest that we ask for are pages of streams, groups, consumers.
 */
#define REDIS_ELEMENTS_MAX 65536

#if HIREDIS_MAJOR >= 1
typedef size_t redis_elements;
#else
typedef int redis_elements;
#endif

static redisReplyObjectFunctions redis_objects; /* those of hiredis, with our redis_array() */
static void *(*redis_create_array)(const redisReadTask *task, redis_elements elements);
static pthread_once_t redis_once = PTHREAD_ONCE_INIT;

static struct timeval
redis_timeval(int64_t ms)
{
    return (struct timeval){.tv_sec = ms / 1000, .tv_usec = (ms % 1000) * 1000};
}

void
redis_close(struct redis *redis)
{
    if (redis->context != NULL) {
        redisFree(redis->context);
        redis->context = NULL;
    }

    redis->pending = 0;
}

/* hiredis takes the memory for an array when it has read how many elements it claims to have. */
static void *
redis_array(const redisReadTask *task, redis_elements elements)
{
    struct redis *redis = task->privdata;

    if (task->parent == NULL) {
        redis->elements = 0;
    }

    if ((size_t) elements > REDIS_ELEMENTS_MAX - redis->elements) {
        return NULL;
    }

    redis->elements += (size_t) elements;
    return redis_create_array(task, elements);
}

static void
redis_make_objects(void)
{
    redisReader *reader = redisReaderCreate();

    if (reader != NULL) {
        redis_objects = *reader->fn;
        redis_create_array = redis_objects.createArray;
        redis_objects.createArray = redis_array;
        redisReaderFree(reader);
    }
}

/* Bounds what a reply may claim. False without memory. */
static bool
redis_guard(struct redis *redis)
{
    pthread_once(&redis_once, redis_make_objects);
    if (redis_create_array == NULL) {
        snprintf(redis->error, sizeof(redis->error), "out of memory");
        return false;
    }

    redis->context->reader->fn = &redis_objects;
    redis->context->reader->privdata = redis;
    return true;
}

/* Notes why the connection is of no more use, and closes it. */
static void
redis_lost(struct redis *redis)
{
    const char *reason = redis->context == NULL ? "not connected" : redis->context->errstr;

    /* A receive time-out shows as EAGAIN. */
    if (redis->context != NULL && redis->context->err == REDIS_ERR_IO &&
        (errno == EAGAIN || errno == EWOULDBLOCK)) {
        reason = "no answer in time";
    }

    log_flatten(redis->error, sizeof(redis->error), reason);
    redis_close(redis);
}

static bool
redis_succeeds(redisReply *reply)
{
    bool ok = reply != NULL;

    if (ok) {
        freeReplyObject(reply);
    }

    return ok;
}

static bool
redis_is_master(struct redis *redis)
{
    redisReply *reply = redis_command(redis, "ROLE");
    bool ok;

    if (reply == NULL) {
        return false;
    }

    ok = reply->type == REDIS_REPLY_ARRAY && reply->elements > 0 &&
         reply->element[0]->type == REDIS_REPLY_STRING &&
         strcmp(reply->element[0]->str, "master") == 0;
    if (!ok) {
        snprintf(redis->error, sizeof(redis->error), "it is a replica");
    }

    freeReplyObject(reply);
    return ok;
}

static bool
redis_login(struct redis *redis, const struct config *config)
{
    redisReply *reply;

    if (config->redis.password[0] != '\0') {
        reply = config->redis.user[0] != '\0'
                    ? redis_command(redis, "AUTH %s %s", config->redis.user, config->redis.password)
                    : redis_command(redis, "AUTH %s", config->redis.password);
        if (!redis_succeeds(reply)) {
            return false;
        }
    }

    if (config->redis.db != 0 &&
        !redis_succeeds(redis_command(redis, "SELECT %lld", (long long) config->redis.db))) {
        return false;
    }

    return redis_is_master(redis);
}

static redisContext *
redis_open(const char *address, struct timeval timeout)
{
    char host[256];
    const char *colon;
    size_t len;

    if (strncmp(address, "unix:", 5) == 0) {
        return redisConnectUnixWithTimeout(address + 5, timeout);
    }

    colon = strrchr(address, ':');
    len = (size_t) (colon - address);
    if (len >= 2 && address[0] == '[' && address[len - 1] == ']') {
        address++;
        len -= 2;
    }

    snprintf(host, sizeof(host), "%.*s", (int) len, address);
    return redisConnectWithTimeout(host, atoi(colon + 1), timeout);
}

bool
redis_connect(struct redis *redis, const struct config *config)
{
    char reasons[CONFIG_ERROR_MAX];
    size_t len = 0;

    redis_close(redis);

    for (unsigned i = 0; i < config->redis.address.count; i++) {
        const char *address = config->redis.address.items[i];

        redis->context = redis_open(address, redis_timeval(config->redis.connect_timeout));
        if (redis->context == NULL) {
            snprintf(redis->error, sizeof(redis->error), "out of memory");
        } else if (redis->context->err != 0 ||
                   redisSetTimeout(redis->context, redis_timeval(config->redis.timeout)) !=
                       REDIS_OK) {
            redis_lost(redis);
        } else {
            if (strncmp(address, "unix:", 5) != 0) {
                redisEnableKeepAlive(redis->context);
            }

            /* Batches are large and come one after the other: keep the reader's buffer. */
            redis->context->reader->maxbuf = 0;
            if (redis_guard(redis) && redis_login(redis, config)) {
                return true;
            }
        }

        redis_close(redis);
        if (len < sizeof(reasons)) {
            len += (size_t) snprintf(reasons + len, sizeof(reasons) - len, "%s%s: %s",
                len == 0 ? "" : "; ", address, redis->error);
        }
    }

    snprintf(redis->error, sizeof(redis->error), "%s", reasons);
    return false;
}

/* Turns an error reply into NULL and `error`. */
static redisReply *
redis_judge(struct redis *redis, redisReply *reply)
{
    if (reply == NULL) {
        redis_lost(redis);
        return NULL;
    }

    if (reply->type == REDIS_REPLY_ERROR) {
        log_flatten(redis->error, sizeof(redis->error), reply->str);
        freeReplyObject(reply);
        return NULL;
    }

    return reply;
}

/*
 * The next reply, as redisGetReply() gives it, but no longer than REDIS_REPLY_MAX: a server, or
 * what is in its place, could send a string without end. NULL with the connection closed on an
 * error.
 */
static redisReply *
redis_receive(struct redis *redis)
{
    redisContext *context = redis->context;
    size_t received = 0;
    void *reply = NULL;
    int written = 0;
    bool ok = context != NULL && redisGetReplyFromReader(context, &reply) == REDIS_OK;

    while (ok && reply == NULL && !written) {
        ok = redisBufferWrite(context, &written) == REDIS_OK;
    }

    while (ok && reply == NULL) {
        size_t held = context->reader->len;

        ok = redisBufferRead(context) == REDIS_OK;
        received += context->reader->len - held;
        if (received > REDIS_REPLY_MAX) {
            snprintf(redis->error, sizeof(redis->error), "a reply of more than %lu bytes",
                REDIS_REPLY_MAX);
            redis_close(redis);
            return NULL;
        }

        ok = ok && redisGetReplyFromReader(context, &reply) == REDIS_OK;
    }

    return redis_judge(redis, ok ? reply : NULL);
}

redisReply *
redis_command(struct redis *redis, const char *format, ...)
{
    va_list args;
    int result = REDIS_ERR;

    if (redis->context != NULL) {
        va_start(args, format);
        result = redisvAppendCommand(redis->context, format, args);
        va_end(args);
    }

    return result == REDIS_OK ? redis_receive(redis) : redis_judge(redis, NULL);
}

redisReply *
redis_command_argv(struct redis *redis, int argc, const char **argv, const size_t *lengths)
{
    if (redis->context == NULL ||
        redisAppendCommandArgv(redis->context, argc, argv, lengths) != REDIS_OK) {
        return redis_judge(redis, NULL);
    }

    return redis_receive(redis);
}

bool
redis_append(struct redis *redis, const char *format, ...)
{
    va_list args;
    int result = REDIS_ERR;

    if (redis->context != NULL) {
        va_start(args, format);
        result = redisvAppendCommand(redis->context, format, args);
        va_end(args);
    }

    if (result != REDIS_OK) {
        redis_lost(redis);
        return false;
    }

    redis->pending++;
    return true;
}

bool
redis_append_argv(struct redis *redis, int argc, const char **argv, const size_t *lengths)
{
    if (redis->context == NULL ||
        redisAppendCommandArgv(redis->context, argc, argv, lengths) != REDIS_OK) {
        redis_lost(redis);
        return false;
    }

    redis->pending++;
    return true;
}

bool
redis_collect(struct redis *redis)
{
    bool ok = true;

    while (redis->pending > 0) {
        redisReply *reply = redis_receive(redis);

        if (redis->context == NULL) {
            return false;
        }

        redis->pending--;
        ok = redis_succeeds(reply) && ok;
    }

    return ok;
}

bool
redis_info(struct redis *redis, const char *section, const char *field, char *value, size_t size)
{
    redisReply *reply = redis_command(redis, "INFO %s", section);
    size_t len = strlen(field);
    const char *line;

    if (reply == NULL) {
        return false;
    }

    line = reply->type == REDIS_REPLY_STRING ? reply->str : NULL;

    while (line != NULL && (strncmp(line, field, len) != 0 || line[len] != ':')) {
        line = strchr(line, '\n');
        line = line == NULL ? NULL : line + 1;
    }

    if (line == NULL) {
        snprintf(redis->error, sizeof(redis->error), "INFO %s tells no %s", section, field);
    } else {
        line += len + 1;
        snprintf(value, size, "%.*s", (int) strcspn(line, "\r\n"), line);
    }

    freeReplyObject(reply);
    return line != NULL;
}

bool
redis_run_id(struct redis *redis, char *run_id)
{
    return redis_info(redis, "server", "run_id", run_id, REDIS_RUN_ID_MAX);
}

int64_t
redis_time_ms(struct redis *redis)
{
    redisReply *reply = redis_command(redis, "TIME");
    int64_t now = -1;

    if (reply == NULL) {
        return -1;
    }

    if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
        reply->element[0]->type == REDIS_REPLY_STRING &&
        reply->element[1]->type == REDIS_REPLY_STRING) {
        long long seconds = strtoll(reply->element[0]->str, NULL, 10);
        long long rest = strtoll(reply->element[1]->str, NULL, 10);

        if (seconds >= 0 && seconds < MS_MAX / 1000 && rest >= 0 && rest < 1000000) {
            now = seconds * 1000 + rest / 1000;
        }
    }

    if (now < 0) {
        snprintf(redis->error, sizeof(redis->error), "TIME tells no time");
    }

    freeReplyObject(reply);
    return now;
}

bool
redis_is_id(const redisReply *reply)
{
    size_t ms, sequence;

    if (reply->type != REDIS_REPLY_STRING) {
        return false;
    }

    ms = strspn(reply->str, "0123456789");
    sequence = reply->str[ms] == '-' ? strspn(reply->str + ms + 1, "0123456789") : 0;
    return ms > 0 && sequence > 0 && ms + 1 + sequence == (size_t) reply->len &&
           ms + 1 + sequence < REDIS_ID_MAX;
}

int64_t
redis_id_ms(const char *id)
{
    unsigned long long ms = strtoull(id, NULL, 10);

    return ms < MS_MAX ? (int64_t) ms : MS_MAX;
}

int
redis_id_compare(const char *a, const char *b)
{
    char *rest_a, *rest_b;
    unsigned long long x = strtoull(a, &rest_a, 10), y = strtoull(b, &rest_b, 10);

    if (x == y) {
        x = *rest_a == '-' ? strtoull(rest_a + 1, NULL, 10) : 0;
        y = *rest_b == '-' ? strtoull(rest_b + 1, NULL, 10) : 0;
    }

    return x < y ? -1 : x > y;
}
