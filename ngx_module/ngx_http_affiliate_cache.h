
/*
 * The shared zone: links and keys as Redis told them, with LRU, negatives of
 * their own share, and an epoch; next to them the counters of all workers.
 */

#ifndef _NGX_HTTP_AFFILIATE_CACHE_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_CACHE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include "../protocol/projection.h"


/* $affiliate_cache_status */
typedef enum {
    NGX_HTTP_AFFILIATE_NONE = 0,   /* the cache was not asked */
    NGX_HTTP_AFFILIATE_HIT,
    NGX_HTTP_AFFILIATE_MISS,       /* Redis was asked and knew it */
    NGX_HTTP_AFFILIATE_STALE,      /* old entry, Redis is away */
    NGX_HTTP_AFFILIATE_UPDATING,   /* old entry, a lookup is on its way */
    NGX_HTTP_AFFILIATE_NEGATIVE,   /* known not to exist */
    NGX_HTTP_AFFILIATE_UNKNOWN,    /* Redis away or projection incomplete */
    NGX_HTTP_AFFILIATE_CACHE_STATUSES
} ngx_http_affiliate_cache_status_e;


typedef enum {
    NGX_HTTP_AFFILIATE_LINK = 0,
    NGX_HTTP_AFFILIATE_KEY,
    NGX_HTTP_AFFILIATE_KINDS
} ngx_http_affiliate_kind_e;


/* How much an entry is worth. */
typedef enum {
    NGX_HTTP_AFFILIATE_ABSENT = 0,
    NGX_HTTP_AFFILIATE_FRESH,
    NGX_HTTP_AFFILIATE_OLD,        /* may be used while it is asked for */
    NGX_HTTP_AFFILIATE_CHANGED,    /* invalidated: only if Redis is away */
    NGX_HTTP_AFFILIATE_NOT_THERE   /* Redis said so a moment ago */
} ngx_http_affiliate_found_e;


/* Longest packed record; the bound is checked where it is packed. */
#define NGX_HTTP_AFFILIATE_RECORD_MAX  6656


/*
 * A packed link or key: what the cache holds, in private memory.  It is the
 * cache's answer until "fresh" as long as the cache's version is "version".
 */
typedef struct {
    uint32_t                         version;
    ngx_msec_t                       fresh;
    size_t                           len;
    u_char                           data[NGX_HTTP_AFFILIATE_RECORD_MAX];
} ngx_http_affiliate_record_t;


typedef struct {
    ngx_msec_t                       valid;      /* then OLD */
    ngx_msec_t                       stale;      /* then ABSENT */
    ngx_msec_t                       negative;   /* then ABSENT */
} ngx_http_affiliate_cache_times_t;


/* When a question was sent: what was invalidated later is seen by it. */
typedef struct {
    uint32_t                         epoch;
    uint32_t                         changes;
} ngx_http_affiliate_cache_mark_t;


/* For the status page. */
typedef struct {
    size_t                           size;       /* bytes for entries */
    size_t                           used;
    ngx_uint_t                       links;
    ngx_uint_t                       keys;
    ngx_uint_t                       negatives;
    uint64_t                         evictions;
    uint64_t                         resets;     /* after a worker's death */
} ngx_http_affiliate_cache_use_t;


typedef struct ngx_http_affiliate_cache_s  ngx_http_affiliate_cache_t;


/* Takes what is left of the zone; NULL if that is too little. */
ngx_http_affiliate_cache_t *ngx_http_affiliate_cache_init(
    ngx_slab_pool_t *shpool);

/*
 * Looks a name up.  Whatever is found but NOT_THERE and ABSENT is copied into
 * record.  With lock > 0 an OLD entry is locked for as many milliseconds for
 * the first who sees it: *refresh is set and the caller is to ask Redis.
 */
ngx_http_affiliate_found_e ngx_http_affiliate_cache_get(
    ngx_http_affiliate_cache_t *cache, ngx_http_affiliate_kind_e kind,
    ngx_str_t *name, ngx_http_affiliate_cache_times_t *times, ngx_msec_t lock,
    ngx_http_affiliate_record_t *record, ngx_uint_t *refresh);

/*
 * Keeps an answer; record is NULL for "no such name".  "mark" was taken before
 * Redis was asked.  What does not fit is not kept.
 */
void ngx_http_affiliate_cache_put(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_kind_e kind, ngx_str_t *name,
    ngx_http_affiliate_cache_mark_t *mark,
    ngx_http_affiliate_record_t *record);

void ngx_http_affiliate_cache_mark(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_cache_mark_t *mark);

/* One name has changed.  All may have changed: every entry gets OLD. */
void ngx_http_affiliate_cache_invalidate(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_kind_e kind, ngx_str_t *name);
void ngx_http_affiliate_cache_invalidate_all(
    ngx_http_affiliate_cache_t *cache);

/* Without the mutex. */
uint32_t ngx_http_affiliate_cache_version(ngx_http_affiliate_cache_t *cache);

void ngx_http_affiliate_cache_use(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_cache_use_t *use);


uint32_t ngx_http_affiliate_cache_hash(ngx_http_affiliate_kind_e kind,
    ngx_str_t *name);

/* NGX_ERROR if it does not fit, which its limits rule out. */
ngx_int_t ngx_http_affiliate_link_pack(const struct aff_link *link,
    ngx_http_affiliate_record_t *record);
ngx_int_t ngx_http_affiliate_key_pack(const struct aff_key *key,
    ngx_http_affiliate_record_t *record);

/*
 * Strings go to p, code->len + len bytes of them.  NGX_ERROR: malformed, or it
 * leads where no link may: destinations are checked again when they leave.
 */
ngx_int_t ngx_http_affiliate_link_unpack(struct aff_link *link, u_char *p,
    ngx_str_t *code, const u_char *data, size_t len);
/* Into the pool, strings too.  NULL if out of memory or not well-formed. */
struct aff_key *ngx_http_affiliate_key_unpack(ngx_pool_t *pool, ngx_str_t *id,
    const u_char *data, size_t len);


#endif /* _NGX_HTTP_AFFILIATE_CACHE_H_INCLUDED_ */
