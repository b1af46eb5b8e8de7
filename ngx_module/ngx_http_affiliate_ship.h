
/*
 * The shipper: sends the logs' batches to Redis streams, watches their
 * acknowledgements, releases segments, adopts orphans.
 */

#ifndef _NGX_HTTP_AFFILIATE_SHIP_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_SHIP_H_INCLUDED_


#include "ngx_http_affiliate_redis.h"
#include "ngx_http_affiliate_spool.h"


/*
 * init_process of workers: takes over the worker's logs (any may be NULL) and,
 * in the worker that housekeeps, the spool directory's orphans.  "streams" is
 * how many streams a channel has: a log ships to aff:clicks:N with
 * N = spool id % streams.
 */
ngx_int_t ngx_http_affiliate_ship_init(ngx_http_affiliate_redis_conf_t *redis,
    ngx_http_affiliate_spool_conf_t *spool, ngx_uint_t streams,
    ngx_http_affiliate_log_t *clicks, ngx_http_affiliate_log_t *conversions,
    ngx_cycle_t *cycle);

/* exit_process, before the logs are closed. */
void ngx_http_affiliate_ship_done(void);

/* 1 while the ship connection is ready. */
ngx_uint_t ngx_http_affiliate_ship_ready(void);


#endif /* _NGX_HTTP_AFFILIATE_SHIP_H_INCLUDED_ */
