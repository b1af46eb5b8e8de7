/*
 * A role: a thread that does one job, sharing nothing with the others but the configuration and its
 * counters.
 *
 * A role lives many lives. serve() connects, works and returns: true when it was asked to (stop,
 * new configuration), false when something failed; it is then called again after a pause. So there
 * is one way to recover from anything: begin anew. Every effect of a life is safe to repeat.
 */

#ifndef AFFILIATED_ROLE_H
#define AFFILIATED_ROLE_H

#include "worker/config.h"
#include "worker/pg.h"
#include "worker/redis.h"

#include <pthread.h>

struct role;

/* What a role counts; names, help and owners in role.c. Those from COUNTER_GAUGES on go up and
 * down. */
enum counter {
    COUNTER_TRANSACTIONS,
    COUNTER_ENTRIES,
    COUNTER_BYTES,
    COUNTER_RECORDS,
    COUNTER_REPEATED,
    COUNTER_REPLAYED,
    COUNTER_CLAIMED,
    COUNTER_DEAD_LETTERS,
    COUNTER_FORGED,
    COUNTER_LOST,
    COUNTER_TRIMMED,
    COUNTER_APPLIED,
    COUNTER_DUPLICATES,
    COUNTER_ACCEPTED,
    COUNTER_REVIEW,
    COUNTER_REJECTED,
    COUNTER_PARKED,
    COUNTER_RESOLVED,
    COUNTER_RELEASED,
    COUNTER_PROJECTED,
    COUNTER_REBUILDS,
    COUNTER_CREATED,
    COUNTER_DROPPED,
    COUNTER_REQUESTS,
    COUNTER_REFUSED,
    COUNTER_BROKEN,
    COUNTER_LIMITED,
    COUNTER_LOGINS,
    COUNTER_REQUEST_US,
    COUNTER_WITHIN_5MS,
    COUNTER_WITHIN_20MS,
    COUNTER_WITHIN_100MS,
    COUNTER_WITHIN_500MS,
    COUNTER_SENT,
    COUNTER_DELAYED,
    COUNTER_UNDELIVERABLE,
    COUNTER_CHECKED,
    COUNTER_PROVEN,
    COUNTER_SUBMITTED,
    COUNTER_QUERIED,
    COUNTER_DELIVERED,
    COUNTER_NOT_DELIVERED,
    COUNTER_GIVEN_UP,
    COUNTER_FAILURES,

    COUNTER_GAUGES,
    GAUGE_LENGTH = COUNTER_GAUGES,
    GAUGE_LAG,
    GAUGE_PENDING,
    GAUGE_OLDEST_MS,
    GAUGE_WAITING,
    GAUGE_WAITING_S,
    GAUGE_BATCHES,
    GAUGE_UNKNOWN_S,
    GAUGE_DUE,
    GAUGE_DUE_S,
    COUNTERS,
};

enum role_state {
    ROLE_STARTING,
    ROLE_UP,
    ROLE_DOWN,
    ROLE_STOPPED,
};

struct role_kind {
    const char *name;
    bool (*serve)(struct role *role);
    uint64_t counters;                             /* bit mask of enum counter */
    int64_t (*lanes)(const struct config *config); /* NULL: one */
    void (*pause)(struct role *role, int64_t ms);  /* between lives; NULL: does nothing */
};

struct role {
    const struct role_kind *kind;
    char name[32];         /* the kind's, from the second lane on with its number: "clicks2" */
    unsigned lane;         /* from 0; lane 0 also does what one must do for all */
    struct config *config; /* of this life */
    pthread_t thread;
    bool joinable;

    char reason[CONFIG_ERROR_MAX + 64]; /* why the life failed; the thread's own */

    /* Read by others. */
    atomic_int state;
    _Atomic int64_t state_since_ms; /* unix */
    _Atomic int64_t progress_ms;    /* monotonic */
    _Atomic uint64_t values[COUNTERS];
    pthread_mutex_t told_lock;
    char told[CONFIG_ERROR_MAX + 64];   /* the last reason */
    char logged[CONFIG_ERROR_MAX + 64]; /* the one in the log; the thread's own, like told_ms */
    int64_t told_ms;
};

extern const struct role_kind api_role;
extern const struct role_kind clicks_role;
extern const struct role_kind conversions_role;
extern const struct role_kind holds_role;
extern const struct role_kind mail_role;
extern const struct role_kind payouts_role;
extern const struct role_kind projection_role;
extern const struct role_kind partitions_role;
extern const struct role_kind sites_role;
extern const struct role_kind webhooks_role;

int64_t clock_monotonic_ms(void);
int64_t clock_unix_ms(void);

/* True if this life should end: the daemon stops, or there is a new configuration. Also counts as
 * progress. */
bool role_should_end(struct role *role);

/* True if the daemon stops: no life follows this one. */
bool role_stops(void);

/* It works (again): logs the change, once. */
void role_up(struct role *role);

/* Notes why the life failed. Always false. */
bool role_failed(struct role *role, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool role_failed_pg(struct role *role, const char *doing, const struct pg_error *error);
bool role_failed_redis(struct role *role, const char *doing, const struct redis *redis);

/* Waits `ms`, until `fd` (-1: none) is readable, or until the daemon stops. */
void role_wait(struct role *role, int64_t ms, int fd);

static inline void
role_progress(struct role *role)
{
    atomic_store_explicit(&role->progress_ms, clock_monotonic_ms(), memory_order_relaxed);
}

static inline void
role_count(struct role *role, enum counter counter, uint64_t n)
{
    atomic_fetch_add_explicit(&role->values[counter], n, memory_order_relaxed);
}

static inline void
role_gauge(struct role *role, enum counter counter, uint64_t value)
{
    atomic_store_explicit(&role->values[counter], value, memory_order_relaxed);
}

/* For run.c and status.c. */

struct counter_info {
    const char *name; /* Prometheus: affiliated_<name> */
    const char *help;
};

extern const struct counter_info counter_infos[COUNTERS];
extern const struct role_kind *const role_kinds[]; /* ended by NULL */

const char *role_state_name(int state);

/* Descriptors and flags that all roles look at. */
bool role_setup(struct config *config);
void role_reconfigure(struct config *config); /* takes over the caller's reference */
struct config *role_current_config(void);     /* a reference of the caller's own */
void role_request_stop(void);
bool role_start(struct role *role, const struct role_kind *kind, unsigned lane);
int role_finished_fd(void); /* readable when a role has finished */

#endif
