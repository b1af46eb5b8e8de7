/*
 * How fast somebody may call: token buckets (as the generic cell rate algorithm, ITU-T I.371, keeps
 * them: one time a bucket) in a table of a fixed size, for all threads of the process. When it is
 * full, the bucket that is nearest to full again gives way: the one that limits least.
 */

#ifndef AFFILIATED_API_RATE_H
#define AFFILIATED_API_RATE_H

#include "protocol/slice.h"

/* `quota` calls at once, and as many again in each `window_s`; quota 0: no limit. */
struct rate_policy {
    const char *name;
    int64_t quota;
    int64_t window_s;
};

struct rate_state {
    int64_t left;    /* calls that may follow at once */
    int64_t reset_s; /* until the bucket is full again */
    int64_t retry_s; /* until one may follow; 0: now */
};

#define RATE_BUCKETS 32768

/*
 * Takes `cost` calls (0: only looks) of `who` under `policy` at `now_us`, which never goes back by
 * much. False if they are too many: then nothing is taken.
 */
bool rate_take(const struct rate_policy *policy, struct aff_slice who, int64_t cost, int64_t now_us,
    struct rate_state *state);

#endif
