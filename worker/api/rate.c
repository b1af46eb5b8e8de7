#include "worker/api/rate.h"

#include "protocol/siphash.h"

#include <openssl/rand.h>

#include <pthread.h>

#define RATE_WAYS  8 /* buckets that may hold one name */
#define RATE_SETS  (RATE_BUCKETS / RATE_WAYS)
#define RATE_LOCKS 64

/* A bucket is full from `full_us` on: the theoretical arrival time. */
struct rate_bucket {
    uint64_t name;
    int64_t full_us;
};

static struct rate_bucket rate_table[RATE_SETS][RATE_WAYS];
static pthread_mutex_t rate_locks[RATE_LOCKS];
static uint8_t rate_key[16];
static pthread_once_t rate_once = PTHREAD_ONCE_INIT;

static void
rate_setup(void)
{
    for (unsigned i = 0; i < RATE_LOCKS; i++) {
        pthread_mutex_init(&rate_locks[i], NULL);
    }

    /* Without randomness somebody could make names that meet; then they share a limit. */
    (void) RAND_bytes(rate_key, sizeof(rate_key));
}

static uint64_t
rate_name(const struct rate_policy *policy, struct aff_slice who)
{
    uint8_t text[160];
    size_t head = strnlen(policy->name, 31);

    memcpy(text, policy->name, head);
    text[head++] = '\0';
    if (who.len > sizeof(text) - head) {
        who.len = sizeof(text) - head;
    }

    if (who.len > 0) {
        memcpy(text + head, who.data, who.len);
    }

    return aff_siphash(rate_key, text, head + who.len) | 1;
}

/* The name's own bucket, or the one that limits least. */
static struct rate_bucket *
rate_find(struct rate_bucket set[RATE_WAYS], uint64_t name)
{
    struct rate_bucket *least = &set[0];

    for (unsigned i = 0; i < RATE_WAYS; i++) {
        if (set[i].name == name) {
            return &set[i];
        }

        if (set[i].full_us < least->full_us) {
            least = &set[i];
        }
    }

    return least;
}

bool
rate_take(const struct rate_policy *policy, struct aff_slice who, int64_t cost, int64_t now_us,
    struct rate_state *state)
{
    int64_t window_us = policy->window_s * 1000000, each_us, full_us;
    struct rate_bucket *bucket;
    uint64_t name;
    size_t set;
    bool taken;

    *state = (struct rate_state){0};
    if (policy->quota == 0) {
        return true;
    }

    pthread_once(&rate_once, rate_setup);
    each_us = window_us / policy->quota > 0 ? window_us / policy->quota : 1;
    name = rate_name(policy, who);
    set = (size_t) (name >> 16) % RATE_SETS;

    pthread_mutex_lock(&rate_locks[set % RATE_LOCKS]);
    bucket = rate_find(rate_table[set], name);
    full_us = bucket->name == name && bucket->full_us > now_us ? bucket->full_us : now_us;
    taken = full_us + cost * each_us <= now_us + each_us * policy->quota;
    if (taken && cost > 0) {
        full_us += cost * each_us;
        *bucket = (struct rate_bucket){.name = name, .full_us = full_us};
    }
    pthread_mutex_unlock(&rate_locks[set % RATE_LOCKS]);

    state->left = (now_us + each_us * policy->quota - full_us) / each_us;
    state->reset_s = (full_us - now_us + 999999) / 1000000;
    if (!taken || (cost == 0 && state->left == 0)) {
        int64_t wait_us =
            full_us + (cost == 0 ? 1 : cost) * each_us - now_us - each_us * policy->quota;

        state->retry_s = wait_us <= 0 ? 1 : (wait_us + 999999) / 1000000;
        return false;
    }

    return true;
}
