
/*
 * affiliate_status: the counters of all workers, as JSON or as Prometheus
 * text.  One table says what there is; both forms come from it.
 */

#include "ngx_http_affiliate.h"
#include "ngx_http_affiliate_answer.h"


#define NGX_HTTP_AFFILIATE_STATUS_JSON        0
#define NGX_HTTP_AFFILIATE_STATUS_PROMETHEUS  1

#define NGX_HTTP_AFFILIATE_BUCKET_US          50   /* the first bound */


/* What is not in the statistics, but asked of the zone and its cache. */
typedef struct {
    uint64_t                             zone_size;
    uint64_t                             cache_size;
    uint64_t                             cache_used;
    uint64_t                             links;
    uint64_t                             keys;
    uint64_t                             negatives;
    uint64_t                             evictions;
    uint64_t                             resets;
} ngx_http_affiliate_status_zone_t;


/* An answer that is being written. */
typedef struct {
    ngx_http_affiliate_text_t            text;
    ngx_http_affiliate_main_conf_t      *amcf;
    ngx_http_affiliate_status_zone_t     zone;
} ngx_http_affiliate_status_t;


/* How slots become one value, and how that is written. */
typedef enum {
    NGX_HTTP_AFFILIATE_COUNTER = 0,
    NGX_HTTP_AFFILIATE_GAUGE,
    NGX_HTTP_AFFILIATE_AGE,           /* of the oldest unix ms, in seconds */
    NGX_HTTP_AFFILIATE_TIME,          /* a histogram */
    NGX_HTTP_AFFILIATE_ZONE_COUNTER,  /* the offset is in the zone's */
    NGX_HTTP_AFFILIATE_ZONE_GAUGE
} ngx_http_affiliate_metric_e;


typedef struct {
    const char                          *name;    /* NULL: none */
    ngx_uint_t                           n;
    const char *const                   *values;  /* "" is left out; NULL:
                                                     names of verdicts */
} ngx_http_affiliate_metric_label_t;

#define NGX_HTTP_AFFILIATE_METRIC_LABELS  2


typedef struct {
    const char                          *name;
    const char                          *help;
    ngx_http_affiliate_metric_e          type;
    size_t                               offset;  /* in the statistics */
    ngx_http_affiliate_metric_label_t    labels
                                           [NGX_HTTP_AFFILIATE_METRIC_LABELS];
} ngx_http_affiliate_metric_t;


static ngx_int_t ngx_http_affiliate_status_handler(ngx_http_request_t *r);
static void ngx_http_affiliate_status_json(ngx_http_affiliate_status_t *st);
static void ngx_http_affiliate_status_json_values(
    ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric, ngx_uint_t depth,
    ngx_uint_t i);
static void ngx_http_affiliate_status_json_time(
    ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric);
static void ngx_http_affiliate_status_prometheus(
    ngx_http_affiliate_status_t *st);
static void ngx_http_affiliate_status_prometheus_values(
    ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric);
static void ngx_http_affiliate_status_prometheus_time(
    ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric);
static const char *ngx_http_affiliate_status_label(
    const ngx_http_affiliate_metric_label_t *label, ngx_uint_t i);
static void ngx_http_affiliate_status_value(ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric, ngx_uint_t i);
static uint64_t ngx_http_affiliate_status_time(
    ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric, uint64_t *counts);
static uint64_t ngx_http_affiliate_status_sum(
    ngx_http_affiliate_main_conf_t *amcf, size_t offset);
static uint64_t ngx_http_affiliate_status_oldest(
    ngx_http_affiliate_main_conf_t *amcf, size_t offset);
static ngx_atomic_uint_t ngx_http_affiliate_status_slot(
    ngx_http_affiliate_main_conf_t *amcf, ngx_uint_t n, size_t offset);
static void ngx_http_affiliate_status_zone(ngx_http_affiliate_status_t *st);


static ngx_http_affiliate_stats_t   ngx_http_affiliate_stats_dummy;
ngx_http_affiliate_stats_t         *ngx_http_affiliate_stats =
                                              &ngx_http_affiliate_stats_dummy;


/* By ngx_http_affiliate_cache_status_e. */
static const char *const  ngx_http_affiliate_status_cache[] =
    { "none", "hit", "miss", "stale", "updating", "negative", "unknown" };

/* By ngx_http_affiliate_conversion_code_e. */
static const char *const  ngx_http_affiliate_status_codes[] =
    { "accepted", "replayed", "bad_request", "unknown_key", "clock_skew",
      "bad_signature", "too_large", "media_type", "invalid", "key_reused",
      "limited", "unavailable" };

/* By ngx_http_affiliate_connection_e. */
static const char *const  ngx_http_affiliate_status_connections[] =
    { "lookup", "ship", "subscribe" };

/* By enum aff_channel. */
static const char *const  ngx_http_affiliate_status_channels[] =
    { "", "clicks", "conversions" };

_Static_assert(sizeof(ngx_http_affiliate_status_cache) / sizeof(char *)
               == NGX_HTTP_AFFILIATE_CACHE_STATUSES,
               "a cache status has no name");
_Static_assert(sizeof(ngx_http_affiliate_status_codes) / sizeof(char *)
               == NGX_HTTP_AFFILIATE_CONV_CODES,
               "a conversion's code has no name");
_Static_assert(sizeof(ngx_http_affiliate_status_connections) / sizeof(char *)
               == NGX_HTTP_AFFILIATE_CONNS,
               "a connection has no name");


#define ngx_http_affiliate_offset(field)                                     \
    offsetof(ngx_http_affiliate_stats_t, field)
#define ngx_http_affiliate_zone_offset(field)                                \
    offsetof(ngx_http_affiliate_status_zone_t, field)

#define ngx_http_affiliate_label(name, values)                               \
    { name, sizeof(values) / sizeof(char *), values }

#define NGX_HTTP_AFFILIATE_UNLABELLED  { { NULL, 0, NULL }, { NULL, 0, NULL } }
#define NGX_HTTP_AFFILIATE_BY_VERDICT                                        \
    { { "verdict", AFF_VERDICTS, NULL },                                     \
      ngx_http_affiliate_label("cache", ngx_http_affiliate_status_cache) }
#define NGX_HTTP_AFFILIATE_BY_CODE                                           \
    { ngx_http_affiliate_label("code", ngx_http_affiliate_status_codes),     \
      { NULL, 0, NULL } }
#define NGX_HTTP_AFFILIATE_BY_CHANNEL                                        \
    { ngx_http_affiliate_label("channel",                                    \
                               ngx_http_affiliate_status_channels),          \
      { NULL, 0, NULL } }
#define NGX_HTTP_AFFILIATE_BY_CONNECTION                                     \
    { ngx_http_affiliate_label("connection",                                 \
                               ngx_http_affiliate_status_connections),       \
      { NULL, 0, NULL } }


static const ngx_http_affiliate_metric_t  ngx_http_affiliate_metrics[] = {

    { "zone_size_bytes", "Size of the shared zone.",
      NGX_HTTP_AFFILIATE_ZONE_GAUGE, ngx_http_affiliate_zone_offset(zone_size),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "cache_size_bytes", "What of the zone is for links and keys.",
      NGX_HTTP_AFFILIATE_ZONE_GAUGE,
      ngx_http_affiliate_zone_offset(cache_size),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "cache_used_bytes", "What of that is used.",
      NGX_HTTP_AFFILIATE_ZONE_GAUGE,
      ngx_http_affiliate_zone_offset(cache_used),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "cache_links", "Links in the cache.",
      NGX_HTTP_AFFILIATE_ZONE_GAUGE, ngx_http_affiliate_zone_offset(links),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "cache_keys", "API keys in the cache.",
      NGX_HTTP_AFFILIATE_ZONE_GAUGE, ngx_http_affiliate_zone_offset(keys),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "cache_negatives", "Codes and keys known not to exist.",
      NGX_HTTP_AFFILIATE_ZONE_GAUGE, ngx_http_affiliate_zone_offset(negatives),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "cache_evictions_total", "Entries that made room for others.",
      NGX_HTTP_AFFILIATE_ZONE_COUNTER,
      ngx_http_affiliate_zone_offset(evictions),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "cache_resets_total", "Caches emptied after a worker's death in them.",
      NGX_HTTP_AFFILIATE_ZONE_COUNTER, ngx_http_affiliate_zone_offset(resets),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "redirects_total", "Redirects by verdict and cache status.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(redirects),
      NGX_HTTP_AFFILIATE_BY_VERDICT },

    { "fallbacks_total", "Visitors sent to a fallback URL.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(fallbacks),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "not_found_total", "Codes answered 404.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(not_found),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "gone_total", "Expired and paused links answered 410.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(gone),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "unavailable_total", "Codes that could not be looked up, answered 503.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(unavailable),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "conversions_total", "Merchants' calls by what became of them.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(conversions),
      NGX_HTTP_AFFILIATE_BY_CODE },

    { "lookups_total", "Questions to Redis about links and keys.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(lookups),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "lookup_errors_total", "Questions to Redis without a usable answer.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(lookup_errors),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "invalidations_total", "Invalidations of cached links and keys.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(invalidations),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "recorded_total", "Records written into the spool.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(recorded),
      NGX_HTTP_AFFILIATE_BY_CHANNEL },

    { "dropped_total", "Records that the spool could not take.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(dropped),
      NGX_HTTP_AFFILIATE_BY_CHANNEL },

    { "shipped_records_total", "Records sent to Redis.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(shipped),
      NGX_HTTP_AFFILIATE_BY_CHANNEL },

    { "shipped_batches_total", "Batches sent to Redis.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(batches),
      NGX_HTTP_AFFILIATE_BY_CHANNEL },

    { "resent_batches_total", "Batches sent to Redis again.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(resent),
      NGX_HTTP_AFFILIATE_BY_CHANNEL },

    { "spool_syncs_total", "Times that a segment was written to disk.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(syncs),
      NGX_HTTP_AFFILIATE_BY_CHANNEL },

    { "adopted_segments_total", "Spool segments taken over from other workers.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(adopted),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "released_segments_total", "Spool segments that PostgreSQL has whole.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(released),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "corrupt_frames_total", "Torn or damaged frames found in the spool.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(corrupt),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "redis_connects_total", "Connections made to Redis.",
      NGX_HTTP_AFFILIATE_COUNTER, ngx_http_affiliate_offset(connects),
      NGX_HTTP_AFFILIATE_BY_CONNECTION },

    { "redis_connected", "Workers that are connected to Redis now.",
      NGX_HTTP_AFFILIATE_GAUGE, ngx_http_affiliate_offset(connected),
      NGX_HTTP_AFFILIATE_BY_CONNECTION },

    { "spool_bytes", "Bytes that PostgreSQL has not acknowledged.",
      NGX_HTTP_AFFILIATE_GAUGE, ngx_http_affiliate_offset(spool_bytes),
      NGX_HTTP_AFFILIATE_BY_CHANNEL },

    { "spool_oldest_seconds", "Age of the oldest unacknowledged record.",
      NGX_HTTP_AFFILIATE_AGE, ngx_http_affiliate_offset(spool_oldest),
      NGX_HTTP_AFFILIATE_BY_CHANNEL },

    { "spool_unsent_records", "Records that Redis has not got yet.",
      NGX_HTTP_AFFILIATE_GAUGE, ngx_http_affiliate_offset(spool_unsent),
      NGX_HTTP_AFFILIATE_BY_CHANNEL },

    { "spool_full", "Workers whose spool takes no records now.",
      NGX_HTTP_AFFILIATE_GAUGE, ngx_http_affiliate_offset(spool_full),
      NGX_HTTP_AFFILIATE_BY_CHANNEL },

    { "parked_requests", "Requests that wait for Redis or for the disk.",
      NGX_HTTP_AFFILIATE_GAUGE, ngx_http_affiliate_offset(parked),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "lookup_duration_seconds", "Time that questions to Redis took.",
      NGX_HTTP_AFFILIATE_TIME, ngx_http_affiliate_offset(lookup_time),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { "request_duration_seconds", "Time that requests took in all.",
      NGX_HTTP_AFFILIATE_TIME, ngx_http_affiliate_offset(total_time),
      NGX_HTTP_AFFILIATE_UNLABELLED },

    { NULL, NULL, 0, 0, NGX_HTTP_AFFILIATE_UNLABELLED }
};


/* By ngx_http_affiliate_metric_e. */
static const char *const  ngx_http_affiliate_metric_types[] =
    { "counter", "gauge", "gauge", "histogram", "counter", "gauge" };


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
    ngx_http_affiliate_status_t      st;
    ngx_http_affiliate_loc_conf_t   *alcf;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    alcf = ngx_http_get_module_loc_conf(r, ngx_http_affiliate_module);

    ngx_memzero(&st, sizeof(st));
    st.text.pool = r->pool;
    st.amcf = ngx_http_get_module_main_conf(r, ngx_http_affiliate_module);
    ngx_http_affiliate_status_zone(&st);

    if (alcf->status_format == NGX_HTTP_AFFILIATE_STATUS_PROMETHEUS) {
        type = "text/plain; version=0.0.4; charset=utf-8";
        ngx_http_affiliate_status_prometheus(&st);

    } else {
        type = "application/json";
        ngx_http_affiliate_status_json(&st);
    }

    return ngx_http_affiliate_answer(r, NGX_HTTP_OK, type, &st.text);
}


static void
ngx_http_affiliate_status_json(ngx_http_affiliate_status_t *st)
{
    const ngx_http_affiliate_metric_t  *metric;

    for (metric = ngx_http_affiliate_metrics; metric->name; metric++) {
        ngx_http_affiliate_text_printf(&st->text, "%s\"%s\":",
                                       metric == ngx_http_affiliate_metrics
                                       ? "{" : ",", metric->name);

        if (metric->type == NGX_HTTP_AFFILIATE_TIME) {
            ngx_http_affiliate_status_json_time(st, metric);

        } else {
            ngx_http_affiliate_status_json_values(st, metric, 0, 0);
        }
    }

    ngx_http_affiliate_text_puts(&st->text, "}\n");
}


/* An object for each label; i counts the values of those around this one. */

static void
ngx_http_affiliate_status_json_values(ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric, ngx_uint_t depth, ngx_uint_t i)
{
    const char                               *value, *separator;
    ngx_uint_t                                n;
    const ngx_http_affiliate_metric_label_t  *label;

    label = &metric->labels[depth];

    if (depth == NGX_HTTP_AFFILIATE_METRIC_LABELS || label->name == NULL) {
        ngx_http_affiliate_status_value(st, metric, i);
        return;
    }

    separator = "{";

    for (n = 0; n < label->n; n++) {
        value = ngx_http_affiliate_status_label(label, n);

        if (value[0] == '\0') {
            continue;
        }

        ngx_http_affiliate_text_printf(&st->text, "%s\"%s\":", separator,
                                       value);
        ngx_http_affiliate_status_json_values(st, metric, depth + 1,
                                              i * label->n + n);
        separator = ",";
    }

    ngx_http_affiliate_text_puts(&st->text, "}");
}


static void
ngx_http_affiliate_status_json_time(ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric)
{
    uint64_t    bound, sum, counts[NGX_HTTP_AFFILIATE_BUCKETS];
    ngx_uint_t  n;

    sum = ngx_http_affiliate_status_time(st, metric, counts);
    bound = NGX_HTTP_AFFILIATE_BUCKET_US;

    ngx_http_affiliate_text_puts(&st->text, "{\"buckets\":{");

    for (n = 0; n < NGX_HTTP_AFFILIATE_BUCKETS - 1; n++) {
        ngx_http_affiliate_text_printf(&st->text, "\"%uL.%06uL\":%uL,",
                                       bound / 1000000, bound % 1000000,
                                       counts[n]);
        bound *= 2;
    }

    ngx_http_affiliate_text_printf(&st->text,
                                   "\"+Inf\":%uL},\"sum\":%uL.%06uL,"
                                   "\"count\":%uL}", counts[n],
                                   sum / 1000000, sum % 1000000, counts[n]);
}


static void
ngx_http_affiliate_status_prometheus(ngx_http_affiliate_status_t *st)
{
    const ngx_http_affiliate_metric_t  *metric;

    for (metric = ngx_http_affiliate_metrics; metric->name; metric++) {
        ngx_http_affiliate_text_printf(&st->text,
                               "# HELP affiliate_%s %s\n"
                               "# TYPE affiliate_%s %s\n",
                               metric->name, metric->help, metric->name,
                               ngx_http_affiliate_metric_types[metric->type]);

        if (metric->type == NGX_HTTP_AFFILIATE_TIME) {
            ngx_http_affiliate_status_prometheus_time(st, metric);

        } else {
            ngx_http_affiliate_status_prometheus_values(st, metric);
        }
    }
}


static void
ngx_http_affiliate_status_prometheus_values(ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric)
{
    const char                               *outer, *inner;
    ngx_uint_t                                i, n, step;
    const ngx_http_affiliate_metric_label_t  *labels;

    labels = metric->labels;
    step = ngx_max(labels[1].n, 1);
    n = ngx_max(labels[0].n, 1) * step;

    for (i = 0; i < n; i++) {
        outer = ngx_http_affiliate_status_label(&labels[0], i / step);
        inner = ngx_http_affiliate_status_label(&labels[1], i % step);

        if ((outer && outer[0] == '\0') || (inner && inner[0] == '\0')) {
            continue;
        }

        ngx_http_affiliate_text_printf(&st->text, "affiliate_%s",
                                       metric->name);

        if (outer) {
            ngx_http_affiliate_text_printf(&st->text, "{%s=\"%s\"",
                                           labels[0].name, outer);

            if (inner) {
                ngx_http_affiliate_text_printf(&st->text, ",%s=\"%s\"",
                                               labels[1].name, inner);
            }

            ngx_http_affiliate_text_puts(&st->text, "}");
        }

        ngx_http_affiliate_text_puts(&st->text, " ");
        ngx_http_affiliate_status_value(st, metric, i);
        ngx_http_affiliate_text_puts(&st->text, "\n");
    }
}


static void
ngx_http_affiliate_status_prometheus_time(ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric)
{
    uint64_t    bound, sum, counts[NGX_HTTP_AFFILIATE_BUCKETS];
    ngx_uint_t  n;

    sum = ngx_http_affiliate_status_time(st, metric, counts);
    bound = NGX_HTTP_AFFILIATE_BUCKET_US;

    for (n = 0; n < NGX_HTTP_AFFILIATE_BUCKETS - 1; n++) {
        ngx_http_affiliate_text_printf(&st->text,
                                       "affiliate_%s_bucket{le=\""
                                       "%uL.%06uL\"} %uL\n",
                                       metric->name, bound / 1000000,
                                       bound % 1000000, counts[n]);
        bound *= 2;
    }

    ngx_http_affiliate_text_printf(&st->text,
                                   "affiliate_%s_bucket{le=\"+Inf\"} %uL\n"
                                   "affiliate_%s_sum %uL.%06uL\n"
                                   "affiliate_%s_count %uL\n",
                                   metric->name, counts[n],
                                   metric->name, sum / 1000000, sum % 1000000,
                                   metric->name, counts[n]);
}


/* NULL if there is no label. */

static const char *
ngx_http_affiliate_status_label(
    const ngx_http_affiliate_metric_label_t *label, ngx_uint_t i)
{
    if (label->name == NULL) {
        return NULL;
    }

    return label->values ? label->values[i] : aff_verdict_name(i);
}


static void
ngx_http_affiliate_status_value(ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric, ngx_uint_t i)
{
    size_t    offset;
    uint64_t  value, now;

    offset = metric->offset + i * sizeof(ngx_atomic_t);

    switch (metric->type) {

    case NGX_HTTP_AFFILIATE_ZONE_COUNTER:
    case NGX_HTTP_AFFILIATE_ZONE_GAUGE:
        value = *(uint64_t *) ((u_char *) &st->zone + metric->offset);
        break;

    case NGX_HTTP_AFFILIATE_AGE:
        value = ngx_http_affiliate_status_oldest(st->amcf, offset);
        now = ngx_http_affiliate_now();
        value = value && value < now ? now - value : 0;
        ngx_http_affiliate_text_printf(&st->text, "%uL.%03uL", value / 1000,
                                       value % 1000);
        return;

    default:
        value = ngx_http_affiliate_status_sum(st->amcf, offset);
        break;
    }

    ngx_http_affiliate_text_printf(&st->text, "%uL", value);
}


/* Counts up to each bound, the last one of all; the sum in microseconds. */

static uint64_t
ngx_http_affiliate_status_time(ngx_http_affiliate_status_t *st,
    const ngx_http_affiliate_metric_t *metric, uint64_t *counts)
{
    size_t      offset;
    uint64_t    count;
    ngx_uint_t  n;

    offset = metric->offset + offsetof(ngx_http_affiliate_histogram_t, bucket);
    count = 0;

    for (n = 0; n < NGX_HTTP_AFFILIATE_BUCKETS; n++) {
        count += ngx_http_affiliate_status_sum(st->amcf,
                                           offset + n * sizeof(ngx_atomic_t));
        counts[n] = count;
    }

    return ngx_http_affiliate_status_sum(st->amcf, metric->offset
                          + offsetof(ngx_http_affiliate_histogram_t, sum_us));
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
ngx_http_affiliate_status_zone(ngx_http_affiliate_status_t *st)
{
    ngx_http_affiliate_cache_use_t  use;

    if (st->amcf->zone) {
        st->zone.zone_size = st->amcf->zone->shm.size;
    }

    if (st->amcf->cache) {
        ngx_http_affiliate_cache_use(st->amcf->cache, &use);

        st->zone.cache_size = use.size;
        st->zone.cache_used = use.used;
        st->zone.links = use.links;
        st->zone.keys = use.keys;
        st->zone.negatives = use.negatives;
        st->zone.evictions = use.evictions;
        st->zone.resets = use.resets;
    }
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
