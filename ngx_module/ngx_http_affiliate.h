
/*
 * What the module's files share: its configuration and a request's context.
 */

#ifndef _NGX_HTTP_AFFILIATE_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_affiliate_cache.h"
#include "ngx_http_affiliate_compat.h"
#include "ngx_http_affiliate_conversion.h"
#include "ngx_http_affiliate_fraud.h"
#include "ngx_http_affiliate_lookup.h"
#include "ngx_http_affiliate_redis.h"
#include "ngx_http_affiliate_ship.h"
#include "ngx_http_affiliate_spool.h"
#include "ngx_http_affiliate_status.h"


/* One for the whole http block. */
typedef struct {
    ngx_shm_zone_t                      *zone;       /* NULL: unconfigured */
    ngx_http_affiliate_redis_conf_t      redis;
    ngx_http_affiliate_spool_conf_t      spool;
    struct aff_keyring                  *keyring;    /* NULL: none */
    ngx_uint_t                           streams;

    ngx_http_affiliate_cache_times_t     cache_times;

    ngx_array_t                         *handlers;   /* where they are used */

    /* of the zone, set when it is initialized */
    ngx_http_affiliate_cache_t          *cache;
    ngx_http_affiliate_fraud_tables_t   *fraud;
    ngx_http_affiliate_replay_t         *replay;
    ngx_http_affiliate_stats_t          *stats;      /* SLOTS of them */
} ngx_http_affiliate_main_conf_t;


typedef struct {
    ngx_http_complex_value_t            *code;        /* NULL: the URI's rest */
    ngx_str_t                            param;
    ngx_str_t                            fallback;
    ngx_msec_t                           lookup_timeout;
    ngx_http_affiliate_fraud_conf_t      fraud;

    /* conversions */
    size_t                               max_body;
    ngx_uint_t                           max_events;
    ngx_msec_t                           durable_timeout;
    time_t                               click_ttl;   /* oldest click_id */
    ngx_uint_t                           key_rate;    /* calls a second and
                                                         key, 0 is off */
    ngx_uint_t                           status_format;
    ngx_int_t                            request_id;  /* variable's index */
    ngx_str_t                            handler;    /* the directive */
} ngx_http_affiliate_loc_conf_t;


/* A request's; kept over internal redirects by its pool cleanup. */
typedef struct {
    ngx_str_t                            code;
    u_char                               click_id[AFF_CLICK_ID_CHARS];
    unsigned                             has_click_id:1;
    unsigned                             judged:1;    /* verdict is set */
    unsigned                             recorded:1;
    unsigned                             dropped:1;   /* the spool was full */
    ngx_uint_t                           verdict;
    ngx_http_affiliate_question_t        question;
    void                                *conversion;  /* of conversion.c */
} ngx_http_affiliate_ctx_t;


extern ngx_module_t  ngx_http_affiliate_module;

/* This worker's logs; NULL where there is no spool. */
extern ngx_http_affiliate_log_t  *ngx_http_affiliate_clicks;
extern ngx_http_affiliate_log_t  *ngx_http_affiliate_conversions;

/* This worker's lookup connection; NULL where there is no Redis. */
extern ngx_http_affiliate_redis_t  *ngx_http_affiliate_lookup_redis;


/* The request's context, made on first use, kept over internal redirects. */
ngx_http_affiliate_ctx_t *ngx_http_affiliate_ctx(ngx_http_request_t *r);

/* The same, but NULL where there is none. */
ngx_http_affiliate_ctx_t *ngx_http_affiliate_ctx_find(ngx_http_request_t *r);

/* Cryptographic bytes from the worker's buffer; NGX_ERROR if OpenSSL fails. */
ngx_int_t ngx_http_affiliate_random(u_char *out, size_t len);

/* Unix milliseconds of the event loop's clock. */
uint64_t ngx_http_affiliate_now(void);


/* affiliate_redirect [code] */
char *ngx_http_affiliate_redirect_directive(ngx_conf_t *cf,
    ngx_command_t *cmd, void *conf);


#endif /* _NGX_HTTP_AFFILIATE_H_INCLUDED_ */
