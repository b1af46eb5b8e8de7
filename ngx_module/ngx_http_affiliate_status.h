
/*
 * Counters of all workers, in the shared zone.
 */

#ifndef _NGX_HTTP_AFFILIATE_STATUS_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_STATUS_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_affiliate_cache.h"
#include "../protocol/click.h"


#define NGX_HTTP_AFFILIATE_BUCKETS  20   /* of a histogram */
#define NGX_HTTP_AFFILIATE_SLOTS    64   /* workers share by number % slots */


/* Upper bounds are 50 us * 2^n, the last one is infinite. */
typedef struct {
    ngx_atomic_t                     bucket[NGX_HTTP_AFFILIATE_BUCKETS];
    ngx_atomic_t                     sum_us;
} ngx_http_affiliate_histogram_t;


/* What became of a conversion call; the last ones are refusals. */
typedef enum {
    NGX_HTTP_AFFILIATE_CONV_ACCEPTED = 0,
    NGX_HTTP_AFFILIATE_CONV_REPLAYED,
    NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST,      /* 400 */
    NGX_HTTP_AFFILIATE_CONV_UNKNOWN_KEY,      /* 401 */
    NGX_HTTP_AFFILIATE_CONV_CLOCK_SKEW,
    NGX_HTTP_AFFILIATE_CONV_BAD_SIGNATURE,
    NGX_HTTP_AFFILIATE_CONV_TOO_LARGE,        /* 413 */
    NGX_HTTP_AFFILIATE_CONV_MEDIA_TYPE,       /* 415 */
    NGX_HTTP_AFFILIATE_CONV_INVALID,          /* 422 field or click_id */
    NGX_HTTP_AFFILIATE_CONV_KEY_REUSED,       /* 422 other body */
    NGX_HTTP_AFFILIATE_CONV_LIMITED,          /* 429 */
    NGX_HTTP_AFFILIATE_CONV_UNAVAILABLE,      /* 503 */
    NGX_HTTP_AFFILIATE_CONV_CODES
} ngx_http_affiliate_conversion_code_e;


typedef enum {
    NGX_HTTP_AFFILIATE_CONN_LOOKUP = 0,
    NGX_HTTP_AFFILIATE_CONN_SHIP,
    NGX_HTTP_AFFILIATE_CONN_SUBSCRIBE,
    NGX_HTTP_AFFILIATE_CONNS
} ngx_http_affiliate_connection_e;


/* One worker's; a later worker of the same number goes on counting in it. */
typedef struct {
    ngx_atomic_t                     redirects[AFF_VERDICTS]
                                         [NGX_HTTP_AFFILIATE_CACHE_STATUSES];
    ngx_atomic_t                     fallbacks;   /* to a fallback URL */
    ngx_atomic_t                     not_found;   /* 404 */
    ngx_atomic_t                     gone;        /* 410 */
    ngx_atomic_t                     unavailable; /* 503 */
    ngx_atomic_t                     conversions[NGX_HTTP_AFFILIATE_CONV_CODES];
    ngx_atomic_t                     lookups;
    ngx_atomic_t                     lookup_errors;
    ngx_atomic_t                     invalidations;
    ngx_atomic_t                     recorded[3];  /* by enum aff_channel */
    ngx_atomic_t                     dropped[3];
    ngx_atomic_t                     shipped[3];   /* records sent */
    ngx_atomic_t                     batches[3];
    ngx_atomic_t                     resent[3];    /* batches */
    ngx_atomic_t                     syncs[3];     /* of segments */
    ngx_atomic_t                     adopted;      /* segments */
    ngx_atomic_t                     released;     /* segments */
    ngx_atomic_t                     corrupt;      /* torn or bad frames */
    ngx_atomic_t                     connects[NGX_HTTP_AFFILIATE_CONNS];
    ngx_http_affiliate_histogram_t   lookup_time;
    ngx_http_affiliate_histogram_t   total_time;

    /* gauges: what this worker has now; zeroed when it exits */
    ngx_atomic_t                     connected[NGX_HTTP_AFFILIATE_CONNS];
    ngx_atomic_t                     spool_bytes[3];   /* not acknowledged */
    ngx_atomic_t                     spool_oldest[3];  /* unix ms, 0: none */
    ngx_atomic_t                     spool_unsent[3];  /* records */
    ngx_atomic_t                     spool_full[3];    /* 0 or 1 */
    ngx_atomic_t                     parked;           /* waiting requests */
} ngx_http_affiliate_stats_t;


/* This worker's counters; before init_process, and without a zone, a dummy. */
extern ngx_http_affiliate_stats_t  *ngx_http_affiliate_stats;

#define ngx_http_affiliate_stat_add(field, n)                                \
    (void) ngx_atomic_fetch_add(&ngx_http_affiliate_stats->field, n)
#define ngx_http_affiliate_stat_inc(field)                                   \
    ngx_http_affiliate_stat_add(field, 1)
#define ngx_http_affiliate_stat_set(field, n)                                \
    ngx_http_affiliate_stats->field = (n)

/* Adds a duration to a histogram of this worker. */
void ngx_http_affiliate_stat_time(ngx_http_affiliate_histogram_t *h,
    uint64_t us);

/* affiliate_status [json|prometheus] */
char *ngx_http_affiliate_status_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


#endif /* _NGX_HTTP_AFFILIATE_STATUS_H_INCLUDED_ */
