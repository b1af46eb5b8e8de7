#include "worker/role.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define ROLE_STACK_BYTES   (1024 * 1024UL)
#define ROLE_TELL_AGAIN_MS 60000

const struct counter_info counter_infos[COUNTERS] = {
    [COUNTER_TRANSACTIONS] = {"transactions_total", "Transactions committed."},
    [COUNTER_ENTRIES] = {"entries_total", "Stream entries (batches) acknowledged."},
    [COUNTER_BYTES] = {"bytes_total", "Bytes of stream entries read."},
    [COUNTER_RECORDS] = {"records_total", "Records stored."},
    [COUNTER_REPEATED] = {"repeated_entries_total", "Entries whose batch the inbox knew already."},
    [COUNTER_REPLAYED] = {"replayed_entries_total",
        "Entries read again after a change of PostgreSQL's timeline."},
    [COUNTER_CLAIMED] = {"claimed_entries_total", "Entries taken over from another consumer."},
    [COUNTER_DEAD_LETTERS] = {"dead_letters_total",
        "Records and batches put aside as dead letters."},
    [COUNTER_FORGED] = {"unverified_entries_total",
        "Entries that no master key made, or that are no batch."},
    [COUNTER_LOST] = {"lost_entries_total", "Pending entries that Redis did not have any more."},
    [COUNTER_TRIMMED] = {"trimmed_entries_total",
        "Acknowledged entries dropped behind the replay window."},
    [COUNTER_APPLIED] = {"applied_total", "Conversion events applied to order facts."},
    [COUNTER_DUPLICATES] = {"duplicates_total", "Conversion events that were known."},
    [COUNTER_ACCEPTED] = {"accepted_total", "Orders accepted."},
    [COUNTER_REVIEW] = {"review_total", "Orders put to review."},
    [COUNTER_REJECTED] = {"rejected_total", "Orders rejected."},
    [COUNTER_PARKED] = {"parked_total", "Conversion events that had to wait for their click."},
    [COUNTER_RESOLVED] = {"resolved_total", "Waiting conversion events settled."},
    [COUNTER_RELEASED] = {"released_total", "Commissions released from their hold."},
    [COUNTER_PROJECTED] = {"projected_total", "Link and key records written to Redis."},
    [COUNTER_REBUILDS] = {"rebuilds_total", "Full rebuilds of the projection."},
    [COUNTER_CREATED] = {"partitions_created_total", "Partitions created."},
    [COUNTER_DROPPED] = {"partitions_dropped_total", "Partitions dropped by retention."},
    [COUNTER_REQUESTS] = {"requests_total", "Requests answered."},
    [COUNTER_REFUSED] = {"refused_requests_total", "Requests answered with a status of 4xx."},
    [COUNTER_BROKEN] = {"failed_requests_total", "Requests answered with a status of 5xx."},
    [COUNTER_LIMITED] = {"limited_requests_total", "Requests refused because they came too fast."},
    [COUNTER_LOGINS] = {"logins_total", "Sessions begun."},
    [COUNTER_REQUEST_US] = {"request_microseconds_total",
        "Time from request to answer, summed up."},
    [COUNTER_WITHIN_5MS] = {"requests_within_5ms_total", "Requests answered in 5 ms."},
    [COUNTER_WITHIN_20MS] = {"requests_within_20ms_total", "Requests answered in 20 ms."},
    [COUNTER_WITHIN_100MS] = {"requests_within_100ms_total", "Requests answered in 100 ms."},
    [COUNTER_WITHIN_500MS] = {"requests_within_500ms_total", "Requests answered in 500 ms."},
    [COUNTER_SENT] = {"sent_total", "Mails that the server, or the maildir, has taken."},
    [COUNTER_DELAYED] = {"delayed_total", "Times that the server put a mail off."},
    [COUNTER_UNDELIVERABLE] = {"undeliverable_total", "Mails that can't be delivered."},
    [COUNTER_CHECKED] = {"sites_checked_total", "Times that a merchant's site was looked at."},
    [COUNTER_PROVEN] = {"sites_proven_total", "Sites proven to be their merchant's."},
    [COUNTER_SUBMITTED] = {"batches_submitted_total",
        "Batches of payouts that went to the provider, or may have."},
    [COUNTER_QUERIED] = {"batches_queried_total",
        "Times that the provider was asked what became of a batch of payouts."},
    [COUNTER_DELIVERED] = {"webhooks_delivered_total", "Events that their endpoint has taken."},
    [COUNTER_NOT_DELIVERED] = {"webhooks_refused_total",
        "Times that an endpoint did not take an event."},
    [COUNTER_GIVEN_UP] = {"webhooks_given_up_total",
        "Events that an endpoint did not take to the last."},
    [COUNTER_FAILURES] = {"failures_total", "Times that work had to begin anew."},
    [GAUGE_LENGTH] = {"stream_entries", "Entries in the streams, the replay window included."},
    [GAUGE_LAG] = {"undelivered_entries", "Entries that no consumer has read yet."},
    [GAUGE_PENDING] = {"pending_entries", "Entries read and not acknowledged."},
    [GAUGE_OLDEST_MS] = {"oldest_age_seconds", "Age of the oldest entry that is not committed."},
    [GAUGE_WAITING] = {"waiting_mails", "Mails that were not sent yet."},
    [GAUGE_WAITING_S] = {"oldest_mail_seconds", "Age of the oldest mail that was not sent yet."},
    [GAUGE_BATCHES] = {"payout_batches", "Batches of payouts that are on their way to a provider."},
    [GAUGE_UNKNOWN_S] = {"oldest_unknown_batch_seconds",
        "Age of the oldest batch of payouts of which nobody knows whether it was paid."},
    [GAUGE_DUE] = {"due_deliveries", "Deliveries to webhooks and postbacks that are due."},
    [GAUGE_DUE_S] = {"oldest_delivery_seconds", "Since when the oldest of them is due."},
};

_Static_assert(COUNTERS <= 64, "role_kind.counters is a 64-bit mask");

const struct role_kind *const role_kinds[] = {&partitions_role, &clicks_role, &conversions_role,
    &holds_role, &projection_role, &api_role, &mail_role, &sites_role, &payouts_role,
    &webhooks_role, NULL};

static const char *const role_state_names[] = {"starting", "up", "down", "stopped"};

static pthread_mutex_t role_config_lock = PTHREAD_MUTEX_INITIALIZER;
static struct config *role_config;
static atomic_uint role_generation;
static atomic_bool role_stopping;
static int role_stop_fd = -1;
static int role_done_fd = -1;

/* The generation that the thread's life began with. */
static _Thread_local unsigned role_life_generation;

int64_t
clock_monotonic_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int64_t
clock_unix_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

const char *
role_state_name(int state)
{
    return role_state_names[state];
}

bool
role_setup(struct config *config)
{
    role_config = config_hold(config);
    role_stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    role_done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return role_stop_fd >= 0 && role_done_fd >= 0;
}

int
role_finished_fd(void)
{
    return role_done_fd;
}

static void
role_signal(int fd)
{
    uint64_t one = 1;

    /* It fails only when the counter is full, and then it is readable as well. */
    if (write(fd, &one, sizeof(one)) < 0) {
        return;
    }
}

void
role_request_stop(void)
{
    atomic_store(&role_stopping, true);
    role_signal(role_stop_fd);
}

void
role_reconfigure(struct config *config)
{
    struct config *old;

    pthread_mutex_lock(&role_config_lock);
    old = role_config;
    role_config = config;
    atomic_fetch_add(&role_generation, 1);
    pthread_mutex_unlock(&role_config_lock);
    config_release(old);
}

struct config *
role_current_config(void)
{
    struct config *config;

    pthread_mutex_lock(&role_config_lock);
    config = config_hold(role_config);
    role_life_generation = atomic_load(&role_generation);
    pthread_mutex_unlock(&role_config_lock);
    return config;
}

bool
role_stops(void)
{
    return atomic_load_explicit(&role_stopping, memory_order_relaxed);
}

bool
role_should_end(struct role *role)
{
    role_progress(role);
    return role_stops() ||
           atomic_load_explicit(&role_generation, memory_order_relaxed) != role_life_generation;
}

void
role_wait(struct role *role, int64_t ms, int fd)
{
    struct pollfd fds[2] = {{.fd = role_stop_fd, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
    int64_t end = clock_monotonic_ms() + ms;

    /* In short pieces: a new configuration ends a wait, too, and waiting is progress. */
    while (!role_should_end(role)) {
        int64_t left = end - clock_monotonic_ms();

        if (left <= 0 || poll(fds, 2, left > 500 ? 500 : (int) left) > 0) {
            return;
        }
    }
}

static void
role_set_state(struct role *role, enum role_state state)
{
    atomic_store(&role->state, state);
    atomic_store(&role->state_since_ms, clock_unix_ms());
}

void
role_up(struct role *role)
{
    int state = atomic_load(&role->state);

    if (state == ROLE_UP) {
        return;
    }

    if (state == ROLE_DOWN) {
        log_info("works again after %lld s",
            (long long) (clock_unix_ms() - atomic_load(&role->state_since_ms)) / 1000);
    } else {
        log_info("works");
    }

    pthread_mutex_lock(&role->told_lock);
    role->told[0] = '\0';
    pthread_mutex_unlock(&role->told_lock);
    role_set_state(role, ROLE_UP);
}

bool
role_failed(struct role *role, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(role->reason, sizeof(role->reason), format, args);
    va_end(args);
    return false;
}

bool
role_failed_pg(struct role *role, const char *doing, const struct pg_error *error)
{
    return role_failed(role, "%s: PostgreSQL: %s%s%s%s%s", doing, error->message,
        error->sqlstate[0] ? " (" : "", error->sqlstate, error->sqlstate[0] ? ")" : "",
        error->class == PG_CLASS_ALARM ? "; this needs an operator" : "");
}

bool
role_failed_redis(struct role *role, const char *doing, const struct redis *redis)
{
    return role_failed(role, "%s: Redis: %s", doing, redis->error);
}

/* One line when it goes down, another only for another reason, a minute later at the soonest. */
static void
role_down(struct role *role)
{
    int64_t now = clock_monotonic_ms();
    bool changed = atomic_load(&role->state) != ROLE_DOWN;

    role_count(role, COUNTER_FAILURES, 1);
    if (changed) {
        role_set_state(role, ROLE_DOWN);
    }

    pthread_mutex_lock(&role->told_lock);
    memcpy(role->told, role->reason, sizeof(role->told));
    pthread_mutex_unlock(&role->told_lock);

    if (changed ||
        (now - role->told_ms >= ROLE_TELL_AGAIN_MS && strcmp(role->logged, role->reason) != 0)) {
        memcpy(role->logged, role->reason, sizeof(role->logged));
        role->told_ms = now;
        changed = true;
    }

    if (changed) {
        log_error("%s; trying again until it works", role->reason);
    } else {
        log_debug("%s; trying again", role->reason);
    }
}

/* Decorrelated jitter (Brooker, "Exponential Backoff And Jitter", 2015): many daemons do not come
 * back in step. */
static int64_t
role_next_pause(int64_t last, const struct config *config)
{
    int64_t low = config->run.retry_min;
    int64_t high = last * 3 > low ? last * 3 : low + 1;
    uint64_t random = 0;

    if (getrandom(&random, sizeof(random), 0) != (ssize_t) sizeof(random)) {
        random = (uint64_t) clock_monotonic_ms();
    }

    low += (int64_t) (random % (uint64_t) (high - low));
    return low < config->run.retry_max ? low : config->run.retry_max;
}

static void *
role_main(void *data)
{
    struct role *role = data;
    int64_t pause = 0;

    log_tag(role->name);

    while (!atomic_load(&role_stopping)) {
        role->config = role_current_config();
        role_progress(role);
        role->reason[0] = '\0';

        if (role->kind->serve(role)) {
            pause = 0;
        } else {
            pause = atomic_load(&role->state) == ROLE_UP ? 0 : pause;
            role_down(role);
            pause = role_next_pause(pause, role->config);
            if (role->kind->pause != NULL) {
                role->kind->pause(role, pause);
            } else {
                role_wait(role, pause, -1);
            }
        }

        config_release(role->config);
        role->config = NULL;
    }

    role_set_state(role, ROLE_STOPPED);
    role_signal(role_done_fd);
    return NULL;
}

bool
role_start(struct role *role, const struct role_kind *kind, unsigned lane)
{
    pthread_attr_t attributes;
    int error;

    *role = (struct role){.kind = kind, .lane = lane};
    if (lane == 0) {
        snprintf(role->name, sizeof(role->name), "%s", kind->name);
    } else {
        snprintf(role->name, sizeof(role->name), "%s%u", kind->name, lane + 1);
    }

    pthread_mutex_init(&role->told_lock, NULL);
    role_set_state(role, ROLE_STARTING);
    role_progress(role);

    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, ROLE_STACK_BYTES);
    error = pthread_create(&role->thread, &attributes, role_main, role);
    pthread_attr_destroy(&attributes);

    role->joinable = error == 0;
    if (error != 0) {
        log_error("no thread for role %s: %s", role->name, strerror(error));
    }

    return role->joinable;
}
