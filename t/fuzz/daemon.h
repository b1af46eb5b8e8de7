/*
 * One life of the roles clicks and conversions, as they are, between a Redis that says what it is
 * given and the PostgreSQL of postgres.h. The clock goes on with every look at it.
 */

#ifndef AFF_FUZZ_DAEMON_H
#define AFF_FUZZ_DAEMON_H

#include "fuzz.h"

#include "worker/redis.h"

/* Its replies are read, but there is nothing to connect to. */
#define redis_connect redis_connect_to
#include "worker/redis.c"
#undef redis_connect

#include "worker/clicks.c"
#include "worker/conversions.c"
#include "worker/stream.c"

#include "postgres.h"

#include <fcntl.h>
#include <signal.h>

#define DAEMON_DAY   20415 /* of the samples' clicks, and of the clock */
#define DAEMON_TURNS 32

static struct {
    struct aff_slice replies;
    int64_t now_ms;
    unsigned turns;
    bool login;
} daemon_world;

int64_t
clock_monotonic_ms(void)
{
    return daemon_world.now_ms += 7;
}

int64_t
clock_unix_ms(void)
{
    return DAEMON_DAY * (int64_t) DAY_MS + clock_monotonic_ms();
}

bool
role_should_end(struct role *role)
{
    (void) role;
    return ++daemon_world.turns > DAEMON_TURNS;
}

void
role_up(struct role *role)
{
    (void) role;
}

void
role_wait(struct role *role, int64_t ms, int fd)
{
    (void) role;
    (void) ms;
    (void) fd;
}

bool
role_failed(struct role *role, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    (void) vsnprintf(role->reason, sizeof(role->reason), format, args);
    va_end(args);
    return false;
}

bool
role_failed_pg(struct role *role, const char *doing, const struct pg_error *error)
{
    return role_failed(role, "%s: %s %s", doing, error->message, error->sqlstate);
}

bool
role_failed_redis(struct role *role, const char *doing, const struct redis *redis)
{
    return role_failed(role, "%s: %s", doing, redis->error);
}

bool
config_read_keys(const struct config *config, struct aff_keyring *ring, char *error)
{
    (void) config;
    (void) error;
    *ring = *fuzz_ring();
    return true;
}

/* What it is told goes nowhere, and behind the replies is its end. */
bool
redis_connect(struct redis *redis, const struct config *config)
{
    redis->context = redisConnectFd(open("/dev/null", O_RDWR | O_CLOEXEC));
    require(redis->context != NULL);
    require(redisReaderFeed(redis->context->reader, (const char *) daemon_world.replies.data,
                daemon_world.replies.len) == REDIS_OK);
    if (daemon_world.login && !redis_login(redis, config)) {
        redis_close(redis);
        return false;
    }

    return true;
}

struct daemon_life {
    bool conversions;
    bool login;
    unsigned lane;
    unsigned streams;
    unsigned fail_at; /* statement of PostgreSQL, and how: see postgres.h */
    bool fail_again;
    const char *sqlstate;
};

static bool
daemon_live(const struct daemon_life *life, struct aff_slice replies)
{
    static struct role role;
    struct config config = {
        .run = {.consumer = (char *) "fuzz", .replay_window = 3600000, .claim_idle = 300000},
        .redis = {.user = (char *) "", .password = (char *) "", .streams = life->streams},
        .postgres = {.conninfo = (char *) "", .password = (char *) ""},
        .clicks = {.batch_bytes = 65536, .batch_delay = 20},
        .conversions = {.batch_bytes = 65536, .batch_delay = 20, .resolve_batch = 10},
        .partitions = {.ahead = 10},
    };
    const struct role_kind *kind = life->conversions ? &conversions_role : &clicks_role;

    (void) signal(SIGPIPE, SIG_IGN);
    log_configure(LOG_FORMAT_PLAIN, LOG_LEVEL_ERROR - 1);
    daemon_world.replies = replies;
    daemon_world.now_ms = 1000000;
    daemon_world.turns = 0;
    daemon_world.login = life->login;
    postgres = (struct postgres){.fail_at = life->fail_at,
        .again = life->fail_again,
        .sqlstate = life->sqlstate,
        .today = DAEMON_DAY};

    memset(&role, 0, sizeof(role));
    role.kind = kind;
    role.config = &config;
    role.lane = life->lane;
    return kind->serve(&role);
}

#endif
