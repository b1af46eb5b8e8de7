
/*
 * The replay table: sets of eight entries, found by the identity's first
 * bytes.  There is no lock that a killed worker could leave behind: an entry
 * ends with a checksum over its other words, so whoever reads while two
 * writers mix their entries sees that it is none, as if it had been evicted.
 * Redis, and in the end PostgreSQL, know what is forgotten here.
 *
 * Next to it are the calls' rates (GCRA: the theoretical arrival time of the
 * next call), four keys to a set.
 */

#include "ngx_http_affiliate_replay.h"


#define NGX_HTTP_AFFILIATE_REPLAY_WAYS   8
#define NGX_HTTP_AFFILIATE_RATE_WAYS     4
#define NGX_HTTP_AFFILIATE_RATE_SETS     256
#define NGX_HTTP_AFFILIATE_REPLAY_SHARE  16     /* of the zone, one in ... */


#define ngx_http_affiliate_load(p)      __atomic_load_n(p, __ATOMIC_RELAXED)
#define ngx_http_affiliate_store(p, v)                                       \
    __atomic_store_n(p, v, __ATOMIC_RELAXED)


typedef struct {
    uint64_t    identity[2];
    uint64_t    body[2];
    uint64_t    expires;        /* seconds of the monotonic clock; 0: free */
    uint64_t    check;
} ngx_http_affiliate_replay_entry_t;


typedef struct {
    uint64_t    hash;           /* of the key id; 0: free */
    uint64_t    arrival;        /* microseconds of the monotonic clock */
} ngx_http_affiliate_replay_rate_t;


struct ngx_http_affiliate_replay_s {
    uint64_t                           mask;   /* sets - 1 */
    ngx_http_affiliate_replay_rate_t   rates[NGX_HTTP_AFFILIATE_RATE_SETS]
                                            [NGX_HTTP_AFFILIATE_RATE_WAYS];
    ngx_http_affiliate_replay_entry_t  entries[]
                                            [NGX_HTTP_AFFILIATE_REPLAY_WAYS];
};


static ngx_int_t ngx_http_affiliate_replay_read(
    ngx_http_affiliate_replay_entry_t *shared,
    ngx_http_affiliate_replay_entry_t *entry);
static uint64_t ngx_http_affiliate_replay_check(
    const ngx_http_affiliate_replay_entry_t *entry);
static ngx_http_affiliate_replay_rate_t *ngx_http_affiliate_replay_slot(
    ngx_http_affiliate_replay_t *replay, uint64_t hash, uint64_t now);


size_t
ngx_http_affiliate_replay_size(size_t zone_size)
{
    size_t  size, set;

    set = NGX_HTTP_AFFILIATE_REPLAY_WAYS
          * sizeof(ngx_http_affiliate_replay_entry_t);

    for (size = 1; size * 2 * set <= zone_size
                                     / NGX_HTTP_AFFILIATE_REPLAY_SHARE;
         size *= 2)
    {
        /* void */
    }

    return sizeof(ngx_http_affiliate_replay_t) + size * set;
}


ngx_http_affiliate_replay_t *
ngx_http_affiliate_replay_init(void *mem, size_t size)
{
    size_t                        sets, set;
    ngx_http_affiliate_replay_t  *replay;

    set = NGX_HTTP_AFFILIATE_REPLAY_WAYS
          * sizeof(ngx_http_affiliate_replay_entry_t);

    ngx_memzero(mem, size);

    for (sets = 1;
         sizeof(ngx_http_affiliate_replay_t) + sets * 2 * set <= size;
         sets *= 2)
    {
        /* void */
    }

    replay = mem;
    replay->mask = sets - 1;

    return replay;
}


ngx_int_t
ngx_http_affiliate_replay_find(ngx_http_affiliate_replay_t *replay,
    const u_char *identity, const u_char *body)
{
    uint64_t                            id[2], hash[2], now;
    ngx_uint_t                          i;
    ngx_http_affiliate_replay_entry_t  *set, entry;

    ngx_memcpy(id, identity, sizeof(id));
    ngx_memcpy(hash, body, sizeof(hash));

    set = replay->entries[id[0] & replay->mask];
    now = ngx_current_msec / 1000;

    for (i = 0; i < NGX_HTTP_AFFILIATE_REPLAY_WAYS; i++) {

        if (ngx_http_affiliate_replay_read(&set[i], &entry) != NGX_OK
            || entry.identity[0] != id[0]
            || entry.identity[1] != id[1]
            || entry.expires <= now)
        {
            continue;
        }

        return entry.body[0] == hash[0] && entry.body[1] == hash[1]
               ? NGX_OK : NGX_ABORT;
    }

    return NGX_DECLINED;
}


void
ngx_http_affiliate_replay_add(ngx_http_affiliate_replay_t *replay,
    const u_char *identity, const u_char *body)
{
    uint64_t                            oldest;
    ngx_uint_t                          i;
    ngx_http_affiliate_replay_entry_t  *set, *victim, entry, fresh;

    ngx_memzero(&fresh, sizeof(fresh));
    ngx_memcpy(fresh.identity, identity, sizeof(fresh.identity));
    ngx_memcpy(fresh.body, body, sizeof(fresh.body));
    fresh.expires = ngx_current_msec / 1000 + NGX_HTTP_AFFILIATE_REPLAY_VALID;
    fresh.check = ngx_http_affiliate_replay_check(&fresh);

    set = replay->entries[fresh.identity[0] & replay->mask];
    victim = NULL;
    oldest = 0;

    for (i = 0; i < NGX_HTTP_AFFILIATE_REPLAY_WAYS; i++) {

        if (ngx_http_affiliate_replay_read(&set[i], &entry) != NGX_OK) {
            entry.expires = 0;

        } else if (entry.identity[0] == fresh.identity[0]
                   && entry.identity[1] == fresh.identity[1])
        {
            victim = &set[i];
            break;
        }

        if (victim == NULL || entry.expires < oldest) {
            victim = &set[i];
            oldest = entry.expires;
        }
    }

    ngx_http_affiliate_store(&victim->identity[0], fresh.identity[0]);
    ngx_http_affiliate_store(&victim->identity[1], fresh.identity[1]);
    ngx_http_affiliate_store(&victim->body[0], fresh.body[0]);
    ngx_http_affiliate_store(&victim->body[1], fresh.body[1]);
    ngx_http_affiliate_store(&victim->expires, fresh.expires);
    ngx_http_affiliate_store(&victim->check, fresh.check);
}


static ngx_int_t
ngx_http_affiliate_replay_read(ngx_http_affiliate_replay_entry_t *shared,
    ngx_http_affiliate_replay_entry_t *entry)
{
    entry->identity[0] = ngx_http_affiliate_load(&shared->identity[0]);
    entry->identity[1] = ngx_http_affiliate_load(&shared->identity[1]);
    entry->body[0] = ngx_http_affiliate_load(&shared->body[0]);
    entry->body[1] = ngx_http_affiliate_load(&shared->body[1]);
    entry->expires = ngx_http_affiliate_load(&shared->expires);
    entry->check = ngx_http_affiliate_load(&shared->check);

    if (entry->expires == 0
        || entry->check != ngx_http_affiliate_replay_check(entry))
    {
        return NGX_DECLINED;
    }

    return NGX_OK;
}


/* The words are hashes already: they only need to be tied to one another. */

static uint64_t
ngx_http_affiliate_replay_check(const ngx_http_affiliate_replay_entry_t *entry)
{
    uint64_t         h;
    ngx_uint_t       i;
    const uint64_t  *word;

    word = (const uint64_t *) entry;
    h = UINT64_C(0x9e3779b97f4a7c15);

    for (i = 0; i < offsetof(ngx_http_affiliate_replay_entry_t, check)
                    / sizeof(uint64_t);
         i++)
    {
        h ^= word[i];
        h *= UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 32;
    }

    return h;
}


ngx_msec_t
ngx_http_affiliate_replay_rate(ngx_http_affiliate_replay_t *replay,
    uint64_t hash, ngx_uint_t rate)
{
    uint64_t                           now, arrival, next, step;
    ngx_http_affiliate_replay_rate_t  *slot;

    now = (uint64_t) ngx_current_msec * 1000;
    step = 1000000 / rate;

    if (step == 0) {
        return 0;
    }

    slot = ngx_http_affiliate_replay_slot(replay, hash ? hash : 1, now);

    do {
        arrival = ngx_http_affiliate_load(&slot->arrival);
        next = ngx_max(arrival, now) + step;

        /* a second ahead is the burst */

        if (next > now + 1000000) {
            return (ngx_msec_t) ((next - now - 1000000 + 999) / 1000);
        }

    } while (!__atomic_compare_exchange_n(&slot->arrival, &arrival, next, 0,
                                          __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));

    return 0;
}


/*
 * The key's slot; a new key takes that of the one which could call freely for
 * the longest time.  When keys race for a slot, they share it for a moment.
 */

static ngx_http_affiliate_replay_rate_t *
ngx_http_affiliate_replay_slot(ngx_http_affiliate_replay_t *replay,
    uint64_t hash, uint64_t now)
{
    ngx_uint_t                         i;
    ngx_http_affiliate_replay_rate_t  *set, *slot;

    set = replay->rates[hash % NGX_HTTP_AFFILIATE_RATE_SETS];
    slot = &set[0];

    for (i = 0; i < NGX_HTTP_AFFILIATE_RATE_WAYS; i++) {

        if (ngx_http_affiliate_load(&set[i].hash) == hash) {
            return &set[i];
        }

        if (ngx_http_affiliate_load(&set[i].arrival)
            < ngx_http_affiliate_load(&slot->arrival))
        {
            slot = &set[i];
        }
    }

    ngx_http_affiliate_store(&slot->hash, hash);
    ngx_http_affiliate_store(&slot->arrival, now);

    return slot;
}
