
/*
 * affiliate_status: the counters of all workers, as JSON or as Prometheus
 * text.  One table says what there is; both forms come from it.
 */

#include "ngx_http_affiliate.h"
#include "ngx_http_affiliate_answer.h"


#define NGX_HTTP_AFFILIATE_STATUS_JSON        0
#define NGX_HTTP_AFFILIATE_STATUS_PROMETHEUS  1

#define NGX_HTTP_AFFILIATE_BUCKET_US          50   /* the first bound */


/* How slots become one value, and how that is written. */
typedef enum {
    NGX_HTTP_AFFILIATE_COUNTER = 0,
    NGX_HTTP_AFFILIATE_GAUGE,
    NGX_HTTP_AFFILIATE_AGE       /* of the oldest unix ms, in seconds */
} ngx_http_affiliate_metric_e;


typedef struct {
    const char                          *name;
    const char                          *help;
    ngx_http_affiliate_metric_e          type;
    size_t                               offset;  /* in the statistics */
    const char                          *label;   /* NULL: a single value */
    const char *const                   *values;  /* of the label; NULL ends,
                                                     "" is left out */
} ngx_http_affiliate_metric_t;


typedef struct {
    const char                          *name;
    const char                          *help;
    size_t                               offset;
} ngx_http_affiliate_metric_time_t;


/* What is not in the statistics, but asked of the zone and its cache. */
typedef struct {
    const char                          *name;
    const char                          *help;
    ngx_http_affiliate_metric_e          type;
    uint64_t                             value;
} ngx_http_affiliate_metric_zone_t;

#define NGX_HTTP_AFFILIATE_METRIC_ZONES  8


static ngx_int_t ngx_http_affiliate_status_handler(ngx_http_request_t *r);
static void ngx_http_affiliate_status_json(ngx_http_affiliate_text_t *text,
    ngx_http_affiliate_main_conf_t *amcf);
static void ngx_http_affiliate_status_prometheus(
    ngx_http_affiliate_text_t *text, ngx_http_affiliate_main_conf_t *amcf);
static void ngx_http_affiliate_status_head(ngx_http_affiliate_text_t *text,
    const char *name, const char *help, ngx_http_affiliate_metric_e type);
static void ngx_http_affiliate_status_json_time(
    ngx_http_affiliate_text_t *text, ngx_http_affiliate_main_conf_t *amcf,
    const ngx_http_affiliate_metric_time_t *metric);
static void ngx_http_affiliate_status_prometheus_time(
    ngx_http_affiliate_text_t *text, ngx_http_affiliate_main_conf_t *amcf,
    const ngx_http_affiliate_metric_time_t *metric);
static void ngx_http_affiliate_status_value(ngx_http_affiliate_text_t *text,
    ngx_http_affiliate_main_conf_t *amcf,
    const ngx_http_affiliate_metric_t *metric, ngx_uint_t i);
static uint64_t ngx_http_affiliate_status_sum(
    ngx_http_affiliate_main_conf_t *amcf, size_t offset);
static uint64_t ngx_http_affiliate_status_oldest(
    ngx_http_affiliate_main_conf_t *amcf, size_t offset);
static ngx_atomic_uint_t ngx_http_affiliate_status_slot(
    ngx_http_affiliate_main_conf_t *amcf, ngx_uint_t n, size_t offset);
static void ngx_http_affiliate_status_zone(
    ngx_http_affiliate_main_conf_t *amcf,
    ngx_http_affiliate_metric_zone_t *metrics);


static ngx_http_affiliate_stats_t   ngx_http_affiliate_stats_dummy;
ngx_http_affiliate_stats_t         *ngx_http_affiliate_stats =
                                              &ngx_http_affiliate_stats_dummy;


/* By ngx_http_affiliate_cache_status_e. */
static const char *const  ngx_http_affiliate_status_cache[] =
    { "none", "hit", "miss", "stale", "updating", "negative", "unknown",
      NULL };

/* By ngx_http_affiliate_conversion_code_e. */
static const char *const  ngx_http_affiliate_status_codes[] =
    { "accepted", "replayed", "bad_request", "unknown_key", "clock_skew",
      "bad_signature", "too_large", "media_type", "invalid", "key_reused",
      "limited", "unavailable", NULL };

/* By ngx_http_affiliate_connection_e. */
static const char *const  ngx_http_affiliate_status_connections[] =
    { "lookup", "ship", "subscribe", NULL };

/* By enum aff_channel. */
static const char *const  ngx_http_affiliate_status_channels[] =
    { "", "clicks", "conversions", NULL };

_Static_assert(sizeof(ngx_http_affiliate_status_cache) / sizeof(char *)
               == NGX_HTTP_AFFILIATE_CACHE_STATUSES + 1,
               "a cache status has no name");
_Static_assert(sizeof(ngx_http_affiliate_status_codes) / sizeof(char *)
               == NGX_HTTP_AFFILIATE_CONV_CODES + 1,
               "a conversion's code has no name");
_Static_assert(sizeof(ngx_http_affiliate_status_connections) / sizeof(char *)
               == NGX_HTTP_AFFILIATE_CONNS + 1,
               "a connection has no name");


#define ngx_http_affiliate_offset(field)                                     \
    offsetof(ngx_http_affiliate_stats_t, field)


static const ngx_http_affiliate_metric_t  ngx_http_affiliate_metrics[] = {

    { "fallbacks_total", "Visitors sent to a fallback URL.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(fallbacks), NULL, NULL },

    { "not_found_total", "Codes answered 404.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(not_found), NULL, NULL },

    { "gone_total", "Expired and paused links answered 410.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(gone), NULL, NULL },

    { "unavailable_total", "Codes that could not be looked up, answered 503.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(unavailable), NULL, NULL },

    { "conversions_total", "Merchants' calls by what became of them.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(conversions), "code",
      ngx_http_affiliate_status_codes },

    { "lookups_total", "Questions to Redis about links and keys.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(lookups), NULL, NULL },

    { "lookup_errors_total", "Questions to Redis without a usable answer.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(lookup_errors), NULL, NULL },

    { "invalidations_total", "Invalidations of cached links and keys.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(invalidations), NULL, NULL },

    { "recorded_total", "Records written into the spool.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(recorded), "channel",
      ngx_http_affiliate_status_channels },

    { "dropped_total", "Records that the spool could not take.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(dropped), "channel",
      ngx_http_affiliate_status_channels },

    { "shipped_records_total", "Records sent to Redis.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(shipped), "channel",
      ngx_http_affiliate_status_channels },

    { "shipped_batches_total", "Batches sent to Redis.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(batches), "channel",
      ngx_http_affiliate_status_channels },

    { "resent_batches_total", "Batches sent to Redis again.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(resent), "channel",
      ngx_http_affiliate_status_channels },

    { "adopted_segments_total", "Spool segments taken over from other workers.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(adopted), NULL, NULL },

    { "released_segments_total", "Spool segments that PostgreSQL has whole.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(released), NULL, NULL },

    { "corrupt_frames_total", "Torn or damaged frames found in the spool.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(corrupt), NULL, NULL },

    { "redis_connects_total", "Connections made to Redis.",
      NGX_HTTP_AFFILIATE_COUNTER,
      ngx_http_affiliate_offset(connects), "connection",
      ngx_http_affiliate_status_connections },

    { "redis_connected", "Workers that are connected to Redis now.",
      NGX_HTTP_AFFILIATE_GAUGE,
      ngx_http_affiliate_offset(connected), "connection",
      ngx_http_affiliate_status_connections },

    { "spool_bytes", "Bytes that PostgreSQL has not acknowledged.",
      NGX_HTTP_AFFILIATE_GAUGE,
      ngx_http_affiliate_offset(spool_bytes), "channel",
      ngx_http_affiliate_status_channels },

    { "spool_oldest_seconds", "Age of the oldest unacknowledged record.",
      NGX_HTTP_AFFILIATE_AGE,
      ngx_http_affiliate_offset(spool_oldest), "channel",
      ngx_http_affiliate_status_channels },

    { "spool_unsent_records", "Records that Redis has not got yet.",
      NGX_HTTP_AFFILIATE_GAUGE,
      ngx_http_affiliate_offset(spool_unsent), "channel",
      ngx_http_affiliate_status_channels },

    { "spool_full", "Workers whose spool takes no records now.",
      NGX_HTTP_AFFILIATE_GAUGE,
      ngx_http_affiliate_offset(spool_full), "channel",
      ngx_http_affiliate_status_channels },

    { "parked_requests", "Requests that wait for Redis or for the disk.",
      NGX_HTTP_AFFILIATE_GAUGE,
      ngx_http_affiliate_offset(parked), NULL, NULL },

    { NULL, NULL, 0, 0, NULL, NULL }
};


static const ngx_http_affiliate_metric_time_t
    ngx_http_affiliate_metric_times[] =
{
    { "lookup_duration_seconds", "Time that questions to Redis took.",
      ngx_http_affiliate_offset(lookup_time) },

    { "request_duration_seconds", "Time that requests took in all.",
      ngx_http_affiliate_offset(total_time) },

    { NULL, NULL, 0 }
};


void
ngx_http_affiliate_stat_time(ngx_http_affiliate_histogram_t *h, uint64_t us)
{
    uint64_t    bound;
    ngx_uint_t  n;

    bound = NGX_HTTP_AFFILIATE_BUCKET_US;

    for (n = 0; n < NGX_HTTP_AFFILIATE_BUCKETS - 1 && us > bound; n++) {
        bound *= 2;
    }

    (void) ngx_atomic_fetch_add(&h->bucket[n], 1);
    (void) ngx_atomic_fetch_add(&h->sum_us, us);
}


static ngx_int_t
ngx_http_affiliate_status_handler(ngx_http_request_t *r)
{
    ngx_int_t                        rc;
    const char                      *type;
    ngx_http_affiliate_text_t        text;
    ngx_http_affiliate_loc_conf_t   *alcf;
    ngx_http_affiliate_main_conf_t  *amcf;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    alcf = ngx_http_get_module_loc_conf(r, ngx_http_affiliate_module);
    amcf = ngx_http_get_module_main_conf(r, ngx_http_affiliate_module);

    ngx_memzero(&text, sizeof(text));
    text.pool = r->pool;

    if (alcf->status_format == NGX_HTTP_AFFILIATE_STATUS_PROMETHEUS) {
        type = "text/plain; version=0.0.4; charset=utf-8";
        ngx_http_affiliate_status_prometheus(&text, amcf);

    } else {
        type = "application/json";
        ngx_http_affiliate_status_json(&text, amcf);
    }

    return ngx_http_affiliate_answer(r, NGX_HTTP_OK, type, &text);
}


static void
ngx_http_affiliate_status_json(ngx_http_affiliate_text_t *text,
    ngx_http_affiliate_main_conf_t *amcf)
{
    ngx_uint_t                               i, v, c, first;
    ngx_http_affiliate_metric_zone_t         zone
                                           [NGX_HTTP_AFFILIATE_METRIC_ZONES];
    const ngx_http_affiliate_metric_t       *metric;
    const ngx_http_affiliate_metric_time_t  *time;

    ngx_http_affiliate_status_zone(amcf, zone);

    for (i = 0; i < NGX_HTTP_AFFILIATE_METRIC_ZONES; i++) {
        ngx_http_affiliate_text_printf(text, "%s\"%s\":%uL", i ? "," : "{",
                                       zone[i].name, zone[i].value);
    }

    ngx_http_affiliate_text_puts(text, ",\"redirects_total\":{");

    for (v = 0; v < AFF_VERDICTS; v++) {
        ngx_http_affiliate_text_printf(text, "%s\"%s\":{", v ? "," : "",
                                       aff_verdict_name(v));

        for (c = 0; c < NGX_HTTP_AFFILIATE_CACHE_STATUSES; c++) {
            ngx_http_affiliate_text_printf(text, "%s\"%s\":%uL", c ? "," : "",
                                           ngx_http_affiliate_status_cache[c],
                                           ngx_http_affiliate_status_sum(amcf,
                                     ngx_http_affiliate_offset(redirects)
                                     + (v * NGX_HTTP_AFFILIATE_CACHE_STATUSES
                                        + c) * sizeof(ngx_atomic_t)));
        }

        ngx_http_affiliate_text_puts(text, "}");
    }

    ngx_http_affiliate_text_puts(text, "}");

    for (metric = ngx_http_affiliate_metrics; metric->name; metric++) {
        ngx_http_affiliate_text_printf(text, ",\"%s\":", metric->name);

        if (metric->label == NULL) {
            ngx_http_affiliate_status_value(text, amcf, metric, 0);
            continue;
        }

        first = 1;

        for (i = 0; metric->values[i]; i++) {

            if (metric->values[i][0] == '\0') {
                continue;
            }

            ngx_http_affiliate_text_printf(text, "%s\"%s\":",
                                           first ? "{" : ",",
                                           metric->values[i]);
            ngx_http_affiliate_status_value(text, amcf, metric, i);
            first = 0;
        }

        ngx_http_affiliate_text_puts(text, "}");
    }

    for (time = ngx_http_affiliate_metric_times; time->name; time++) {
        ngx_http_affiliate_status_json_time(text, amcf, time);
    }

    ngx_http_affiliate_text_puts(text, "}\n");
}


static void
ngx_http_affiliate_status_prometheus(ngx_http_affiliate_text_t *text,
    ngx_http_affiliate_main_conf_t *amcf)
{
    ngx_uint_t                               i, v, c;
    ngx_http_affiliate_metric_zone_t         zone
                                           [NGX_HTTP_AFFILIATE_METRIC_ZONES];
    const ngx_http_affiliate_metric_t       *metric;
    const ngx_http_affiliate_metric_time_t  *time;

    ngx_http_affiliate_status_zone(amcf, zone);

    for (i = 0; i < NGX_HTTP_AFFILIATE_METRIC_ZONES; i++) {
        ngx_http_affiliate_status_head(text, zone[i].name, zone[i].help,
                                       zone[i].type);
        ngx_http_affiliate_text_printf(text, "affiliate_%s %uL\n",
                                       zone[i].name, zone[i].value);
    }

    ngx_http_affiliate_status_head(text, "redirects_total",
                                   "Redirects by verdict and cache status.",
                                   NGX_HTTP_AFFILIATE_COUNTER);

    for (v = 0; v < AFF_VERDICTS; v++) {
        for (c = 0; c < NGX_HTTP_AFFILIATE_CACHE_STATUSES; c++) {
            ngx_http_affiliate_text_printf(text,
                                     "affiliate_redirects_total{verdict=\"%s\""
                                     ",cache=\"%s\"} %uL\n",
                                     aff_verdict_name(v),
                                     ngx_http_affiliate_status_cache[c],
                                     ngx_http_affiliate_status_sum(amcf,
                                     ngx_http_affiliate_offset(redirects)
                                     + (v * NGX_HTTP_AFFILIATE_CACHE_STATUSES
                                        + c) * sizeof(ngx_atomic_t)));
        }
    }

    for (metric = ngx_http_affiliate_metrics; metric->name; metric++) {
        ngx_http_affiliate_status_head(text, metric->name, metric->help,
                                       metric->type);

        if (metric->label == NULL) {
            ngx_http_affiliate_text_printf(text, "affiliate_%s ",
                                           metric->name);
            ngx_http_affiliate_status_value(text, amcf, metric, 0);
            ngx_http_affiliate_text_puts(text, "\n");
            continue;
        }

        for (i = 0; metric->values[i]; i++) {

            if (metric->values[i][0] == '\0') {
                continue;
            }

            ngx_http_affiliate_text_printf(text, "affiliate_%s{%s=\"%s\"} ",
                                           metric->name, metric->label,
                                           metric->values[i]);
            ngx_http_affiliate_status_value(text, amcf, metric, i);
            ngx_http_affiliate_text_puts(text, "\n");
        }
    }

    for (time = ngx_http_affiliate_metric_times; time->name; time++) {
        ngx_http_affiliate_status_prometheus_time(text, amcf, time);
    }
}


static void
ngx_http_affiliate_status_head(ngx_http_affiliate_text_t *text,
    const char *name, const char *help, ngx_http_affiliate_metric_e type)
{
    ngx_http_affiliate_text_printf(text,
                                   "# HELP affiliate_%s %s\n"
                                   "# TYPE affiliate_%s %s\n",
                                   name, help, name,
                                   type == NGX_HTTP_AFFILIATE_COUNTER
                                   ? "counter" : "gauge");
}


static void
ngx_http_affiliate_status_json_time(ngx_http_affiliate_text_t *text,
    ngx_http_affiliate_main_conf_t *amcf,
    const ngx_http_affiliate_metric_time_t *metric)
{
    size_t      offset;
    uint64_t    bound, count, sum;
    ngx_uint_t  n;

    ngx_http_affiliate_text_printf(text, ",\"%s\":{\"buckets\":{",
                                   metric->name);

    bound = NGX_HTTP_AFFILIATE_BUCKET_US;
    count = 0;

    for (n = 0; n < NGX_HTTP_AFFILIATE_BUCKETS; n++) {
        offset = metric->offset
                 + offsetof(ngx_http_affiliate_histogram_t, bucket)
                 + n * sizeof(ngx_atomic_t);
        count += ngx_http_affiliate_status_sum(amcf, offset);

        if (n < NGX_HTTP_AFFILIATE_BUCKETS - 1) {
            ngx_http_affiliate_text_printf(text, "\"%uL.%06uL\":%uL,",
                                           bound / 1000000, bound % 1000000,
                                           count);
            bound *= 2;

        } else {
            ngx_http_affiliate_text_printf(text, "\"+Inf\":%uL}", count);
        }
    }

    sum = ngx_http_affiliate_status_sum(amcf, metric->offset
                          + offsetof(ngx_http_affiliate_histogram_t, sum_us));

    ngx_http_affiliate_text_printf(text, ",\"sum\":%uL.%06uL,\"count\":%uL}",
                                   sum / 1000000, sum % 1000000, count);
}


static void
ngx_http_affiliate_status_prometheus_time(ngx_http_affiliate_text_t *text,
    ngx_http_affiliate_main_conf_t *amcf,
    const ngx_http_affiliate_metric_time_t *metric)
{
    size_t      offset;
    uint64_t    bound, count, sum;
    ngx_uint_t  n;

    ngx_http_affiliate_text_printf(text,
                                   "# HELP affiliate_%s %s\n"
                                   "# TYPE affiliate_%s histogram\n",
                                   metric->name, metric->help, metric->name);

    bound = NGX_HTTP_AFFILIATE_BUCKET_US;
    count = 0;

    for (n = 0; n < NGX_HTTP_AFFILIATE_BUCKETS; n++) {
        offset = metric->offset
                 + offsetof(ngx_http_affiliate_histogram_t, bucket)
                 + n * sizeof(ngx_atomic_t);
        count += ngx_http_affiliate_status_sum(amcf, offset);

        if (n < NGX_HTTP_AFFILIATE_BUCKETS - 1) {
            ngx_http_affiliate_text_printf(text,
                                           "affiliate_%s_bucket{le=\""
                                           "%uL.%06uL\"} %uL\n",
                                           metric->name, bound / 1000000,
                                           bound % 1000000, count);
            bound *= 2;

        } else {
            ngx_http_affiliate_text_printf(text,
                                           "affiliate_%s_bucket{le=\"+Inf\"} "
                                           "%uL\n", metric->name, count);
        }
    }

    sum = ngx_http_affiliate_status_sum(amcf, metric->offset
                          + offsetof(ngx_http_affiliate_histogram_t, sum_us));

    ngx_http_affiliate_text_printf(text,
                                   "affiliate_%s_sum %uL.%06uL\n"
                                   "affiliate_%s_count %uL\n",
                                   metric->name, sum / 1000000, sum % 1000000,
                                   metric->name, count);
}


static void
ngx_http_affiliate_status_value(ngx_http_affiliate_text_t *text,
    ngx_http_affiliate_main_conf_t *amcf,
    const ngx_http_affiliate_metric_t *metric, ngx_uint_t i)
{
    size_t    offset;
    uint64_t  oldest, now, age;

    offset = metric->offset + i * sizeof(ngx_atomic_t);

    if (metric->type != NGX_HTTP_AFFILIATE_AGE) {
        ngx_http_affiliate_text_printf(text, "%uL",
                                       ngx_http_affiliate_status_sum(amcf,
                                                                     offset));
        return;
    }

    oldest = ngx_http_affiliate_status_oldest(amcf, offset);
    now = ngx_http_affiliate_now();
    age = oldest && oldest < now ? now - oldest : 0;

    ngx_http_affiliate_text_printf(text, "%uL.%03uL", age / 1000, age % 1000);
}


static uint64_t
ngx_http_affiliate_status_sum(ngx_http_affiliate_main_conf_t *amcf,
    size_t offset)
{
    uint64_t    sum;
    ngx_uint_t  n;

    sum = 0;

    for (n = 0; n < NGX_HTTP_AFFILIATE_SLOTS; n++) {
        sum += ngx_http_affiliate_status_slot(amcf, n, offset);
    }

    return sum;
}


/* The smallest value but zero. */

static uint64_t
ngx_http_affiliate_status_oldest(ngx_http_affiliate_main_conf_t *amcf,
    size_t offset)
{
    uint64_t    oldest, value;
    ngx_uint_t  n;

    oldest = 0;

    for (n = 0; n < NGX_HTTP_AFFILIATE_SLOTS; n++) {
        value = ngx_http_affiliate_status_slot(amcf, n, offset);

        if (value && (oldest == 0 || value < oldest)) {
            oldest = value;
        }
    }

    return oldest;
}


static ngx_atomic_uint_t
ngx_http_affiliate_status_slot(ngx_http_affiliate_main_conf_t *amcf,
    ngx_uint_t n, size_t offset)
{
    u_char             *slot;
    ngx_atomic_uint_t   value;

    if (amcf->stats == NULL) {
        return 0;
    }

    slot = (u_char *) &amcf->stats[n];
    value = *(ngx_atomic_t *) (slot + offset);

    /*
     * During a reload two workers share a slot, and what one has counted up
     * in a gauge the other may have zeroed before it is counted down.
     */

    return (ngx_atomic_int_t) value < 0 ? 0 : value;
}


static void
ngx_http_affiliate_status_zone(ngx_http_affiliate_main_conf_t *amcf,
    ngx_http_affiliate_metric_zone_t *metrics)
{
    ngx_http_affiliate_cache_use_t  use;

    ngx_memzero(&use, sizeof(use));

    if (amcf->cache) {
        ngx_http_affiliate_cache_use(amcf->cache, &use);
    }

    *metrics++ = (ngx_http_affiliate_metric_zone_t) {
        "zone_size_bytes", "Size of the shared zone.",
        NGX_HTTP_AFFILIATE_GAUGE, amcf->zone ? amcf->zone->shm.size : 0
    };

    *metrics++ = (ngx_http_affiliate_metric_zone_t) {
        "cache_size_bytes", "What of the zone is for links and keys.",
        NGX_HTTP_AFFILIATE_GAUGE, use.size
    };

    *metrics++ = (ngx_http_affiliate_metric_zone_t) {
        "cache_used_bytes", "What of that is used.",
        NGX_HTTP_AFFILIATE_GAUGE, use.used
    };

    *metrics++ = (ngx_http_affiliate_metric_zone_t) {
        "cache_links", "Links in the cache.",
        NGX_HTTP_AFFILIATE_GAUGE, use.links
    };

    *metrics++ = (ngx_http_affiliate_metric_zone_t) {
        "cache_keys", "API keys in the cache.",
        NGX_HTTP_AFFILIATE_GAUGE, use.keys
    };

    *metrics++ = (ngx_http_affiliate_metric_zone_t) {
        "cache_negatives", "Codes and keys known not to exist.",
        NGX_HTTP_AFFILIATE_GAUGE, use.negatives
    };

    *metrics++ = (ngx_http_affiliate_metric_zone_t) {
        "cache_evictions_total", "Entries that made room for others.",
        NGX_HTTP_AFFILIATE_COUNTER, use.evictions
    };

    *metrics = (ngx_http_affiliate_metric_zone_t) {
        "cache_resets_total", "Caches emptied after a worker's death in them.",
        NGX_HTTP_AFFILIATE_COUNTER, use.resets
    };
}


char *
ngx_http_affiliate_status_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_str_t                      *value;
    ngx_http_core_loc_conf_t       *clcf;
    ngx_http_affiliate_loc_conf_t  *alcf = conf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    value = cf->args->elts;

    if (cf->args->nelts == 1 || ngx_strcmp(value[1].data, "json") == 0) {
        alcf->status_format = NGX_HTTP_AFFILIATE_STATUS_JSON;

    } else if (ngx_strcmp(value[1].data, "prometheus") == 0) {
        alcf->status_format = NGX_HTTP_AFFILIATE_STATUS_PROMETHEUS;

    } else {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid format \"%V\", must be \"json\" or "
                           "\"prometheus\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    clcf->handler = ngx_http_affiliate_status_handler;

    return NGX_CONF_OK;
}
