
/*
 * From the spool to Redis.
 *
 * A batch is WAITING, then SENDING (XADD is on its way), then SENT (Redis told
 * its id), then ACKED (the daemon has put its seal there after PostgreSQL
 * committed it).  Seals are read, not pushed: one GETRANGE brings those of a
 * segment from its oldest batch without one on, at intervals that grow while
 * nothing happens.  What is no seal of the batch's own name is as none, so
 * that nobody without a master key can make the spool forget anything.  A
 * batch that is SENT for long is
 * looked up in its stream: as long as it is there the daemon is merely behind;
 * if it is not, Redis lost it, and it is WAITING again.  What Redis holds is
 * compared by what names it in its header, without the MAC, so that the frames
 * need not be read again, and a new master key changes nothing.
 *
 * An adopted segment's ids are not known: its seals are read first, and what
 * has none is sent.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>

#include "ngx_http_affiliate_ship.h"
#include "ngx_http_affiliate_status.h"
#include "../protocol/bytes.h"
#include "../protocol/fault.h"


#define NGX_HTTP_AFFILIATE_SHIP_WINDOW        (512 * 1024)  /* in flight */
#define NGX_HTTP_AFFILIATE_SHIP_ADOPTED       32    /* segments at a time */
#define NGX_HTTP_AFFILIATE_SHIP_POLLS         64    /* a tick */
#define NGX_HTTP_AFFILIATE_SHIP_VERIFY        64    /* batches an EVAL */
/* Bytes of a batch's header that name it: all before the payload's length. */
#define NGX_HTTP_AFFILIATE_SHIP_IDENTITY      32

/* Milliseconds. */
#define NGX_HTTP_AFFILIATE_SHIP_TICK          100
#define NGX_HTTP_AFFILIATE_SHIP_TICK_AWAY     1000
#define NGX_HTTP_AFFILIATE_SHIP_POLL_MIN      100
#define NGX_HTTP_AFFILIATE_SHIP_POLL_MAX      2000
#define NGX_HTTP_AFFILIATE_SHIP_VERIFY_MIN    5000
#define NGX_HTTP_AFFILIATE_SHIP_VERIFY_MAX    60000

#define NGX_HTTP_AFFILIATE_SHIP_KEY_LEN                                       \
    (sizeof("aff:conversions:") + 2 * NGX_INT64_LEN)
#define NGX_HTTP_AFFILIATE_SHIP_ID_LEN        (2 * NGX_INT64_LEN + 2)


typedef enum {
    NGX_HTTP_AFFILIATE_SHIP_CONVERSIONS = 0,
    NGX_HTTP_AFFILIATE_SHIP_CLICKS,
    NGX_HTTP_AFFILIATE_SHIP_ORPHANS,
    NGX_HTTP_AFFILIATE_SHIP_SOURCES
} ngx_http_affiliate_ship_source_e;


typedef struct {
    ngx_http_affiliate_log_t        *log;       /* NULL: adopted segments */
    ngx_queue_t                     *segments;
    ngx_uint_t                       waiting;   /* batches */

    /* Redis holds all batches before this one */
    ngx_http_affiliate_segment_t    *held;
    ngx_uint_t                       held_batch;
} ngx_http_affiliate_source_t;


typedef struct {
    void                            *ident[4];

    ngx_http_affiliate_spool_conf_t *spool;
    ngx_http_affiliate_redis_t      *redis;     /* NULL: none configured */
    ngx_uint_t                       streams;
    ngx_http_affiliate_source_t      sources[NGX_HTTP_AFFILIATE_SHIP_SOURCES];
    ngx_queue_t                      orphans;
    ngx_event_t                      pump;      /* posted */
    ngx_event_t                      tick;
    u_char                          *buf;       /* a batch */
    unsigned                         refused:1; /* Redis is full or the like,
                                                   but has lost nothing */
} ngx_http_affiliate_ship_t;


/* What a reply belongs to. */
typedef struct {
    ngx_http_affiliate_source_t     *source;
    ngx_http_affiliate_segment_t    *segment;
    ngx_uint_t                       n;
    uint32_t                         batches[NGX_HTTP_AFFILIATE_SHIP_VERIFY];
} ngx_http_affiliate_call_t;


static void ngx_http_affiliate_ship_source(ngx_http_affiliate_ship_t *ship,
    ngx_uint_t n, ngx_http_affiliate_log_t *log);
static void ngx_http_affiliate_ship_batch(void *data,
    ngx_http_affiliate_segment_t *seg, ngx_http_affiliate_batch_t *batch);
static void ngx_http_affiliate_ship_orphan(void *data,
    ngx_http_affiliate_segment_t *seg);
static void ngx_http_affiliate_ship_state(void *data, ngx_uint_t up);
static void ngx_http_affiliate_ship_pump_handler(ngx_event_t *ev);
static ngx_http_affiliate_segment_t *ngx_http_affiliate_ship_next(
    ngx_http_affiliate_source_t *source);
static ngx_int_t ngx_http_affiliate_ship_send(
    ngx_http_affiliate_source_t *source, ngx_http_affiliate_segment_t *seg);
static void ngx_http_affiliate_ship_header(ngx_http_affiliate_segment_t *seg,
    ngx_uint_t n, struct aff_batch *batch);
static void ngx_http_affiliate_ship_sent(void *data, redisReply *reply);
static ngx_int_t ngx_http_affiliate_ship_id(redisReply *reply, uint64_t *id);
static void ngx_http_affiliate_ship_again(ngx_http_affiliate_source_t *source,
    ngx_http_affiliate_segment_t *seg, ngx_uint_t n);
static void ngx_http_affiliate_ship_held(ngx_http_affiliate_source_t *source);
static void ngx_http_affiliate_ship_tick_handler(ngx_event_t *ev);
static void ngx_http_affiliate_ship_visit(
    ngx_http_affiliate_source_t *source, ngx_uint_t *polls);
static void ngx_http_affiliate_ship_release(
    ngx_http_affiliate_source_t *source, ngx_http_affiliate_segment_t *seg);
static ngx_int_t ngx_http_affiliate_ship_poll(
    ngx_http_affiliate_source_t *source, ngx_http_affiliate_segment_t *seg);
static void ngx_http_affiliate_ship_polled(void *data, redisReply *reply);
static ngx_uint_t ngx_http_affiliate_ship_acked(
    ngx_http_affiliate_source_t *source, ngx_http_affiliate_segment_t *seg,
    ngx_uint_t first, const u_char *seals, size_t len);
static void ngx_http_affiliate_ship_forged(ngx_http_affiliate_segment_t *seg,
    ngx_uint_t n);
static void ngx_http_affiliate_ship_verify(ngx_http_affiliate_source_t *source,
    ngx_http_affiliate_segment_t *seg);
static void ngx_http_affiliate_ship_verified(void *data, redisReply *reply);
static void ngx_http_affiliate_ship_deleted(void *data, redisReply *reply);
static ngx_uint_t ngx_http_affiliate_ship_gauges(
    ngx_http_affiliate_ship_t *ship);
static void ngx_http_affiliate_ship_older(uint64_t *oldest, uint64_t made);
static ngx_http_affiliate_call_t *ngx_http_affiliate_ship_call(
    ngx_http_affiliate_source_t *source, ngx_http_affiliate_segment_t *seg);
static void ngx_http_affiliate_ship_ask(ngx_http_affiliate_ship_t *ship,
    ngx_http_affiliate_segment_t *seg);
static size_t ngx_http_affiliate_ship_ack_key(
    ngx_http_affiliate_segment_t *seg, u_char *key);
static size_t ngx_http_affiliate_ship_stream(ngx_http_affiliate_segment_t *seg,
    u_char *key);


static ngx_http_affiliate_ship_t  *ngx_http_affiliate_ship;


/*
 * KEYS[1] is a stream, ARGV are pairs of an entry's id and the bytes that its
 * value begins with; one character for each pair: 1 if it is there.
 */

static const char  ngx_http_affiliate_ship_verify_script[] =
    "local found = {} "
    "for i = 1, #ARGV, 2 do "
        "local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1] "
        "local value = entry and entry[2][2] "
        "found[#found + 1] = (value and "
            "string.sub(value, 1, #ARGV[i + 1]) == ARGV[i + 1]) "
            "and '1' or '0' "
    "end "
    "return table.concat(found)";


ngx_int_t
ngx_http_affiliate_ship_init(ngx_http_affiliate_redis_conf_t *redis,
    ngx_http_affiliate_spool_conf_t *spool, ngx_uint_t streams,
    ngx_http_affiliate_log_t *clicks, ngx_http_affiliate_log_t *conversions,
    ngx_cycle_t *cycle)
{
    ngx_http_affiliate_ship_t  *ship;

    if (redis->servers.nelts == 0) {
        /* records stay in the spool */
        return NGX_OK;
    }

    if (spool->keyring == NULL) {
        ngx_log_error(NGX_LOG_ALERT, cycle->log, 0,
                      "affiliate ship: no key to sign batches with");
        return NGX_ERROR;
    }

    ship = ngx_calloc(sizeof(ngx_http_affiliate_ship_t), cycle->log);
    if (ship == NULL) {
        return NGX_ERROR;
    }

    ship->buf = ngx_alloc(AFF_BATCH_MAX, cycle->log);
    if (ship->buf == NULL) {
        ngx_free(ship);
        return NGX_ERROR;
    }

    ship->ident[3] = (void *) -1;
    ship->spool = spool;
    ship->streams = ngx_max(streams, 1);

    ship->pump.handler = ngx_http_affiliate_ship_pump_handler;
    ship->pump.data = ship;
    ship->pump.log = cycle->log;

    ship->tick.handler = ngx_http_affiliate_ship_tick_handler;
    ship->tick.data = ship;
    ship->tick.log = cycle->log;
    ship->tick.cancelable = 1;

    ngx_queue_init(&ship->orphans);
    ship->sources[NGX_HTTP_AFFILIATE_SHIP_ORPHANS].segments = &ship->orphans;

    ship->redis = ngx_http_affiliate_redis_create(redis, "ship",
                                        ngx_http_affiliate_ship_state, ship);
    if (ship->redis == NULL) {
        ngx_free(ship->buf);
        ngx_free(ship);
        return NGX_ERROR;
    }

    ngx_http_affiliate_ship = ship;

    ngx_http_affiliate_ship_source(ship, NGX_HTTP_AFFILIATE_SHIP_CONVERSIONS,
                                   conversions);
    ngx_http_affiliate_ship_source(ship, NGX_HTTP_AFFILIATE_SHIP_CLICKS,
                                   clicks);

    if (ngx_worker != 0) {
        return NGX_OK;
    }

    return ngx_http_affiliate_spool_adopt(spool,
                                          NGX_HTTP_AFFILIATE_SHIP_ADOPTED,
                                          ngx_http_affiliate_ship_orphan,
                                          ship);
}


void
ngx_http_affiliate_ship_done(void)
{
    ngx_queue_t                *q;
    ngx_http_affiliate_ship_t  *ship;

    ship = ngx_http_affiliate_ship;

    if (ship == NULL) {
        return;
    }

    /* every call gets its answer, so that nothing refers to segments */
    ngx_http_affiliate_redis_destroy(ship->redis);
    ship->redis = NULL;

    while (!ngx_queue_empty(&ship->orphans)) {
        q = ngx_queue_head(&ship->orphans);
        ngx_http_affiliate_spool_abandon(
                        ngx_queue_data(q, ngx_http_affiliate_segment_t, queue));
    }

    ngx_http_affiliate_spool_adopt_done();

    if (ship->tick.timer_set) {
        ngx_del_timer(&ship->tick);
    }

    if (ship->pump.posted) {
        ngx_delete_posted_event(&ship->pump);
    }

    ngx_http_affiliate_stat_set(connected[NGX_HTTP_AFFILIATE_CONN_SHIP], 0);
    ngx_memzero((void *) ngx_http_affiliate_stats->spool_bytes,
                sizeof(ngx_http_affiliate_stats->spool_bytes));
    ngx_memzero((void *) ngx_http_affiliate_stats->spool_oldest,
                sizeof(ngx_http_affiliate_stats->spool_oldest));
    ngx_memzero((void *) ngx_http_affiliate_stats->spool_unsent,
                sizeof(ngx_http_affiliate_stats->spool_unsent));

    ngx_http_affiliate_ship = NULL;

    ngx_free(ship->buf);
    ngx_free(ship);
}


ngx_uint_t
ngx_http_affiliate_ship_ready(void)
{
    return ngx_http_affiliate_ship != NULL
           && ngx_http_affiliate_ship->redis != NULL
           && ngx_http_affiliate_redis_ready(ngx_http_affiliate_ship->redis);
}


static void
ngx_http_affiliate_ship_source(ngx_http_affiliate_ship_t *ship, ngx_uint_t n,
    ngx_http_affiliate_log_t *log)
{
    static ngx_queue_t            none = { &none, &none };

    ngx_http_affiliate_source_t  *source;

    source = &ship->sources[n];

    if (log == NULL) {
        source->segments = &none;
        return;
    }

    source->log = log;
    source->segments = ngx_http_affiliate_spool_segments(log);

    ngx_http_affiliate_spool_watch(log, ngx_http_affiliate_ship_batch, source);
}


/* The log has closed a batch, or, with none, a segment. */

static void
ngx_http_affiliate_ship_batch(void *data, ngx_http_affiliate_segment_t *seg,
    ngx_http_affiliate_batch_t *batch)
{
    ngx_http_affiliate_ship_t    *ship;
    ngx_http_affiliate_source_t  *source;

    source = data;
    ship = ngx_http_affiliate_ship;

    if (batch) {
        seg->polled = 1;
        seg->waiting++;
        seg->unacked_bytes += batch->length;
        seg->waiting_records += batch->records;
        source->waiting++;

        if (ngx_http_affiliate_redis_ready(ship->redis)) {
            ngx_post_event(&ship->pump, &ngx_posted_events);
        }
    }

    if (!ship->tick.timer_set) {
        ngx_add_timer(&ship->tick, NGX_HTTP_AFFILIATE_SHIP_TICK);
    }
}


static void
ngx_http_affiliate_ship_orphan(void *data, ngx_http_affiliate_segment_t *seg)
{
    ngx_uint_t                  i;
    ngx_http_affiliate_ship_t  *ship;

    ship = data;

    for (i = 0; i < seg->nbatches; i++) {
        seg->unacked_bytes += seg->batches[i].length;
        seg->waiting_records += seg->batches[i].records;
    }

    ngx_queue_insert_tail(&ship->orphans, &seg->queue);

    ngx_http_affiliate_ship_ask(ship, seg);
}


static void
ngx_http_affiliate_ship_state(void *data, ngx_uint_t up)
{
    ngx_uint_t                     i, n;
    ngx_queue_t                   *q;
    ngx_http_affiliate_ship_t     *ship;
    ngx_http_affiliate_source_t   *source;
    ngx_http_affiliate_segment_t  *seg;

    ship = data;

    ngx_http_affiliate_stat_set(connected[NGX_HTTP_AFFILIATE_CONN_SHIP], up);

    if (up) {
        ngx_http_affiliate_stat_inc(connects[NGX_HTTP_AFFILIATE_CONN_SHIP]);
    }

    for (n = 0; n < NGX_HTTP_AFFILIATE_SHIP_SOURCES; n++) {
        source = &ship->sources[n];

        if (source->log) {
            ngx_http_affiliate_spool_wanted(source->log, up);
        }

        if (!up) {
            continue;
        }

        for (q = ngx_queue_head(source->segments);
             q != ngx_queue_sentinel(source->segments);
             q = ngx_queue_next(q))
        {
            seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);

            ngx_http_affiliate_ship_ask(ship, seg);

            if (ship->refused) {
                continue;
            }

            /* it may be another Redis, or one that lost its tail */

            for (i = seg->oldest; i < seg->nbatches; i++) {
                seg->batches[i].due = ngx_current_msec;
                seg->batches[i].tries = 0;
            }
        }
    }

    if (up) {
        ship->refused = 0;
        ngx_post_event(&ship->pump, &ngx_posted_events);
    }
}


/* Sends as much as the window takes, a batch of each source in turn. */

static void
ngx_http_affiliate_ship_pump_handler(ngx_event_t *ev)
{
    ngx_uint_t                     n, sent;
    ngx_http_affiliate_ship_t     *ship;
    ngx_http_affiliate_segment_t  *seg;

    ship = ev->data;

    do {
        sent = 0;

        for (n = 0; n < NGX_HTTP_AFFILIATE_SHIP_SOURCES; n++) {

            if (ngx_http_affiliate_redis_in_flight(ship->redis)
                >= NGX_HTTP_AFFILIATE_SHIP_WINDOW)
            {
                /* the next reply goes on */
                return;
            }

            seg = ngx_http_affiliate_ship_next(&ship->sources[n]);

            if (seg == NULL) {
                continue;
            }

            if (ngx_http_affiliate_ship_send(&ship->sources[n], seg) != NGX_OK)
            {
                return;
            }

            sent = 1;
        }

    } while (sent);
}


/* The oldest segment with a batch to send, and seg->next on it. */

static ngx_http_affiliate_segment_t *
ngx_http_affiliate_ship_next(ngx_http_affiliate_source_t *source)
{
    ngx_queue_t                   *q;
    ngx_http_affiliate_segment_t  *seg;

    if (source->waiting == 0) {
        return NULL;
    }

    for (q = ngx_queue_head(source->segments);
         q != ngx_queue_sentinel(source->segments);
         q = ngx_queue_next(q))
    {
        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);

        if (seg->waiting == 0) {
            continue;
        }

        while (seg->batches[seg->next].state
               != NGX_HTTP_AFFILIATE_BATCH_WAITING)
        {
            seg->next++;
        }

        return seg;
    }

    return NULL;
}


static ngx_int_t
ngx_http_affiliate_ship_send(ngx_http_affiliate_source_t *source,
    ngx_http_affiliate_segment_t *seg)
{
    u_char                      *buf, key[NGX_HTTP_AFFILIATE_SHIP_KEY_LEN];
    size_t                       argvlen[5];
    ngx_uint_t                   n;
    const char                  *argv[5];
    struct aff_batch             header;
    ngx_http_affiliate_ship_t   *ship;
    ngx_http_affiliate_call_t   *call;
    ngx_http_affiliate_batch_t  *batch;

    ship = ngx_http_affiliate_ship;
    n = seg->next;
    batch = &seg->batches[n];
    buf = ship->buf;

    if (ngx_http_affiliate_spool_payload(seg, batch,
                                         buf + AFF_BATCH_HEADER_BYTES)
        != NGX_OK)
    {
        /* the others go; the file will be kept aside */

        ngx_log_error(NGX_LOG_CRIT, ngx_cycle->log, ngx_errno,
                      "affiliate spool: batch %ui of \"%s\" can't be read",
                      n, seg->name);

        seg->keep = 1;
        ngx_http_affiliate_stat_inc(corrupt);

        batch->state = NGX_HTTP_AFFILIATE_BATCH_ACKED;
        seg->acked++;
        seg->waiting--;
        seg->unacked_bytes -= batch->length;
        seg->waiting_records -= batch->records;
        source->waiting--;

        return NGX_OK;
    }

    ngx_http_affiliate_ship_header(seg, n, &header);
    header.payload = aff_slice(buf + AFF_BATCH_HEADER_BYTES, batch->length);
    aff_batch_header(&header, ship->spool->keyring, buf);

    call = ngx_http_affiliate_ship_call(source, seg);
    if (call == NULL) {
        return NGX_ERROR;
    }

    call->n = 1;
    call->batches[0] = (uint32_t) n;

    if (AFF_FAULT("ship.sending")) {
        ngx_free(call);
        return NGX_DECLINED;
    }

    argv[0] = "XADD";
    argvlen[0] = sizeof("XADD") - 1;
    argv[1] = (char *) key;
    argvlen[1] = ngx_http_affiliate_ship_stream(seg, key);
    argv[2] = "*";
    argvlen[2] = 1;
    argv[3] = AFF_STREAM_FIELD;
    argvlen[3] = sizeof(AFF_STREAM_FIELD) - 1;
    argv[4] = (char *) buf;
    argvlen[4] = AFF_BATCH_HEADER_BYTES + batch->length;

    if (ngx_http_affiliate_redis_command(ship->redis,
                                         ngx_http_affiliate_ship_sent, call,
                                         5, argv, argvlen)
        != NGX_OK)
    {
        ngx_free(call);
        return NGX_DECLINED;
    }

    (void) AFF_FAULT("ship.queued");

    batch->state = NGX_HTTP_AFFILIATE_BATCH_SENDING;
    seg->flights++;
    seg->waiting--;
    seg->waiting_records -= batch->records;
    source->waiting--;

    return NGX_OK;
}


/* All of a batch's name; the payload is the caller's. */

static void
ngx_http_affiliate_ship_header(ngx_http_affiliate_segment_t *seg, ngx_uint_t n,
    struct aff_batch *batch)
{
    batch->channel = (uint8_t) seg->channel;
    batch->spool_id = seg->spool_id;
    batch->segment = seg->number;
    batch->sequence = (uint32_t) n;
    batch->records = seg->batches[n].records;
}


static void
ngx_http_affiliate_ship_sent(void *data, redisReply *reply)
{
    uint64_t                       id[2];
    ngx_uint_t                     n;
    ngx_http_affiliate_ship_t     *ship;
    ngx_http_affiliate_call_t     *call;
    ngx_http_affiliate_batch_t    *batch;
    ngx_http_affiliate_source_t   *source;
    ngx_http_affiliate_segment_t  *seg;

    call = data;
    source = call->source;
    seg = call->segment;
    n = call->batches[0];
    ngx_free(call);

    ship = ngx_http_affiliate_ship;
    batch = &seg->batches[n];
    seg->flights--;

    if (AFF_FAULT("ship.replied")) {
        reply = NULL;
    }

    if (reply == NULL || ngx_http_affiliate_ship_id(reply, id) != NGX_OK) {

        if (reply) {
            ship->refused = 1;

            if (!ngx_http_affiliate_redis_unavailable(ship->redis, reply)) {
                ngx_http_affiliate_redis_give_up(ship->redis,
                                      (reply->type == REDIS_REPLY_ERROR)
                                      ? reply->str
                                      : "unexpected reply to XADD");
            }
        }

        if (batch->state == NGX_HTTP_AFFILIATE_BATCH_SENDING) {
            ngx_http_affiliate_ship_again(source, seg, n);
        }

        return;
    }

    ngx_http_affiliate_stat_inc(batches[seg->channel]);
    ngx_http_affiliate_stat_add(shipped[seg->channel], batch->records);

    if (batch->state == NGX_HTTP_AFFILIATE_BATCH_SENDING) {
        batch->state = NGX_HTTP_AFFILIATE_BATCH_SENT;
        batch->id[0] = id[0];
        batch->id[1] = id[1];
        batch->tries = 0;
        batch->due = ngx_current_msec + NGX_HTTP_AFFILIATE_SHIP_VERIFY_MIN;
    }

    ngx_http_affiliate_ship_ask(ship, seg);

    if (source->log) {
        ngx_http_affiliate_ship_held(source);
    }

    ngx_post_event(&ship->pump, &ngx_posted_events);
}


/* Reads "ms-n". */

static ngx_int_t
ngx_http_affiliate_ship_id(redisReply *reply, uint64_t *id)
{
    char        *p, *last;
    ngx_uint_t   n;

    if ((reply->type != REDIS_REPLY_STRING && reply->type != REDIS_REPLY_STATUS)
        || reply->str == NULL)
    {
        return NGX_ERROR;
    }

    p = reply->str;
    last = p + reply->len;

    for (n = 0; n < 2; n++) {

        if (p == last) {
            return NGX_ERROR;
        }

        for (id[n] = 0; p < last && *p >= '0' && *p <= '9'; p++) {

            if (id[n] > (UINT64_MAX - 9) / 10) {
                return NGX_ERROR;
            }

            id[n] = id[n] * 10 + (uint64_t) (*p - '0');
        }

        if (n == 0 && (p == reply->str || p == last || *p++ != '-')) {
            return NGX_ERROR;
        }
    }

    return (p == last) ? NGX_OK : NGX_ERROR;
}


/* The batch must go again. */

static void
ngx_http_affiliate_ship_again(ngx_http_affiliate_source_t *source,
    ngx_http_affiliate_segment_t *seg, ngx_uint_t n)
{
    ngx_http_affiliate_batch_t  *batch;

    batch = &seg->batches[n];

    batch->state = NGX_HTTP_AFFILIATE_BATCH_WAITING;
    seg->waiting++;
    seg->waiting_records += batch->records;
    seg->next = ngx_min(seg->next, n);
    source->waiting++;

    ngx_http_affiliate_stat_inc(resent[seg->channel]);
}


/* Moves on over the batches that Redis holds, and tells the log. */

static void
ngx_http_affiliate_ship_held(ngx_http_affiliate_source_t *source)
{
    ngx_uint_t                      moved;
    ngx_queue_t                    *q;
    ngx_http_affiliate_batch_t     *batch;
    ngx_http_affiliate_segment_t   *seg;
    ngx_http_affiliate_position_t   position;

    if (source->held == NULL) {

        if (ngx_queue_empty(source->segments)) {
            return;
        }

        q = ngx_queue_head(source->segments);
        source->held = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);
        source->held_batch = 0;
    }

    moved = 0;
    seg = source->held;

    for ( ;; ) {

        if (source->held_batch < seg->nbatches) {
            batch = &seg->batches[source->held_batch];

            if (batch->state < NGX_HTTP_AFFILIATE_BATCH_SENT) {
                break;
            }

            position.segment = seg->number;
            position.offset = batch->offset + batch->length;
            source->held_batch++;
            moved = 1;
            continue;
        }

        q = ngx_queue_next(&seg->queue);

        if (!seg->sealed || q == ngx_queue_sentinel(source->segments)) {
            break;
        }

        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);
        source->held = seg;
        source->held_batch = 0;
    }

    if (moved) {
        ngx_http_affiliate_spool_held(source->log, &position);
    }
}


static void
ngx_http_affiliate_ship_tick_handler(ngx_event_t *ev)
{
    ngx_uint_t                  n, polls;
    ngx_http_affiliate_ship_t  *ship;

    ship = ev->data;
    polls = NGX_HTTP_AFFILIATE_SHIP_POLLS;

    for (n = 0; n < NGX_HTTP_AFFILIATE_SHIP_SOURCES; n++) {
        ngx_http_affiliate_ship_visit(&ship->sources[n], &polls);
    }

    /* nothing to wait for: the next batch arms it again */

    if (ngx_http_affiliate_ship_gauges(ship) && !ev->timer_set) {
        ngx_add_timer(ev, ngx_http_affiliate_redis_ready(ship->redis)
                          ? NGX_HTTP_AFFILIATE_SHIP_TICK
                          : NGX_HTTP_AFFILIATE_SHIP_TICK_AWAY);
    }
}


/* Releases what is acknowledged, and asks for what is not. */

static void
ngx_http_affiliate_ship_visit(ngx_http_affiliate_source_t *source,
    ngx_uint_t *polls)
{
    ngx_queue_t                   *q, *next;
    ngx_http_affiliate_segment_t  *seg;

    for (q = ngx_queue_head(source->segments);
         q != ngx_queue_sentinel(source->segments);
         q = next)
    {
        next = ngx_queue_next(q);
        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);

        if (seg->sealed && seg->acked == seg->nbatches && seg->flights == 0) {
            ngx_http_affiliate_ship_release(source, seg);
            continue;
        }

        if (*polls == 0 || seg->polling
            || (ngx_msec_int_t) (ngx_current_msec - seg->poll) < 0
            || (seg->polled && seg->acked + seg->waiting == seg->nbatches))
        {
            continue;
        }

        if (ngx_http_affiliate_ship_poll(source, seg) != NGX_OK) {
            *polls = 0;
            continue;
        }

        (*polls)--;
    }
}


static void
ngx_http_affiliate_ship_release(ngx_http_affiliate_source_t *source,
    ngx_http_affiliate_segment_t *seg)
{
    u_char        key[NGX_HTTP_AFFILIATE_SHIP_KEY_LEN];
    size_t        argvlen[2];
    const char   *argv[2];
    ngx_queue_t  *q;

    argv[0] = "DEL";
    argvlen[0] = sizeof("DEL") - 1;
    argv[1] = (char *) key;
    argvlen[1] = ngx_http_affiliate_ship_ack_key(seg, key);

    if (source->held == seg) {
        q = ngx_queue_next(&seg->queue);
        source->held_batch = 0;
        source->held = (q == ngx_queue_sentinel(source->segments)) ? NULL
                       : ngx_queue_data(q, ngx_http_affiliate_segment_t,
                                        queue);
    }

    ngx_http_affiliate_spool_release(source->log, seg);

    (void) AFF_FAULT("ship.released");

    /* what is not deleted expires */

    (void) ngx_http_affiliate_redis_command(ngx_http_affiliate_ship->redis,
                                            ngx_http_affiliate_ship_deleted,
                                            ngx_http_affiliate_ship, 2, argv,
                                            argvlen);
}


static ngx_int_t
ngx_http_affiliate_ship_poll(ngx_http_affiliate_source_t *source,
    ngx_http_affiliate_segment_t *seg)
{
    u_char                      key[NGX_HTTP_AFFILIATE_SHIP_KEY_LEN];
    u_char                      range[2][NGX_INT_T_LEN];
    size_t                      argvlen[4];
    const char                 *argv[4];
    ngx_http_affiliate_call_t  *call;

    call = ngx_http_affiliate_ship_call(source, seg);
    if (call == NULL) {
        return NGX_ERROR;
    }

    argv[0] = "GETRANGE";
    argvlen[0] = sizeof("GETRANGE") - 1;
    argv[1] = (char *) key;
    argvlen[1] = ngx_http_affiliate_ship_ack_key(seg, key);
    argv[2] = (char *) range[0];
    argvlen[2] = ngx_sprintf(range[0], "%ui", seg->oldest * AFF_ACK_BYTES)
                 - range[0];
    argv[3] = (char *) range[1];
    argvlen[3] = ngx_sprintf(range[1], "%ui",
                             (seg->nbatches + 1) * AFF_ACK_BYTES - 1)
                 - range[1];

    call->n = 1;
    call->batches[0] = (uint32_t) seg->oldest;

    if (ngx_http_affiliate_redis_command(ngx_http_affiliate_ship->redis,
                                         ngx_http_affiliate_ship_polled, call,
                                         4, argv, argvlen)
        != NGX_OK)
    {
        ngx_free(call);
        return NGX_DECLINED;
    }

    seg->polling = 1;
    seg->flights++;

    return NGX_OK;
}


static void
ngx_http_affiliate_ship_polled(void *data, redisReply *reply)
{
    ngx_uint_t                     n, first;
    ngx_http_affiliate_ship_t     *ship;
    ngx_http_affiliate_call_t     *call;
    ngx_http_affiliate_source_t   *source;
    ngx_http_affiliate_segment_t  *seg;

    call = data;
    source = call->source;
    seg = call->segment;
    first = call->batches[0];
    ngx_free(call);

    ship = ngx_http_affiliate_ship;
    seg->polling = 0;
    seg->flights--;

    if (reply == NULL
        || ngx_http_affiliate_redis_unavailable(ship->redis, reply))
    {
        return;
    }

    if (reply->type != REDIS_REPLY_STRING && reply->type != REDIS_REPLY_ERROR) {

        /* the next one may be another segment's: it must not be believed */

        ngx_http_affiliate_redis_give_up(ship->redis,
                                         "unexpected reply to GETRANGE");
        return;
    }

    n = 0;

    if (reply->type == REDIS_REPLY_STRING && reply->str != NULL) {
        n = ngx_http_affiliate_ship_acked(source, seg, first,
                                          (u_char *) reply->str, reply->len);
    }

    if (!seg->polled) {
        seg->polled = 1;
        seg->waiting = seg->nbatches - seg->acked;
        source->waiting += seg->waiting;

        ngx_post_event(&ship->pump, &ngx_posted_events);
    }

    seg->interval = n ? NGX_HTTP_AFFILIATE_SHIP_POLL_MIN
                    : ngx_min(seg->interval * 2,
                              NGX_HTTP_AFFILIATE_SHIP_POLL_MAX);
    seg->poll = ngx_current_msec + seg->interval;

    if (n && source->log) {
        ngx_http_affiliate_ship_held(source);
    }

    ngx_http_affiliate_ship_verify(source, seg);
}


/* Seals of the batches from "first" on.  How many were new. */

static ngx_uint_t
ngx_http_affiliate_ship_acked(ngx_http_affiliate_source_t *source,
    ngx_http_affiliate_segment_t *seg, ngx_uint_t first, const u_char *seals,
    size_t len)
{
    uint64_t                     seal;
    ngx_uint_t                   i, n, end;
    struct aff_batch             name;
    ngx_http_affiliate_batch_t  *batch;

    n = 0;
    end = ngx_min(seg->nbatches, first + len / AFF_ACK_BYTES);

    for (i = first; i < end; i++) {

        batch = &seg->batches[i];
        seal = aff_load_le64(seals + (i - first) * AFF_ACK_BYTES);

        if (batch->state == NGX_HTTP_AFFILIATE_BATCH_ACKED || seal == 0) {
            continue;
        }

        ngx_http_affiliate_ship_header(seg, i, &name);

        if (!aff_ack_valid(&name, ngx_http_affiliate_ship->spool->keyring,
                           seal))
        {
            ngx_http_affiliate_ship_forged(seg, i);
            continue;
        }

        if (batch->state == NGX_HTTP_AFFILIATE_BATCH_WAITING) {
            seg->waiting_records -= batch->records;

            if (seg->polled) {
                seg->waiting--;
                source->waiting--;
            }
        }

        batch->state = NGX_HTTP_AFFILIATE_BATCH_ACKED;
        seg->unacked_bytes -= batch->length;
        seg->acked++;
        n++;

        (void) AFF_FAULT("ship.acknowledged");
    }

    return n;
}


/* Once a segment: the rest is likely the same. */

static void
ngx_http_affiliate_ship_forged(ngx_http_affiliate_segment_t *seg, ngx_uint_t n)
{
    if (seg->forged) {
        return;
    }

    seg->forged = 1;

    ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                  "affiliate ship: the acknowledgement of batch %ui in Redis' "
                  "\"aff:acked:%016xL:%uL\" was not made with a known key, "
                  "the batch stays in the spool",
                  n, seg->spool_id, seg->number);
}


/* Asks whether Redis still holds the batches that are due. */

static void
ngx_http_affiliate_ship_verify(ngx_http_affiliate_source_t *source,
    ngx_http_affiliate_segment_t *seg)
{
    u_char                      *p, key[NGX_HTTP_AFFILIATE_SHIP_KEY_LEN];
    u_char                       id[NGX_HTTP_AFFILIATE_SHIP_VERIFY]
                                   [NGX_HTTP_AFFILIATE_SHIP_ID_LEN];
    u_char                       header[NGX_HTTP_AFFILIATE_SHIP_VERIFY]
                                       [AFF_BATCH_HEADER_BYTES];
    size_t                       argvlen[4
                                        + 2 * NGX_HTTP_AFFILIATE_SHIP_VERIFY];
    ngx_uint_t                   i, argc;
    const char                  *argv[4 + 2 * NGX_HTTP_AFFILIATE_SHIP_VERIFY];
    struct aff_batch             name;
    ngx_http_affiliate_ship_t   *ship;
    ngx_http_affiliate_call_t   *call;
    ngx_http_affiliate_batch_t  *batch;

    ship = ngx_http_affiliate_ship;

    if (seg->verifying) {
        return;
    }

    call = ngx_http_affiliate_ship_call(source, seg);
    if (call == NULL) {
        return;
    }

    argc = 4;

    for (i = seg->oldest;
         i < seg->nbatches && call->n < NGX_HTTP_AFFILIATE_SHIP_VERIFY;
         i++)
    {
        batch = &seg->batches[i];

        if (batch->state != NGX_HTTP_AFFILIATE_BATCH_SENT
            || (ngx_msec_int_t) (ngx_current_msec - batch->due) < 0)
        {
            continue;
        }

        p = ngx_sprintf(id[call->n], "%uL-%uL", batch->id[0], batch->id[1]);
        argv[argc] = (char *) id[call->n];
        argvlen[argc++] = p - id[call->n];

        ngx_http_affiliate_ship_header(seg, i, &name);
        name.payload = aff_slice(NULL, 0);
        aff_batch_header(&name, ship->spool->keyring, header[call->n]);
        argv[argc] = (char *) header[call->n];
        argvlen[argc++] = NGX_HTTP_AFFILIATE_SHIP_IDENTITY;

        call->batches[call->n++] = (uint32_t) i;
    }

    if (call->n == 0) {
        ngx_free(call);
        return;
    }

    argv[0] = "EVAL";
    argvlen[0] = sizeof("EVAL") - 1;
    argv[1] = ngx_http_affiliate_ship_verify_script;
    argvlen[1] = sizeof(ngx_http_affiliate_ship_verify_script) - 1;
    argv[2] = "1";
    argvlen[2] = 1;
    argv[3] = (char *) key;
    argvlen[3] = ngx_http_affiliate_ship_stream(seg, key);

    if (ngx_http_affiliate_redis_command(ship->redis,
                                         ngx_http_affiliate_ship_verified,
                                         call, (int) argc, argv, argvlen)
        != NGX_OK)
    {
        ngx_free(call);
        return;
    }

    seg->verifying = 1;
    seg->flights++;
}


static void
ngx_http_affiliate_ship_verified(void *data, redisReply *reply)
{
    ngx_uint_t                     i, present;
    ngx_msec_t                     delay;
    ngx_http_affiliate_ship_t     *ship;
    ngx_http_affiliate_call_t     *call;
    ngx_http_affiliate_batch_t    *batch;
    ngx_http_affiliate_source_t   *source;
    ngx_http_affiliate_segment_t  *seg;

    call = data;
    source = call->source;
    seg = call->segment;
    ship = ngx_http_affiliate_ship;

    seg->verifying = 0;
    seg->flights--;

    if (reply == NULL
        || ngx_http_affiliate_redis_unavailable(ship->redis, reply))
    {
        ngx_free(call);
        return;
    }

    if (reply->type != REDIS_REPLY_STRING && reply->type != REDIS_REPLY_ERROR) {
        ngx_http_affiliate_redis_give_up(ship->redis,
                                         "unexpected reply to EVAL");
        ngx_free(call);
        return;
    }

    /* an answer that tells nothing is asked for again later */

    present = (reply->type != REDIS_REPLY_STRING || reply->str == NULL
               || (size_t) reply->len != call->n);

    for (i = 0; i < call->n; i++) {
        batch = &seg->batches[call->batches[i]];

        if (batch->state != NGX_HTTP_AFFILIATE_BATCH_SENT) {
            continue;
        }

        if (!present && reply->str[i] != '1') {
            ngx_http_affiliate_ship_again(source, seg, call->batches[i]);
            continue;
        }

        /* 10, 20, 40, 60, 60 ... seconds */

        if (batch->tries < 4) {
            batch->tries++;
        }

        delay = (ngx_msec_t) NGX_HTTP_AFFILIATE_SHIP_VERIFY_MIN << batch->tries;
        batch->due = ngx_current_msec
                     + ngx_min(delay, NGX_HTTP_AFFILIATE_SHIP_VERIFY_MAX);
    }

    ngx_free(call);

    /* more may be due than one call takes */
    ngx_http_affiliate_ship_verify(source, seg);

    ngx_post_event(&ship->pump, &ngx_posted_events);
}


static void
ngx_http_affiliate_ship_deleted(void *data, redisReply *reply)
{
    ngx_http_affiliate_ship_t *ship = data;

    (void) ngx_http_affiliate_redis_unavailable(ship->redis, reply);
}


/* Fills the gauges; whether there is anything to wait for. */

static ngx_uint_t
ngx_http_affiliate_ship_gauges(ngx_http_affiliate_ship_t *ship)
{
    size_t                         tail;
    uint64_t                       made;
    uint64_t                       bytes[3], oldest[3], unsent[3];
    ngx_uint_t                     n, c, busy;
    ngx_queue_t                   *q;
    ngx_http_affiliate_source_t   *source;
    ngx_http_affiliate_segment_t  *seg;

    ngx_memzero(bytes, sizeof(bytes));
    ngx_memzero(oldest, sizeof(oldest));
    ngx_memzero(unsent, sizeof(unsent));

    busy = 0;

    for (n = 0; n < NGX_HTTP_AFFILIATE_SHIP_SOURCES; n++) {
        source = &ship->sources[n];

        if (source->log) {
            c = (n == NGX_HTTP_AFFILIATE_SHIP_CLICKS)
                ? AFF_CHANNEL_CLICKS : AFF_CHANNEL_CONVERSIONS;

            unsent[c] += ngx_http_affiliate_spool_tail(source->log, &tail,
                                                       &made);
            bytes[c] += tail;
            ngx_http_affiliate_ship_older(&oldest[c], made);
        }

        for (q = ngx_queue_head(source->segments);
             q != ngx_queue_sentinel(source->segments);
             q = ngx_queue_next(q))
        {
            seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);
            c = seg->channel;

            bytes[c] += seg->unacked_bytes;
            unsent[c] += seg->waiting_records;

            if (ngx_http_affiliate_spool_oldest(seg) < seg->nbatches) {
                ngx_http_affiliate_ship_older(&oldest[c],
                                              seg->batches[seg->oldest].made);
            }

            if (seg->sealed || seg->acked != seg->nbatches || seg->flights) {
                busy = 1;
            }
        }
    }

    for (c = AFF_CHANNEL_CLICKS; c <= AFF_CHANNEL_CONVERSIONS; c++) {
        ngx_http_affiliate_stat_set(spool_bytes[c], bytes[c]);
        ngx_http_affiliate_stat_set(spool_oldest[c], oldest[c]);
        ngx_http_affiliate_stat_set(spool_unsent[c], unsent[c]);

        busy |= (bytes[c] != 0);
    }

    return busy;
}


static void
ngx_http_affiliate_ship_older(uint64_t *oldest, uint64_t made)
{
    if (made && (*oldest == 0 || made < *oldest)) {
        *oldest = made;
    }
}


static ngx_http_affiliate_call_t *
ngx_http_affiliate_ship_call(ngx_http_affiliate_source_t *source,
    ngx_http_affiliate_segment_t *seg)
{
    ngx_http_affiliate_call_t  *call;

    call = ngx_alloc(sizeof(ngx_http_affiliate_call_t), ngx_cycle->log);

    if (call) {
        call->source = source;
        call->segment = seg;
        call->n = 0;
    }

    return call;
}


/* Something may have happened to the segment: its seals are asked for soon. */

static void
ngx_http_affiliate_ship_ask(ngx_http_affiliate_ship_t *ship,
    ngx_http_affiliate_segment_t *seg)
{
    ngx_msec_t  poll;

    poll = ngx_current_msec + NGX_HTTP_AFFILIATE_SHIP_POLL_MIN;

    if (seg->interval == 0 || (ngx_msec_int_t) (poll - seg->poll) < 0) {
        seg->poll = poll;
    }

    seg->interval = NGX_HTTP_AFFILIATE_SHIP_POLL_MIN;

    if (!ship->tick.timer_set) {
        ngx_add_timer(&ship->tick, NGX_HTTP_AFFILIATE_SHIP_TICK);
    }
}


static size_t
ngx_http_affiliate_ship_ack_key(ngx_http_affiliate_segment_t *seg, u_char *key)
{
    return ngx_sprintf(key, "aff:acked:%016xL:%uL", seg->spool_id, seg->number)
           - key;
}


static size_t
ngx_http_affiliate_ship_stream(ngx_http_affiliate_segment_t *seg, u_char *key)
{
    return ngx_sprintf(key, "aff:%s:%uL",
                       (seg->channel == AFF_CHANNEL_CLICKS) ? "clicks"
                                                            : "conversions",
                       seg->spool_id % ngx_http_affiliate_ship->streams)
           - key;
}
