
/*
 * Directives, variables, the shared zone, and what a worker opens and closes.
 * Loaded and not configured, the module does nothing.
 */

#include "ngx_http_affiliate.h"
#include "../protocol/bytes.h"

#include <openssl/rand.h>


#define NGX_HTTP_AFFILIATE_LAYOUT        2      /* of the shared zone */
#define NGX_HTTP_AFFILIATE_RANDOM_BYTES  4096
#define NGX_HTTP_AFFILIATE_KEY_FILE_MAX  16384

#define NGX_HTTP_AFFILIATE_NEEDS_ZONE    0x01
#define NGX_HTTP_AFFILIATE_NEEDS_REDIS   0x02
#define NGX_HTTP_AFFILIATE_NEEDS_KEYS    0x04
#define NGX_HTTP_AFFILIATE_NEEDS_SPOOL   0x08
#define NGX_HTTP_AFFILIATE_NEEDS_ALL     0x0f


/* What the zone's memory is divided into; shpool->data. */
typedef struct {
    ngx_uint_t                           layout;
    size_t                               stats_size;
    ngx_http_affiliate_cache_t          *cache;
    ngx_http_affiliate_fraud_tables_t   *fraud;
    ngx_http_affiliate_replay_t         *replay;
    ngx_http_affiliate_stats_t          *stats;
} ngx_http_affiliate_zone_t;


/* A directive that makes a location ours. */
typedef struct {
    char                              *(*set)(ngx_conf_t *cf,
                                              ngx_command_t *cmd, void *conf);
    ngx_uint_t                           needs;
} ngx_http_affiliate_handler_t;


/* Where one stands, for the message that something is missing. */
typedef struct {
    ngx_str_t                            directive;
    ngx_str_t                            file;
    ngx_uint_t                           line;
    ngx_uint_t                           needs;
} ngx_http_affiliate_use_t;


typedef enum {
    NGX_HTTP_AFFILIATE_VAR_CLICK_ID = 0,
    NGX_HTTP_AFFILIATE_VAR_CODE,
    NGX_HTTP_AFFILIATE_VAR_CACHE_STATUS,
    NGX_HTTP_AFFILIATE_VAR_VERDICT,
    NGX_HTTP_AFFILIATE_VAR_LOOKUP_TIME,
    NGX_HTTP_AFFILIATE_VAR_SPOOL_STATUS
} ngx_http_affiliate_variable_e;


static void ngx_http_affiliate_ctx_cleanup(void *data);
static ngx_int_t ngx_http_affiliate_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_affiliate_log_handler(ngx_http_request_t *r);

static ngx_int_t ngx_http_affiliate_init_zone(ngx_shm_zone_t *shm_zone,
    void *data);
static ngx_int_t ngx_http_affiliate_init_process(ngx_cycle_t *cycle);
static void ngx_http_affiliate_exit_process(ngx_cycle_t *cycle);

static ngx_int_t ngx_http_affiliate_add_variables(ngx_conf_t *cf);
static ngx_int_t ngx_http_affiliate_init(ngx_conf_t *cf);
static void *ngx_http_affiliate_create_main_conf(ngx_conf_t *cf);
static char *ngx_http_affiliate_init_main_conf(ngx_conf_t *cf, void *conf);
static void *ngx_http_affiliate_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_affiliate_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);

static char *ngx_http_affiliate_zone_directive(ngx_conf_t *cf,
    ngx_command_t *cmd, void *conf);
static char *ngx_http_affiliate_key_file(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_affiliate_reconnect(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_affiliate_batch(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_affiliate_conversion_rate(ngx_conf_t *cf,
    ngx_command_t *cmd, void *conf);
static char *ngx_http_affiliate_handler(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_affiliate_check_param(ngx_conf_t *cf, void *post,
    void *data);
static char *ngx_http_affiliate_check_fallback(ngx_conf_t *cf, void *post,
    void *data);


static ngx_conf_post_t  ngx_http_affiliate_param_post =
    { ngx_http_affiliate_check_param };

static ngx_conf_post_t  ngx_http_affiliate_fallback_post =
    { ngx_http_affiliate_check_fallback };

static ngx_conf_num_bounds_t  ngx_http_affiliate_streams_bounds =
    { ngx_conf_check_num_bounds, 1, AFF_STREAMS_MAX };

static ngx_conf_num_bounds_t  ngx_http_affiliate_events_bounds =
    { ngx_conf_check_num_bounds, 1, 10000 };


static ngx_http_affiliate_handler_t  ngx_http_affiliate_redirect_location =
    { ngx_http_affiliate_redirect_directive, NGX_HTTP_AFFILIATE_NEEDS_ALL };

static ngx_http_affiliate_handler_t  ngx_http_affiliate_conversion_location =
    { ngx_http_affiliate_conversion_directive, NGX_HTTP_AFFILIATE_NEEDS_ALL };

static ngx_http_affiliate_handler_t  ngx_http_affiliate_postback_location =
    { ngx_http_affiliate_postback_directive, NGX_HTTP_AFFILIATE_NEEDS_ALL };

static ngx_http_affiliate_handler_t  ngx_http_affiliate_status_location =
    { ngx_http_affiliate_status_directive, NGX_HTTP_AFFILIATE_NEEDS_ZONE };


static ngx_command_t  ngx_http_affiliate_commands[] = {

    { ngx_string("affiliate_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_affiliate_zone_directive,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("affiliate_redis"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_1MORE,
      ngx_http_affiliate_redis_directive,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_affiliate_main_conf_t, redis),
      NULL },

    { ngx_string("affiliate_redis_connect_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_affiliate_main_conf_t, redis.connect_timeout),
      NULL },

    { ngx_string("affiliate_redis_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_affiliate_main_conf_t, redis.timeout),
      NULL },

    { ngx_string("affiliate_redis_reconnect"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE12,
      ngx_http_affiliate_reconnect,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("affiliate_key_file"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_affiliate_key_file,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("affiliate_spool"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_1MORE,
      ngx_http_affiliate_spool_directive,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_affiliate_main_conf_t, spool),
      NULL },

    { ngx_string("affiliate_streams"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_affiliate_main_conf_t, streams),
      &ngx_http_affiliate_streams_bounds },

    { ngx_string("affiliate_batch"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE123,
      ngx_http_affiliate_batch,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("affiliate_cache_valid"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_affiliate_main_conf_t, cache_times.valid),
      NULL },

    { ngx_string("affiliate_cache_stale"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_affiliate_main_conf_t, cache_times.stale),
      NULL },

    { ngx_string("affiliate_cache_negative"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_affiliate_main_conf_t, cache_times.negative),
      NULL },

    { ngx_string("affiliate_redirect"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS|NGX_CONF_TAKE1,
      ngx_http_affiliate_handler,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_affiliate_redirect_location },

    { ngx_string("affiliate_conversion"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_affiliate_handler,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_affiliate_conversion_location },

    { ngx_string("affiliate_postback"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_affiliate_handler,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_affiliate_postback_location },

    { ngx_string("affiliate_status"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS|NGX_CONF_TAKE1,
      ngx_http_affiliate_handler,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      &ngx_http_affiliate_status_location },

    { ngx_string("affiliate_signal"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE12,
      ngx_http_affiliate_signal_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_affiliate_loc_conf_t, fraud.signals),
      NULL },

    { ngx_string("affiliate_param"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_affiliate_loc_conf_t, param),
      &ngx_http_affiliate_param_post },

    { ngx_string("affiliate_fallback"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_affiliate_loc_conf_t, fallback),
      &ngx_http_affiliate_fallback_post },

    { ngx_string("affiliate_lookup_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_affiliate_loc_conf_t, lookup_timeout),
      NULL },

    { ngx_string("affiliate_address_rate"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE12,
      ngx_http_affiliate_rate_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_affiliate_loc_conf_t, fraud.address_rate),
      NULL },

    { ngx_string("affiliate_link_rate"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE12,
      ngx_http_affiliate_rate_directive,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_affiliate_loc_conf_t, fraud.link_rate),
      NULL },

    { ngx_string("affiliate_duplicate_window"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_affiliate_loc_conf_t, fraud.duplicate_window),
      NULL },

    { ngx_string("affiliate_conversion_max_body"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_size_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_affiliate_loc_conf_t, max_body),
      NULL },

    { ngx_string("affiliate_conversion_max_events"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_affiliate_loc_conf_t, max_events),
      &ngx_http_affiliate_events_bounds },

    { ngx_string("affiliate_conversion_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_affiliate_loc_conf_t, durable_timeout),
      NULL },

    { ngx_string("affiliate_click_ttl"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_sec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_affiliate_loc_conf_t, click_ttl),
      NULL },

    { ngx_string("affiliate_conversion_rate"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_affiliate_conversion_rate,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_affiliate_module_ctx = {
    ngx_http_affiliate_add_variables,      /* preconfiguration */
    ngx_http_affiliate_init,               /* postconfiguration */

    ngx_http_affiliate_create_main_conf,   /* create main configuration */
    ngx_http_affiliate_init_main_conf,     /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_affiliate_create_loc_conf,    /* create location configuration */
    ngx_http_affiliate_merge_loc_conf      /* merge location configuration */
};


ngx_module_t  ngx_http_affiliate_module = {
    NGX_MODULE_V1,
    &ngx_http_affiliate_module_ctx,        /* module context */
    ngx_http_affiliate_commands,           /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_affiliate_init_process,       /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_affiliate_exit_process,       /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_http_variable_t  ngx_http_affiliate_variables[] = {

    { ngx_string("affiliate_click_id"), NULL, ngx_http_affiliate_variable,
      NGX_HTTP_AFFILIATE_VAR_CLICK_ID, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("affiliate_code"), NULL, ngx_http_affiliate_variable,
      NGX_HTTP_AFFILIATE_VAR_CODE, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("affiliate_cache_status"), NULL, ngx_http_affiliate_variable,
      NGX_HTTP_AFFILIATE_VAR_CACHE_STATUS, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("affiliate_verdict"), NULL, ngx_http_affiliate_variable,
      NGX_HTTP_AFFILIATE_VAR_VERDICT, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("affiliate_lookup_time"), NULL, ngx_http_affiliate_variable,
      NGX_HTTP_AFFILIATE_VAR_LOOKUP_TIME, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("affiliate_spool_status"), NULL, ngx_http_affiliate_variable,
      NGX_HTTP_AFFILIATE_VAR_SPOOL_STATUS, NGX_HTTP_VAR_NOCACHEABLE, 0 },

      ngx_http_null_variable
};


static ngx_str_t  ngx_http_affiliate_cache_statuses[] = {
    ngx_null_string,
    ngx_string("HIT"),
    ngx_string("MISS"),
    ngx_string("STALE"),
    ngx_string("UPDATING"),
    ngx_string("NEGATIVE"),
    ngx_string("UNKNOWN")
};


ngx_http_affiliate_log_t  *ngx_http_affiliate_clicks;
ngx_http_affiliate_log_t  *ngx_http_affiliate_conversions;

static u_char   ngx_http_affiliate_random_bytes[
                                           NGX_HTTP_AFFILIATE_RANDOM_BYTES];
static size_t   ngx_http_affiliate_random_left;


ngx_http_affiliate_ctx_t *
ngx_http_affiliate_ctx_find(ngx_http_request_t *r)
{
    ngx_pool_cleanup_t        *cln;
    ngx_http_affiliate_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_affiliate_module);

    if (ctx == NULL && (r->internal || r->filter_finalize)) {

        /* an internal redirect has cleared it: the pool still knows */

        for (cln = r->pool->cleanup; cln; cln = cln->next) {
            if (cln->handler == ngx_http_affiliate_ctx_cleanup) {
                ctx = cln->data;
                ngx_http_set_ctx(r, ctx, ngx_http_affiliate_module);
                break;
            }
        }
    }

    return ctx;
}


ngx_http_affiliate_ctx_t *
ngx_http_affiliate_ctx(ngx_http_request_t *r)
{
    ngx_pool_cleanup_t        *cln;
    ngx_http_affiliate_ctx_t  *ctx;

    ctx = ngx_http_affiliate_ctx_find(r);

    if (ctx) {
        return ctx;
    }

    cln = ngx_pool_cleanup_add(r->pool, sizeof(ngx_http_affiliate_ctx_t));
    if (cln == NULL) {
        return NULL;
    }

    ctx = cln->data;
    ngx_memzero(ctx, aff_opaque(sizeof(ngx_http_affiliate_ctx_t)));

    cln->handler = ngx_http_affiliate_ctx_cleanup;

    ngx_http_set_ctx(r, ctx, ngx_http_affiliate_module);

    return ctx;
}


/* Nothing to clean up: its address finds the context. */

static void
ngx_http_affiliate_ctx_cleanup(void *data)
{
}


ngx_int_t
ngx_http_affiliate_random(u_char *out, size_t len)
{
    u_char  *p;

    if (ngx_http_affiliate_random_left < len) {

        if (RAND_bytes(ngx_http_affiliate_random_bytes,
                       NGX_HTTP_AFFILIATE_RANDOM_BYTES)
            != 1)
        {
            ngx_http_affiliate_random_left = 0;
            ngx_log_error(NGX_LOG_ALERT, ngx_cycle->log, 0,
                          "RAND_bytes() failed, "
                          "no affiliate click_id can be made");
            return NGX_ERROR;
        }

        ngx_http_affiliate_random_left = NGX_HTTP_AFFILIATE_RANDOM_BYTES;
    }

    ngx_http_affiliate_random_left -= len;
    p = ngx_http_affiliate_random_bytes + ngx_http_affiliate_random_left;

    ngx_memcpy(out, p, len);

    return NGX_OK;
}


uint64_t
ngx_http_affiliate_now(void)
{
    ngx_time_t  *tp;

    tp = ngx_timeofday();

    return (uint64_t) tp->sec * 1000 + tp->msec;
}


static ngx_int_t
ngx_http_affiliate_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char                    *p;
    ngx_str_t                  value;
    ngx_http_affiliate_ctx_t  *ctx;

    ngx_str_null(&value);

    ctx = ngx_http_affiliate_ctx_find(r);

    if (ctx) {
        switch (data) {

        case NGX_HTTP_AFFILIATE_VAR_CLICK_ID:
            if (ctx->has_click_id) {
                value.data = ctx->click_id;
                value.len = AFF_CLICK_ID_CHARS;
            }
            break;

        case NGX_HTTP_AFFILIATE_VAR_CODE:
            value = ctx->code;
            break;

        case NGX_HTTP_AFFILIATE_VAR_CACHE_STATUS:
            value = ngx_http_affiliate_cache_statuses[ctx->question.status];
            break;

        case NGX_HTTP_AFFILIATE_VAR_VERDICT:
            if (ctx->judged) {
                value.data = (u_char *) aff_verdict_name(ctx->verdict);
                value.len = ngx_strlen(value.data);
            }
            break;

        case NGX_HTTP_AFFILIATE_VAR_LOOKUP_TIME:
            if (ctx->question.status == NGX_HTTP_AFFILIATE_NONE) {
                break;
            }

            p = ngx_pnalloc(r->pool, NGX_TIME_T_LEN + 4);
            if (p == NULL) {
                return NGX_ERROR;
            }

            value.data = p;
            value.len = ngx_sprintf(p, "%T.%03M",
                                    (time_t) (ctx->question.time / 1000),
                                    ctx->question.time % 1000)
                        - p;
            break;

        default: /* NGX_HTTP_AFFILIATE_VAR_SPOOL_STATUS */
            if (ctx->recorded) {
                ngx_str_set(&value, "recorded");

            } else if (ctx->dropped) {
                ngx_str_set(&value, "dropped");
            }
        }
    }

    if (value.len == 0) {
        v->not_found = 1;
        return NGX_OK;
    }

    v->len = value.len;
    v->data = value.data;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}


static ngx_int_t
ngx_http_affiliate_log_handler(ngx_http_request_t *r)
{
    int64_t      ms;
    ngx_time_t  *tp;

    if (r != r->main || ngx_http_affiliate_ctx_find(r) == NULL) {
        return NGX_OK;
    }

    tp = ngx_timeofday();

    ms = (int64_t) (tp->sec - r->start_sec) * 1000
         + (int64_t) tp->msec - (int64_t) r->start_msec;

    ngx_http_affiliate_stat_time(&ngx_http_affiliate_stats->total_time,
                                 ms > 0 ? (uint64_t) ms * 1000 : 0);

    return NGX_OK;
}


static ngx_int_t
ngx_http_affiliate_init_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    void                            *fraud, *replay;
    size_t                           len, size, fraud_size, replay_size;
    ngx_slab_pool_t                 *shpool;
    ngx_http_affiliate_zone_t       *zone;
    ngx_http_affiliate_main_conf_t  *amcf;

    amcf = shm_zone->data;
    shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    size = NGX_HTTP_AFFILIATE_SLOTS * sizeof(ngx_http_affiliate_stats_t);

    if (data || shm_zone->shm.exists) {
        zone = shpool->data;

        if (zone == NULL || zone->layout != NGX_HTTP_AFFILIATE_LAYOUT
            || zone->stats_size != size)
        {
            ngx_log_error(NGX_LOG_EMERG, shm_zone->shm.log, 0,
                          "affiliate_zone \"%V\" has the layout of another "
                          "version of the module, restart nginx",
                          &shm_zone->shm.name);
            return NGX_ERROR;
        }

        goto done;
    }

    len = sizeof(" in affiliate zone \"\"") + shm_zone->shm.name.len;

    shpool->log_ctx = ngx_slab_alloc(shpool, len);
    zone = ngx_slab_calloc(shpool, sizeof(ngx_http_affiliate_zone_t));

    if (shpool->log_ctx == NULL || zone == NULL) {
        goto failed;
    }

    ngx_sprintf(shpool->log_ctx, " in affiliate zone \"%V\"%Z",
                &shm_zone->shm.name);
    shpool->log_nomem = 0;

    fraud_size = ngx_http_affiliate_fraud_size(shm_zone->shm.size);
    replay_size = ngx_http_affiliate_replay_size(shm_zone->shm.size);

    zone->stats = ngx_slab_calloc(shpool, size);
    fraud = ngx_slab_calloc(shpool, fraud_size);
    replay = ngx_slab_calloc(shpool, replay_size);

    if (zone->stats == NULL || fraud == NULL || replay == NULL) {
        goto failed;
    }

    zone->fraud = ngx_http_affiliate_fraud_init(fraud, fraud_size);
    zone->replay = ngx_http_affiliate_replay_init(replay, replay_size);
    zone->cache = ngx_http_affiliate_cache_init(shpool);

    if (zone->fraud == NULL || zone->replay == NULL || zone->cache == NULL) {
        goto failed;
    }

    zone->layout = NGX_HTTP_AFFILIATE_LAYOUT;
    zone->stats_size = size;

    shpool->data = zone;

done:

    amcf->cache = zone->cache;
    amcf->fraud = zone->fraud;
    amcf->replay = zone->replay;
    amcf->stats = zone->stats;

    return NGX_OK;

failed:

    ngx_log_error(NGX_LOG_EMERG, shm_zone->shm.log, 0,
                  "affiliate_zone \"%V\" is too small", &shm_zone->shm.name);

    return NGX_ERROR;
}


/*
 * Gauges are a worker's own: those of one that was killed, and of workers that
 * there are no more after a reload, are cleared by who comes next.
 */

static void
ngx_http_affiliate_init_stats(ngx_cycle_t *cycle,
    ngx_http_affiliate_main_conf_t *amcf)
{
    size_t            offset;
    ngx_uint_t        i;
    ngx_core_conf_t  *ccf;

    i = ngx_worker % NGX_HTTP_AFFILIATE_SLOTS;
    offset = offsetof(ngx_http_affiliate_stats_t, connected);

    ngx_http_affiliate_stats = &amcf->stats[i];
    ngx_memzero((u_char *) &amcf->stats[i] + offset,
                sizeof(ngx_http_affiliate_stats_t) - offset);

    if (ngx_worker != 0) {
        return;
    }

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);

    for (i = ccf->worker_processes; i < NGX_HTTP_AFFILIATE_SLOTS; i++) {
        ngx_memzero((u_char *) &amcf->stats[i] + offset,
                    sizeof(ngx_http_affiliate_stats_t) - offset);
    }
}


static ngx_int_t
ngx_http_affiliate_init_process(ngx_cycle_t *cycle)
{
    ngx_http_affiliate_main_conf_t  *amcf;

    /* cache manager and cache loader come here, too */

    if (ngx_process != NGX_PROCESS_WORKER
        && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    amcf = ngx_http_cycle_get_module_main_conf(cycle,
                                               ngx_http_affiliate_module);

    /* no http block, or loaded and not configured */

    if (amcf == NULL || amcf->zone == NULL) {
        return NGX_OK;
    }

    ngx_http_affiliate_random_left = 0;
    ngx_http_affiliate_init_stats(cycle, amcf);

    if (amcf->redis.servers.nelts != 0
        && ngx_http_affiliate_lookup_init(cycle) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (amcf->spool.path == NULL) {
        return NGX_OK;
    }

    ngx_http_affiliate_clicks =
        ngx_http_affiliate_spool_open(&amcf->spool, AFF_CHANNEL_CLICKS, cycle);
    ngx_http_affiliate_conversions =
        ngx_http_affiliate_spool_open(&amcf->spool, AFF_CHANNEL_CONVERSIONS,
                                      cycle);

    if (ngx_http_affiliate_clicks == NULL
        || ngx_http_affiliate_conversions == NULL)
    {
        return NGX_ERROR;
    }

    return ngx_http_affiliate_ship_init(&amcf->redis, &amcf->spool,
                                        amcf->streams,
                                        ngx_http_affiliate_clicks,
                                        ngx_http_affiliate_conversions,
                                        cycle);
}


static void
ngx_http_affiliate_exit_process(ngx_cycle_t *cycle)
{
    if (ngx_http_affiliate_clicks) {
        ngx_http_affiliate_ship_done();
    }

    ngx_http_affiliate_lookup_done();

    if (ngx_http_affiliate_clicks) {
        ngx_http_affiliate_spool_close(ngx_http_affiliate_clicks);
        ngx_http_affiliate_clicks = NULL;
    }

    if (ngx_http_affiliate_conversions) {
        ngx_http_affiliate_spool_close(ngx_http_affiliate_conversions);
        ngx_http_affiliate_conversions = NULL;
    }
}


static ngx_int_t
ngx_http_affiliate_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_affiliate_variables; v->name.len; v++) {
        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


static void *
ngx_http_affiliate_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_affiliate_main_conf_t  *amcf;

    amcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_affiliate_main_conf_t));
    if (amcf == NULL) {
        return NULL;
    }

    /*
     * set by ngx_pcalloc():
     *
     *     amcf->zone = NULL;
     *     amcf->redis.servers.elts = NULL;
     *     amcf->spool.path = NULL;
     *     amcf->keyring = NULL;
     *     amcf->handlers = NULL;
     */

    amcf->redis.connect_timeout = NGX_CONF_UNSET_MSEC;
    amcf->redis.timeout = NGX_CONF_UNSET_MSEC;
    amcf->redis.reconnect_min = NGX_CONF_UNSET_MSEC;
    amcf->redis.reconnect_max = NGX_CONF_UNSET_MSEC;
    amcf->spool.batch_records = NGX_CONF_UNSET_UINT;
    amcf->spool.batch_size = NGX_CONF_UNSET_SIZE;
    amcf->spool.batch_delay = NGX_CONF_UNSET_MSEC;
    amcf->streams = NGX_CONF_UNSET_UINT;
    amcf->cache_times.valid = NGX_CONF_UNSET_MSEC;
    amcf->cache_times.stale = NGX_CONF_UNSET_MSEC;
    amcf->cache_times.negative = NGX_CONF_UNSET_MSEC;

    return amcf;
}


static ngx_int_t
ngx_http_affiliate_check_uses(ngx_conf_t *cf,
    ngx_http_affiliate_main_conf_t *amcf)
{
    ngx_str_t                  missing;
    ngx_uint_t                 i;
    ngx_http_affiliate_use_t  *use;

    if (amcf->handlers == NULL) {
        return NGX_OK;
    }

    use = amcf->handlers->elts;

    for (i = 0; i < amcf->handlers->nelts; i++) {

        if ((use[i].needs & NGX_HTTP_AFFILIATE_NEEDS_ZONE)
            && amcf->zone == NULL)
        {
            ngx_str_set(&missing, "affiliate_zone");

        } else if ((use[i].needs & NGX_HTTP_AFFILIATE_NEEDS_REDIS)
                   && amcf->redis.servers.nelts == 0)
        {
            ngx_str_set(&missing, "affiliate_redis");

        } else if ((use[i].needs & NGX_HTTP_AFFILIATE_NEEDS_KEYS)
                   && amcf->keyring == NULL)
        {
            ngx_str_set(&missing, "affiliate_key_file");

        } else if ((use[i].needs & NGX_HTTP_AFFILIATE_NEEDS_SPOOL)
                   && amcf->spool.path == NULL)
        {
            ngx_str_set(&missing, "affiliate_spool");

        } else {
            continue;
        }

        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "no \"%V\" is defined for the \"%V\" directive in %V:%ui",
                      &missing, &use[i].directive, &use[i].file, use[i].line);
        return NGX_ERROR;
    }

    return NGX_OK;
}


static char *
ngx_http_affiliate_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_http_affiliate_main_conf_t *amcf = conf;

    ngx_conf_init_msec_value(amcf->redis.connect_timeout, 1000);
    ngx_conf_init_msec_value(amcf->redis.timeout, 1000);
    ngx_conf_init_msec_value(amcf->redis.reconnect_min, 100);
    ngx_conf_init_msec_value(amcf->redis.reconnect_max,
                             ngx_max(amcf->redis.reconnect_min, 5000));
    ngx_conf_init_uint_value(amcf->spool.batch_records, 1024);
    ngx_conf_init_size_value(amcf->spool.batch_size, 64 * 1024);
    ngx_conf_init_msec_value(amcf->spool.batch_delay, 5);
    ngx_conf_init_uint_value(amcf->streams, 1);
    ngx_conf_init_msec_value(amcf->cache_times.valid, 60 * 1000);
    ngx_conf_init_msec_value(amcf->cache_times.stale, 7 * 86400 * 1000);
    ngx_conf_init_msec_value(amcf->cache_times.negative, 10 * 1000);

    amcf->spool.keyring = amcf->keyring;

    if (ngx_http_affiliate_check_uses(cf, amcf) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    /* without a zone there is no worker part at all */

    if (amcf->zone == NULL && amcf->spool.path) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"affiliate_spool\" needs \"affiliate_zone\"");
        return NGX_CONF_ERROR;
    }

    if (amcf->spool.path
        && (amcf->redis.servers.nelts == 0 || amcf->keyring == NULL))
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"affiliate_spool\" needs \"affiliate_redis\" "
                           "and \"affiliate_key_file\"");
        return NGX_CONF_ERROR;
    }

    if (amcf->zone && amcf->redis.servers.nelts != 0 && amcf->keyring == NULL)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"affiliate_redis\" needs \"affiliate_key_file\"");
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static void *
ngx_http_affiliate_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_affiliate_loc_conf_t  *alcf;

    alcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_affiliate_loc_conf_t));
    if (alcf == NULL) {
        return NULL;
    }

    /*
     * set by ngx_pcalloc():
     *
     *     alcf->code = NULL;
     *     alcf->param = { 0, NULL };
     *     alcf->fallback = { 0, NULL };
     *     alcf->handler = { 0, NULL };
     *     alcf->status_format = 0;
     *     alcf->request_id = 0;
     */

    alcf->lookup_timeout = NGX_CONF_UNSET_MSEC;
    alcf->max_body = NGX_CONF_UNSET_SIZE;
    alcf->max_events = NGX_CONF_UNSET_UINT;
    alcf->durable_timeout = NGX_CONF_UNSET_MSEC;
    alcf->click_ttl = NGX_CONF_UNSET;
    alcf->key_rate = NGX_CONF_UNSET_UINT;

    ngx_http_affiliate_fraud_unset(&alcf->fraud);

    return alcf;
}


static char *
ngx_http_affiliate_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_affiliate_loc_conf_t *prev = parent;
    ngx_http_affiliate_loc_conf_t *conf = child;

    ngx_conf_merge_str_value(conf->param, prev->param, "affiliate_click_id");
    ngx_conf_merge_str_value(conf->fallback, prev->fallback, "");
    ngx_conf_merge_msec_value(conf->lookup_timeout, prev->lookup_timeout, 500);
    ngx_conf_merge_size_value(conf->max_body, prev->max_body, 1024 * 1024);
    ngx_conf_merge_uint_value(conf->max_events, prev->max_events, 500);
    ngx_conf_merge_msec_value(conf->durable_timeout, prev->durable_timeout,
                              2000);
    ngx_conf_merge_value(conf->click_ttl, prev->click_ttl, 90 * 86400);
    ngx_conf_merge_uint_value(conf->key_rate, prev->key_rate, 0);

    ngx_http_affiliate_fraud_merge(&prev->fraud, &conf->fraud);
    ngx_http_affiliate_conversion_merge(cf);

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_affiliate_init(ngx_conf_t *cf)
{
    ngx_http_handler_pt             *h;
    ngx_http_core_main_conf_t       *cmcf;
    ngx_http_affiliate_main_conf_t  *amcf;

    amcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_affiliate_module);

    if (amcf->handlers == NULL) {
        return NGX_OK;
    }

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);

    h = ngx_array_push(&cmcf->phases[NGX_HTTP_LOG_PHASE].handlers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    *h = ngx_http_affiliate_log_handler;

    return NGX_OK;
}


/* The tables in a zone of this size, and a few pages for what is cached. */

static size_t
ngx_http_affiliate_zone_need(size_t size)
{
    return ngx_http_affiliate_fraud_size(size)
           + ngx_http_affiliate_replay_size(size)
           + NGX_HTTP_AFFILIATE_SLOTS * sizeof(ngx_http_affiliate_stats_t)
           + size / ngx_pagesize * sizeof(ngx_slab_page_t)
           + 16 * ngx_pagesize;
}


static char *
ngx_http_affiliate_zone_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_http_affiliate_main_conf_t *amcf = conf;

    u_char     *p;
    size_t      min;
    ssize_t     size;
    ngx_str_t  *value, name, s;

    if (amcf->zone) {
        return "is duplicate";
    }

    value = cf->args->elts;

    name = value[1];
    p = ngx_strlchr(name.data, name.data + name.len, ':');

    if (p == NULL || p == name.data) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid zone \"%V\", it must be name:size",
                           &value[1]);
        return NGX_CONF_ERROR;
    }

    name.len = p - name.data;
    s.data = p + 1;
    s.len = value[1].data + value[1].len - s.data;

    size = ngx_parse_size(&s);

    if (size == NGX_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid zone size \"%V\"",
                           &value[1]);
        return NGX_CONF_ERROR;
    }

    if ((size_t) size < ngx_http_affiliate_zone_need(size)) {

        for (min = 8 * ngx_pagesize;
             min < ngx_http_affiliate_zone_need(min);
             min += ngx_pagesize)
        {
            /* void */
        }

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "zone \"%V\" is too small, "
                           "it must be %uzk at least",
                           &value[1], min / 1024);
        return NGX_CONF_ERROR;
    }

    amcf->zone = ngx_shared_memory_add(cf, &name, size,
                                       &ngx_http_affiliate_module);
    if (amcf->zone == NULL) {
        return NGX_CONF_ERROR;
    }

    if (amcf->zone->data) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "duplicate zone \"%V\"",
                           &name);
        return NGX_CONF_ERROR;
    }

    amcf->zone->init = ngx_http_affiliate_init_zone;
    amcf->zone->data = amcf;

    return NGX_CONF_OK;
}


static void
ngx_http_affiliate_wipe_keyring(void *data)
{
    aff_keyring_wipe(data);
}


static char *
ngx_http_affiliate_key_file(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_affiliate_main_conf_t *amcf = conf;

    char                 error[256], *rv;
    bool                 ok;
    u_char               text[NGX_HTTP_AFFILIATE_KEY_FILE_MAX];
    ssize_t              n;
    ngx_str_t           *value, path;
    ngx_file_t           file;
    ngx_file_info_t      fi;
    ngx_pool_cleanup_t  *cln;

    if (amcf->keyring) {
        return "is duplicate";
    }

    value = cf->args->elts;
    path = value[1];

    if (ngx_conf_full_name(cf->cycle, &path, 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    cln = ngx_pool_cleanup_add(cf->pool, sizeof(struct aff_keyring));
    if (cln == NULL) {
        return NGX_CONF_ERROR;
    }

    amcf->keyring = cln->data;
    ngx_memzero(amcf->keyring, sizeof(struct aff_keyring));
    cln->handler = ngx_http_affiliate_wipe_keyring;

    ngx_memzero(&file, sizeof(ngx_file_t));

    file.name = path;
    file.log = cf->log;
    file.fd = ngx_open_file(path.data, NGX_FILE_RDONLY, NGX_FILE_OPEN, 0);

    if (file.fd == NGX_INVALID_FILE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           ngx_open_file_n " \"%V\" failed", &path);
        return NGX_CONF_ERROR;
    }

    rv = NGX_CONF_ERROR;

    if (ngx_fd_info(file.fd, &fi) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           ngx_fd_info_n " \"%V\" failed", &path);
        goto done;
    }

    if (!ngx_is_file(&fi) || ngx_file_size(&fi) > (off_t) sizeof(text)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" is not a key file: it must be a file "
                           "of at most %uz bytes", &path, sizeof(text));
        goto done;
    }

    if (fi.st_mode & S_IRWXO) {
        ngx_conf_log_error(NGX_LOG_WARN, cf, 0,
                           "key file \"%V\" is open to others than its owner "
                           "and group, use chmod 0600", &path);
    }

    n = ngx_read_file(&file, text, (size_t) ngx_file_size(&fi), 0);

    if (n == NGX_ERROR) {
        goto done;
    }

    ok = aff_keyring_parse(amcf->keyring, aff_slice(text, n), error,
                           sizeof(error));

    ngx_explicit_memzero(text, sizeof(text));

    if (!ok) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "key file \"%V\": %s", &path,
                           error);
        goto done;
    }

    rv = NGX_CONF_OK;

done:

    if (ngx_close_file(file.fd) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_ALERT, cf, ngx_errno,
                           ngx_close_file_n " \"%V\" failed", &path);
    }

    return rv;
}


/* affiliate_redis_reconnect min [max] */

static char *
ngx_http_affiliate_reconnect(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_affiliate_main_conf_t *amcf = conf;

    ngx_int_t    ms;
    ngx_str_t   *value;
    ngx_uint_t   i;

    if (amcf->redis.reconnect_min != NGX_CONF_UNSET_MSEC) {
        return "is duplicate";
    }

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {
        ms = ngx_parse_time(&value[i], 0);

        if (ms == NGX_ERROR || ms == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid time \"%V\"",
                               &value[i]);
            return NGX_CONF_ERROR;
        }

        if (i == 1) {
            amcf->redis.reconnect_min = (ngx_msec_t) ms;

        } else {
            amcf->redis.reconnect_max = (ngx_msec_t) ms;
        }
    }

    if (cf->args->nelts == 3
        && amcf->redis.reconnect_max < amcf->redis.reconnect_min)
    {
        return "has a maximum that is less than its minimum";
    }

    return NGX_CONF_OK;
}


/* affiliate_batch [records=number] [size=size] [delay=time] */

static char *
ngx_http_affiliate_batch(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_affiliate_main_conf_t *amcf = conf;

    char                             *rule;
    ssize_t                           size;
    ngx_int_t                         n;
    ngx_str_t                        *value, s;
    ngx_uint_t                        i;
    ngx_http_affiliate_spool_conf_t  *scf;

    scf = &amcf->spool;
    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {

        rule = "is none of \"records=\", \"size=\" and \"delay=\", "
               "each given once";

        if (ngx_strncmp(value[i].data, "records=", 8) == 0
            && scf->batch_records == NGX_CONF_UNSET_UINT)
        {
            n = ngx_atoi(value[i].data + 8, value[i].len - 8);

            if (n >= 1 && n <= 65536) {
                scf->batch_records = n;
                continue;
            }

            rule = "must be 1 to 65536 records";

        } else if (ngx_strncmp(value[i].data, "size=", 5) == 0
                   && scf->batch_size == NGX_CONF_UNSET_SIZE)
        {
            s.data = value[i].data + 5;
            s.len = value[i].len - 5;
            size = ngx_parse_size(&s);

            /* any one frame must fit, and a reader must take it */

            if (size >= (ssize_t) (AFF_FRAME_MAX + AFF_BATCH_HEADER_BYTES)
                && size <= AFF_BATCH_MAX)
            {
                scf->batch_size = size;
                continue;
            }

            rule = "must be 32816 bytes to 1m, so that any one record fits";

        } else if (ngx_strncmp(value[i].data, "delay=", 6) == 0
                   && scf->batch_delay == NGX_CONF_UNSET_MSEC)
        {
            s.data = value[i].data + 6;
            s.len = value[i].len - 6;
            n = ngx_parse_time(&s, 0);

            if (n >= 1 && n <= 1000) {
                scf->batch_delay = n;
                continue;
            }

            rule = "must be 1ms to 1s";
        }

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" %s", &value[i],
                           rule);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* affiliate_conversion_rate rate=Nr/s | off */

static char *
ngx_http_affiliate_conversion_rate(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_http_affiliate_loc_conf_t *alcf = conf;

    ngx_int_t   n;
    ngx_str_t  *value;

    if (alcf->key_rate != NGX_CONF_UNSET_UINT) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "off") == 0) {
        alcf->key_rate = 0;
        return NGX_CONF_OK;
    }

    if (value[1].len > 8 && ngx_strncmp(value[1].data, "rate=", 5) == 0
        && ngx_strcmp(value[1].data + value[1].len - 3, "r/s") == 0)
    {
        n = ngx_atoi(value[1].data + 5, value[1].len - 8);

        if (n >= 1 && n <= 1000000) {
            alcf->key_rate = n;
            return NGX_CONF_OK;
        }
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid rate \"%V\"", &value[1]);

    return NGX_CONF_ERROR;
}


static char *
ngx_http_affiliate_handler(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_affiliate_loc_conf_t *alcf = conf;

    ngx_http_affiliate_use_t        *use;
    ngx_http_core_loc_conf_t        *clcf;
    ngx_http_affiliate_handler_t    *handler;
    ngx_http_affiliate_main_conf_t  *amcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (alcf->handler.len) {
        if (alcf->handler.len == cmd->name.len
            && ngx_strcmp(alcf->handler.data, cmd->name.data) == 0)
        {
            return "is duplicate";
        }

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" conflicts with \"%V\" "
                           "in the same location",
                           &cmd->name, &alcf->handler);
        return NGX_CONF_ERROR;
    }

    if (clcf->handler) {
        return "conflicts with another handler of this location";
    }

    alcf->handler = cmd->name;
    handler = cmd->post;

    amcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_affiliate_module);

    if (amcf->handlers == NULL) {
        amcf->handlers = ngx_array_create(cf->pool, 4,
                                          sizeof(ngx_http_affiliate_use_t));
        if (amcf->handlers == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    use = ngx_array_push(amcf->handlers);
    if (use == NULL) {
        return NGX_CONF_ERROR;
    }

    use->directive = cmd->name;
    use->file = cf->conf_file->file.name;
    use->line = cf->conf_file->line;
    use->needs = handler->needs;

    return handler->set(cf, cmd, conf);
}


static char *
ngx_http_affiliate_check_param(ngx_conf_t *cf, void *post, void *data)
{
    ngx_str_t *name = data;

    if (aff_param_name_valid(aff_slice(name->data, name->len))) {
        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid parameter name \"%V\", it must be 1 to %d "
                       "letters, digits, \".\", \"_\", \"~\" or \"-\"",
                       name, AFF_PARAM_MAX);

    return NGX_CONF_ERROR;
}


/* "off" overrides an outer one. */

static char *
ngx_http_affiliate_check_fallback(ngx_conf_t *cf, void *post, void *data)
{
    ngx_str_t *url = data;

    const char  *rule;

    if (ngx_strcmp(url->data, "off") == 0) {
        url->len = 0;
        return NGX_CONF_OK;
    }

    if (aff_url_check(aff_slice(url->data, url->len), NULL, &rule)) {
        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid URL \"%V\": %s", url,
                       rule);

    return NGX_CONF_ERROR;
}
