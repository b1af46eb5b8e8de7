
/*
 * One lookup is in flight per name and worker; requests that ask meanwhile
 * wait in its queue.  A lookup is what the reply belongs to, never a request:
 * requests come and go, their cleanup takes them out of the queue.
 *
 * Until the connection is up, and for as long as a request would wait anyway
 * after it was lost, a lookup is kept and sent when it is up.
 */

#include "ngx_http_affiliate.h"


#define NGX_HTTP_AFFILIATE_LOOKUPS_MAX   4096
#define NGX_HTTP_AFFILIATE_LOG_INTERVAL  60000
#define NGX_HTTP_AFFILIATE_NEAR          256   /* links that a worker keeps */
#define NGX_HTTP_AFFILIATE_NEAR_BYTES    512   /* of code and record */


struct ngx_http_affiliate_lookup_s {
    ngx_rbtree_node_t                   node;      /* key is the name's hash */
    ngx_queue_t                         unsent;
    ngx_queue_t                         waiters;   /* of questions */
    ngx_event_t                         event;
    ngx_http_affiliate_main_conf_t     *amcf;
    ngx_http_affiliate_cache_mark_t     mark;
    ngx_http_affiliate_kind_e           kind;
    ngx_http_affiliate_cache_status_e   status;    /* MISS: record is set */
    u_char                             *record;
    size_t                              len;
    uint64_t                            sent_us;   /* 0: not sent yet */
    ngx_str_t                           name;
    unsigned                            ended:1;   /* status is set */
};


static ngx_int_t ngx_http_affiliate_lookup_unpack(
    ngx_http_affiliate_question_t *q, const u_char *data, size_t len,
    ngx_http_affiliate_cache_status_e status);
static ngx_int_t ngx_http_affiliate_lookup_refresh(ngx_http_request_t *r,
    ngx_http_affiliate_question_t *q);
static ngx_int_t ngx_http_affiliate_lookup_park(ngx_http_request_t *r,
    ngx_http_affiliate_question_t *q);
static void ngx_http_affiliate_lookup_forget(ngx_http_affiliate_question_t *q);
static void ngx_http_affiliate_lookup_abort(void *data);
static void ngx_http_affiliate_lookup_timeout(ngx_event_t *ev);
static void ngx_http_affiliate_lookup_resume(ngx_http_affiliate_question_t *q,
    ngx_http_affiliate_lookup_t *lookup);

static ngx_http_affiliate_lookup_t *ngx_http_affiliate_lookup_find(
    ngx_http_affiliate_kind_e kind, ngx_str_t *name);
static ngx_http_affiliate_lookup_t *ngx_http_affiliate_lookup_create(
    ngx_http_affiliate_main_conf_t *amcf, ngx_http_affiliate_kind_e kind,
    ngx_str_t *name);
static ngx_int_t ngx_http_affiliate_lookup_send(
    ngx_http_affiliate_lookup_t *lookup);
static void ngx_http_affiliate_lookup_end(ngx_http_affiliate_lookup_t *lookup,
    ngx_http_affiliate_cache_status_e status);
static void ngx_http_affiliate_lookup_free(
    ngx_http_affiliate_lookup_t *lookup);
static void ngx_http_affiliate_lookup_finish(ngx_event_t *ev);
static void ngx_http_affiliate_lookup_reply(void *data, redisReply *reply);
static ngx_http_affiliate_cache_status_e ngx_http_affiliate_lookup_read(
    ngx_http_affiliate_lookup_t *lookup, redisReply *reply);
static ngx_http_affiliate_cache_status_e ngx_http_affiliate_lookup_record(
    ngx_http_affiliate_lookup_t *lookup, redisReply *reply);
static void ngx_http_affiliate_lookup_state(void *data, ngx_uint_t up);
static void ngx_http_affiliate_lookup_message(void *data, ngx_str_t *message);
static void ngx_http_affiliate_lookup_subscribed(void *data, ngx_uint_t up);
static void ngx_http_affiliate_lookup_insert_value(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel);


typedef struct {
    ngx_http_affiliate_cache_t         *cache;     /* NULL: none */
    uint32_t                            version;   /* of the cache */
    ngx_msec_t                          fresh;     /* until */
    ngx_msec_t                          second;    /* when it was kept */
    struct aff_link                     link;
    u_char                              data[NGX_HTTP_AFFILIATE_NEAR_BYTES];
} ngx_http_affiliate_near_t;


typedef struct {
    ngx_str_t                           prefix;    /* of the key in Redis */
    ngx_str_t                           message;   /* of an invalidation */
} ngx_http_affiliate_lookup_kind_t;


static ngx_http_affiliate_lookup_kind_t  ngx_http_affiliate_lookup_kinds[] = {
    { ngx_string("aff:link:"), ngx_string("link:") },
    { ngx_string("aff:key:"), ngx_string("key:") }
};


static ngx_str_t  ngx_http_affiliate_lookup_channel =
    ngx_string("aff:invalidate");


ngx_http_affiliate_redis_t  *ngx_http_affiliate_lookup_redis;

static ngx_http_affiliate_redis_t   *ngx_http_affiliate_lookup_subscriber;

static ngx_rbtree_t                  ngx_http_affiliate_lookups;
static ngx_rbtree_node_t             ngx_http_affiliate_lookups_sentinel;
static ngx_queue_t                   ngx_http_affiliate_lookups_unsent;
static ngx_uint_t                    ngx_http_affiliate_lookups_n;
static ngx_uint_t                    ngx_http_affiliate_parked_n;
static ngx_uint_t                    ngx_http_affiliate_parked_max;

static ngx_msec_t                    ngx_http_affiliate_lookup_down_since;
static ngx_msec_t                    ngx_http_affiliate_lookup_logged;

/* What was found, until it is unpacked. */
static ngx_http_affiliate_record_t   ngx_http_affiliate_lookup_found;

/*
 * Links of this second, unpacked: a hot one is taken from the zone, under its
 * mutex, once a second and whenever anything in the zone changes.
 */
static ngx_http_affiliate_near_t     ngx_http_affiliate_lookup_near[
                                                NGX_HTTP_AFFILIATE_NEAR];


#define ngx_http_affiliate_near(name)                                        \
    &ngx_http_affiliate_lookup_near[                                         \
        ngx_http_affiliate_cache_hash(NGX_HTTP_AFFILIATE_LINK, name)         \
        % NGX_HTTP_AFFILIATE_NEAR]


static ngx_int_t
ngx_http_affiliate_lookup_hit(ngx_http_affiliate_question_t *q,
    ngx_http_affiliate_cache_t *cache)
{
    ngx_http_affiliate_near_t  *near;

    near = ngx_http_affiliate_near(&q->name);

    if (near->cache != cache
        || near->second != ngx_current_msec / 1000
        || near->version != ngx_http_affiliate_cache_version(cache)
        || (ngx_msec_int_t) (near->fresh - ngx_current_msec) <= 0
        || near->link.code.len != q->name.len
        || ngx_memcmp(near->link.code.data, q->name.data, q->name.len) != 0)
    {
        return NGX_DECLINED;
    }

    q->link = &near->link;
    q->status = NGX_HTTP_AFFILIATE_HIT;

    return NGX_OK;
}


/* A fresh link that is too large to be kept here is unpacked as others are. */

static ngx_int_t
ngx_http_affiliate_lookup_keep(ngx_http_affiliate_question_t *q,
    ngx_http_affiliate_cache_t *cache, ngx_http_affiliate_record_t *record)
{
    ngx_http_affiliate_near_t  *near;

    if (q->kind != NGX_HTTP_AFFILIATE_LINK
        || q->name.len + record->len > NGX_HTTP_AFFILIATE_NEAR_BYTES)
    {
        return ngx_http_affiliate_lookup_unpack(q, record->data, record->len,
                                                NGX_HTTP_AFFILIATE_HIT);
    }

    near = ngx_http_affiliate_near(&q->name);
    near->cache = NULL;

    if (ngx_http_affiliate_link_unpack(&near->link, near->data, &q->name,
                                       record->data, record->len)
        != NGX_OK)
    {
        q->status = NGX_HTTP_AFFILIATE_UNKNOWN;
        return NGX_ERROR;
    }

    near->cache = cache;
    near->version = record->version;
    near->fresh = record->fresh;
    near->second = ngx_current_msec / 1000;

    q->link = &near->link;
    q->status = NGX_HTTP_AFFILIATE_HIT;

    return NGX_OK;
}


static ngx_int_t
ngx_http_affiliate_lookup_unpack(ngx_http_affiliate_question_t *q,
    const u_char *data, size_t len, ngx_http_affiliate_cache_status_e status)
{
    ngx_pool_t       *pool;
    struct aff_link  *link;

    pool = q->request->pool;

    if (q->kind == NGX_HTTP_AFFILIATE_LINK) {
        link = ngx_palloc(pool, sizeof(struct aff_link) + q->name.len + len);

        if (link
            && ngx_http_affiliate_link_unpack(link, (u_char *) (link + 1),
                                              &q->name, data, len)
               == NGX_OK)
        {
            q->link = link;
        }

    } else {
        q->key = ngx_http_affiliate_key_unpack(pool, &q->name, data, len);
    }

    if (q->link == NULL && q->key == NULL) {
        q->status = NGX_HTTP_AFFILIATE_UNKNOWN;
        return NGX_ERROR;
    }

    q->status = status;

    return NGX_OK;
}


ngx_int_t
ngx_http_affiliate_lookup(ngx_http_request_t *r,
    ngx_http_affiliate_question_t *q)
{
    ngx_msec_t                          lock;
    ngx_uint_t                          ready, refresh;
    ngx_http_affiliate_record_t        *record;
    ngx_http_affiliate_found_e          found;
    ngx_http_affiliate_loc_conf_t      *alcf;
    ngx_http_affiliate_main_conf_t     *amcf;
    ngx_http_affiliate_cache_status_e   status;

    amcf = ngx_http_get_module_main_conf(r, ngx_http_affiliate_module);
    alcf = ngx_http_get_module_loc_conf(r, ngx_http_affiliate_module);

    q->request = r;
    q->link = NULL;
    q->key = NULL;
    q->time = 0;
    q->lookup = NULL;

    if (q->kind == NGX_HTTP_AFFILIATE_LINK
        && ngx_http_affiliate_lookup_hit(q, amcf->cache) == NGX_OK)
    {
        return NGX_OK;
    }

    ready = ngx_http_affiliate_lookup_redis
            && ngx_http_affiliate_redis_ready(ngx_http_affiliate_lookup_redis);

    lock = ready ? ngx_max(alcf->lookup_timeout, 1) : 0;
    record = &ngx_http_affiliate_lookup_found;

    found = ngx_http_affiliate_cache_get(amcf->cache, q->kind, &q->name,
                                         &amcf->cache_times, lock,
                                         record, &refresh);

    switch (found) {

    case NGX_HTTP_AFFILIATE_FRESH:
        return ngx_http_affiliate_lookup_keep(q, amcf->cache, record);

    case NGX_HTTP_AFFILIATE_NOT_THERE:
        q->status = NGX_HTTP_AFFILIATE_NEGATIVE;
        return NGX_OK;

    case NGX_HTTP_AFFILIATE_OLD:
        status = NGX_HTTP_AFFILIATE_UPDATING;

        if (!ready
            || (refresh && ngx_http_affiliate_lookup_refresh(r, q) != NGX_OK))
        {
            status = NGX_HTTP_AFFILIATE_STALE;
        }

        return ngx_http_affiliate_lookup_unpack(q, record->data, record->len,
                                                status);

    case NGX_HTTP_AFFILIATE_CHANGED:
        if (ready && ngx_http_affiliate_lookup_park(r, q) == NGX_OK) {
            return NGX_DONE;
        }

        return ngx_http_affiliate_lookup_unpack(q, record->data, record->len,
                                                NGX_HTTP_AFFILIATE_STALE);

    default: /* NGX_HTTP_AFFILIATE_ABSENT */
        break;
    }

    if (ngx_http_affiliate_lookup_redis
        && (ready
            || ngx_current_msec - ngx_http_affiliate_lookup_down_since
               < alcf->lookup_timeout)
        && ngx_http_affiliate_lookup_park(r, q) == NGX_OK)
    {
        return NGX_DONE;
    }

    q->status = NGX_HTTP_AFFILIATE_UNKNOWN;

    return NGX_OK;
}


/* Asks for a name that nobody waits for. */

static ngx_int_t
ngx_http_affiliate_lookup_refresh(ngx_http_request_t *r,
    ngx_http_affiliate_question_t *q)
{
    ngx_http_affiliate_main_conf_t  *amcf;

    if (ngx_http_affiliate_lookup_find(q->kind, &q->name)) {
        return NGX_OK;
    }

    amcf = ngx_http_get_module_main_conf(r, ngx_http_affiliate_module);

    return ngx_http_affiliate_lookup_create(amcf, q->kind, &q->name)
           ? NGX_OK : NGX_DECLINED;
}


static ngx_int_t
ngx_http_affiliate_lookup_park(ngx_http_request_t *r,
    ngx_http_affiliate_question_t *q)
{
    ngx_connection_t                *c;
    ngx_http_cleanup_t              *cln;
    ngx_http_affiliate_lookup_t     *lookup;
    ngx_http_affiliate_loc_conf_t   *alcf;
    ngx_http_affiliate_main_conf_t  *amcf;

    if (ngx_http_affiliate_parked_n >= ngx_http_affiliate_parked_max) {
        return NGX_DECLINED;
    }

    cln = ngx_http_cleanup_add(r, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    lookup = ngx_http_affiliate_lookup_find(q->kind, &q->name);

    if (lookup == NULL) {
        amcf = ngx_http_get_module_main_conf(r, ngx_http_affiliate_module);

        lookup = ngx_http_affiliate_lookup_create(amcf, q->kind, &q->name);
        if (lookup == NULL) {
            return NGX_DECLINED;
        }
    }

    c = r->connection;
    alcf = ngx_http_get_module_loc_conf(r, ngx_http_affiliate_module);

    cln->handler = ngx_http_affiliate_lookup_abort;
    cln->data = q;

    q->cleanup = cln;
    q->lookup = lookup;
    q->start = ngx_current_msec;

    ngx_memzero(&q->timer, sizeof(ngx_event_t));
    q->timer.handler = ngx_http_affiliate_lookup_timeout;
    q->timer.data = c;
    q->timer.log = c->log;

    ngx_queue_insert_tail(&lookup->waiters, &q->queue);
    ngx_add_timer(&q->timer, alcf->lookup_timeout);

    ngx_http_affiliate_parked_n++;
    ngx_http_affiliate_stat_set(parked, ngx_http_affiliate_parked_n);

    r->read_event_handler = ngx_http_test_reading;
    r->write_event_handler = ngx_http_request_empty_handler;

    if (c->read->ready) {
        ngx_post_event(c->read, &ngx_posted_events);

    } else if (ngx_handle_read_event(c->read, 0) != NGX_OK) {
        ngx_http_affiliate_lookup_abort(q);
        return NGX_ERROR;
    }

    r->main->count++;

    return NGX_OK;
}


/* The request no longer waits; its lookup may. */

static void
ngx_http_affiliate_lookup_forget(ngx_http_affiliate_question_t *q)
{
    /* see ngx_http_affiliate_queue_take() */
    ngx_queue_remove(&q->queue);  /* NOLINT(clang-analyzer-*) */

    if (q->timer.timer_set) {
        ngx_del_timer(&q->timer);
    }

    q->cleanup->handler = NULL;
    q->time = ngx_current_msec - q->start;

    ngx_http_affiliate_parked_n--;
    ngx_http_affiliate_stat_set(parked, ngx_http_affiliate_parked_n);
}


static void
ngx_http_affiliate_lookup_abort(void *data)
{
    ngx_http_affiliate_question_t *q = data;

    ngx_http_affiliate_lookup_t  *lookup;

    ngx_http_affiliate_lookup_forget(q);

    lookup = q->lookup;
    q->lookup = NULL;

    if (lookup->sent_us == 0 && !lookup->ended
        && ngx_queue_empty(&lookup->waiters))
    {
        ngx_http_affiliate_lookup_end(lookup, NGX_HTTP_AFFILIATE_UNKNOWN);
    }
}


static void
ngx_http_affiliate_lookup_timeout(ngx_event_t *ev)
{
    ngx_http_affiliate_question_t  *q;

    q = (ngx_http_affiliate_question_t *)
            ((u_char *) ev - offsetof(ngx_http_affiliate_question_t, timer));

    ngx_log_debug1(NGX_LOG_DEBUG_HTTP, ev->log, 0,
                   "affiliate lookup of \"%V\" timed out", &q->name);

    ngx_http_affiliate_lookup_abort(q);
    ngx_http_affiliate_lookup_resume(q, NULL);
}


/* Goes on with a forgotten question's request; nothing of it is left after. */

static void
ngx_http_affiliate_lookup_resume(ngx_http_affiliate_question_t *q,
    ngx_http_affiliate_lookup_t *lookup)
{
    ngx_uint_t                          refresh;
    ngx_connection_t                   *c;
    ngx_http_request_t                 *r;
    ngx_http_affiliate_record_t        *record;
    ngx_http_affiliate_found_e          found;
    ngx_http_affiliate_main_conf_t     *amcf;
    ngx_http_affiliate_cache_status_e   status;

    r = q->request;
    c = r->connection;

    status = lookup ? lookup->status : NGX_HTTP_AFFILIATE_UNKNOWN;

    switch (status) {

    case NGX_HTTP_AFFILIATE_MISS:
        (void) ngx_http_affiliate_lookup_unpack(q, lookup->record,
                                                lookup->len, status);
        break;

    case NGX_HTTP_AFFILIATE_NEGATIVE:
        q->status = status;
        break;

    default:

        /* an answer that can't be had: what is known is better than nothing */

        amcf = ngx_http_get_module_main_conf(r, ngx_http_affiliate_module);
        record = &ngx_http_affiliate_lookup_found;
        q->status = NGX_HTTP_AFFILIATE_UNKNOWN;

        found = ngx_http_affiliate_cache_get(amcf->cache, q->kind, &q->name,
                                             &amcf->cache_times, 0, record,
                                             &refresh);

        if (found == NGX_HTTP_AFFILIATE_NOT_THERE) {
            q->status = NGX_HTTP_AFFILIATE_NEGATIVE;

        } else if (found != NGX_HTTP_AFFILIATE_ABSENT) {
            (void) ngx_http_affiliate_lookup_unpack(q, record->data,
                                                  record->len,
                                                  NGX_HTTP_AFFILIATE_STALE);
        }
    }

    ngx_http_set_log_request(c->log, r);

    ngx_http_finalize_request(r, q->handler(r));

    ngx_http_run_posted_requests(c);
}


static ngx_http_affiliate_lookup_t *
ngx_http_affiliate_lookup_find(ngx_http_affiliate_kind_e kind, ngx_str_t *name)
{
    uint32_t                      hash;
    ngx_int_t                     rc;
    ngx_rbtree_node_t            *node, *sentinel;
    ngx_http_affiliate_lookup_t  *lookup;

    hash = ngx_http_affiliate_cache_hash(kind, name);

    node = ngx_http_affiliate_lookups.root;
    sentinel = ngx_http_affiliate_lookups.sentinel;

    while (node != sentinel) {

        if (hash != node->key) {
            node = (hash < node->key) ? node->left : node->right;
            continue;
        }

        lookup = ngx_rbtree_data(node, ngx_http_affiliate_lookup_t, node);

        rc = (ngx_int_t) kind - (ngx_int_t) lookup->kind;

        if (rc == 0) {
            rc = ngx_memn2cmp(name->data, lookup->name.data, name->len,
                              lookup->name.len);
        }

        if (rc == 0) {
            return lookup;
        }

        node = (rc < 0) ? node->left : node->right;
    }

    return NULL;
}


static void
ngx_http_affiliate_lookup_insert_value(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel)
{
    ngx_int_t                      rc;
    ngx_rbtree_node_t            **p;
    ngx_http_affiliate_lookup_t   *lookup, *other;

    lookup = ngx_rbtree_data(node, ngx_http_affiliate_lookup_t, node);

    for ( ;; ) {

        if (node->key != temp->key) {
            p = (node->key < temp->key) ? &temp->left : &temp->right;

        } else {
            other = ngx_rbtree_data(temp, ngx_http_affiliate_lookup_t, node);

            rc = (ngx_int_t) lookup->kind - (ngx_int_t) other->kind;

            if (rc == 0) {
                rc = ngx_memn2cmp(lookup->name.data, other->name.data,
                                  lookup->name.len, other->name.len);
            }

            p = (rc < 0) ? &temp->left : &temp->right;
        }

        if (*p == sentinel) {
            break;
        }

        temp = *p;
    }

    *p = node;
    node->parent = temp;
    node->left = sentinel;
    node->right = sentinel;
    ngx_rbt_red(node);
}


/* Sent at once where that is possible, else when the connection is up. */

static ngx_http_affiliate_lookup_t *
ngx_http_affiliate_lookup_create(ngx_http_affiliate_main_conf_t *amcf,
    ngx_http_affiliate_kind_e kind, ngx_str_t *name)
{
    ngx_http_affiliate_lookup_t  *lookup;

    if (ngx_http_affiliate_lookups_n >= NGX_HTTP_AFFILIATE_LOOKUPS_MAX) {
        return NULL;
    }

    lookup = ngx_calloc(sizeof(ngx_http_affiliate_lookup_t) + name->len,
                        ngx_cycle->log);
    if (lookup == NULL) {
        return NULL;
    }

    lookup->amcf = amcf;
    lookup->kind = kind;
    lookup->name.len = name->len;
    lookup->name.data = (u_char *) lookup
                        + sizeof(ngx_http_affiliate_lookup_t);
    ngx_memcpy(lookup->name.data, name->data, name->len);

    lookup->node.key = ngx_http_affiliate_cache_hash(kind, name);
    lookup->event.handler = ngx_http_affiliate_lookup_finish;
    lookup->event.data = lookup;
    lookup->event.log = ngx_cycle->log;
    ngx_queue_init(&lookup->waiters);
    ngx_queue_insert_tail(&ngx_http_affiliate_lookups_unsent, &lookup->unsent);

    ngx_rbtree_insert(&ngx_http_affiliate_lookups, &lookup->node);
    ngx_http_affiliate_lookups_n++;

    if (ngx_http_affiliate_redis_ready(ngx_http_affiliate_lookup_redis)
        && ngx_http_affiliate_lookup_send(lookup) != NGX_OK)
    {
        ngx_http_affiliate_lookup_end(lookup, NGX_HTTP_AFFILIATE_UNKNOWN);
        return NULL;
    }

    return lookup;
}


static uint64_t
ngx_http_affiliate_lookup_clock(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}


static ngx_int_t
ngx_http_affiliate_lookup_send(ngx_http_affiliate_lookup_t *lookup)
{
    u_char      *p, key[sizeof("aff:link:") + AFF_CODE_MAX];
    size_t       len[3];
    ngx_str_t   *prefix;
    const char  *argv[3];

    prefix = &ngx_http_affiliate_lookup_kinds[lookup->kind].prefix;

    if (prefix->len + lookup->name.len > sizeof(key)) {
        return NGX_DECLINED;
    }

    p = ngx_cpymem(key, prefix->data, prefix->len);
    p = ngx_cpymem(p, lookup->name.data, lookup->name.len);

    argv[0] = "MGET";
    len[0] = sizeof("MGET") - 1;
    argv[1] = (char *) key;
    len[1] = p - key;
    argv[2] = "aff:epoch";
    len[2] = sizeof("aff:epoch") - 1;

    ngx_http_affiliate_cache_mark(lookup->amcf->cache, &lookup->mark);

    if (ngx_http_affiliate_redis_command(ngx_http_affiliate_lookup_redis,
                                         ngx_http_affiliate_lookup_reply,
                                         lookup, 3, argv, len)
        != NGX_OK)
    {
        ngx_http_affiliate_stat_inc(lookup_errors);
        return NGX_DECLINED;
    }

    ngx_queue_remove(&lookup->unsent);
    lookup->sent_us = ngx_http_affiliate_lookup_clock();
    ngx_http_affiliate_stat_inc(lookups);

    return NGX_OK;
}


/*
 * Nobody can join any more.  Who waits is told from a posted event, off the
 * stack of whoever brought the answer.
 */

static void
ngx_http_affiliate_lookup_end(ngx_http_affiliate_lookup_t *lookup,
    ngx_http_affiliate_cache_status_e status)
{
    lookup->status = status;
    lookup->ended = 1;

    ngx_rbtree_delete(&ngx_http_affiliate_lookups, &lookup->node);
    ngx_http_affiliate_lookups_n--;

    if (lookup->sent_us == 0) {
        ngx_queue_remove(&lookup->unsent);
    }

    if (ngx_queue_empty(&lookup->waiters)) {
        ngx_http_affiliate_lookup_free(lookup);
        return;
    }

    ngx_post_event(&lookup->event, &ngx_posted_events);
}


static void
ngx_http_affiliate_lookup_free(ngx_http_affiliate_lookup_t *lookup)
{
    if (lookup->record) {
        ngx_free(lookup->record);
    }

    ngx_free(lookup);
}


static void
ngx_http_affiliate_lookup_finish(ngx_event_t *ev)
{
    ngx_queue_t                    *q;
    ngx_http_affiliate_lookup_t    *lookup;
    ngx_http_affiliate_question_t  *question;

    lookup = ev->data;

    /* finalizing one request may take others out of the queue */

    while (!ngx_queue_empty(&lookup->waiters)) {
        q = ngx_queue_head(&lookup->waiters);
        question = ngx_queue_data(q, ngx_http_affiliate_question_t, queue);

        ngx_http_affiliate_lookup_forget(question);
        question->lookup = NULL;

        ngx_http_affiliate_lookup_resume(question, lookup);
    }

    ngx_http_affiliate_lookup_free(lookup);
}


static void
ngx_http_affiliate_lookup_reply(void *data, redisReply *reply)
{
    ngx_http_affiliate_lookup_t *lookup = data;

    ngx_http_affiliate_stat_time(&ngx_http_affiliate_stats->lookup_time,
                                 ngx_http_affiliate_lookup_clock()
                                 - lookup->sent_us);

    ngx_http_affiliate_lookup_end(lookup,
                                  ngx_http_affiliate_lookup_read(lookup,
                                                                 reply));
}


static ngx_http_affiliate_cache_status_e
ngx_http_affiliate_lookup_read(ngx_http_affiliate_lookup_t *lookup,
    redisReply *reply)
{
    redisReply  *record, *epoch;

    if (reply == NULL
        || ngx_http_affiliate_redis_unavailable(
               ngx_http_affiliate_lookup_redis, reply)
        || reply->type != REDIS_REPLY_ARRAY || reply->elements != 2)
    {
        if (reply && reply->type != REDIS_REPLY_ERROR) {

            /* of another command: what follows would be taken for it, too */

            ngx_http_affiliate_redis_give_up(ngx_http_affiliate_lookup_redis,
                                             "unexpected reply to MGET");
        }

        ngx_http_affiliate_stat_inc(lookup_errors);
        return NGX_HTTP_AFFILIATE_UNKNOWN;
    }

    record = reply->element[0];
    epoch = reply->element[1];

    if (record->type == REDIS_REPLY_STRING) {
        return ngx_http_affiliate_lookup_record(lookup, record);
    }

    if (record->type == REDIS_REPLY_NIL
        && epoch->type == REDIS_REPLY_STRING && epoch->len != 0)
    {
        ngx_http_affiliate_cache_put(lookup->amcf->cache, lookup->kind,
                                     &lookup->name, &lookup->mark, NULL);

        return NGX_HTTP_AFFILIATE_NEGATIVE;
    }

    return NGX_HTTP_AFFILIATE_UNKNOWN;
}


static ngx_http_affiliate_cache_status_e
ngx_http_affiliate_lookup_record(ngx_http_affiliate_lookup_t *lookup,
    redisReply *reply)
{
    ngx_int_t                        rc;
    struct aff_key                   key;
    struct aff_link                  link;
    struct aff_slice                 text, name;
    ngx_http_affiliate_record_t     *record;
    enum aff_projection_result       result;
    ngx_http_affiliate_main_conf_t  *amcf;

    amcf = lookup->amcf;
    record = &ngx_http_affiliate_lookup_found;

    text = aff_slice(reply->str, reply->len);
    name = aff_slice(lookup->name.data, lookup->name.len);

    if (lookup->kind == NGX_HTTP_AFFILIATE_LINK) {
        result = aff_link_decode(text, name, amcf->keyring, &link);
        rc = (result == AFF_PROJECTION_OK)
             ? ngx_http_affiliate_link_pack(&link, record) : NGX_DECLINED;

    } else {
        result = aff_key_decode(text, name, amcf->keyring, &key);
        rc = (result == AFF_PROJECTION_OK)
             ? ngx_http_affiliate_key_pack(&key, record) : NGX_DECLINED;
    }

    if (rc != NGX_OK) {
        ngx_http_affiliate_stat_inc(lookup_errors);

        if (ngx_http_affiliate_lookup_logged == 0
            || ngx_current_msec - ngx_http_affiliate_lookup_logged
               >= NGX_HTTP_AFFILIATE_LOG_INTERVAL)
        {
            ngx_http_affiliate_lookup_logged = ngx_current_msec;

            ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                          "affiliate record \"%V%V\" in Redis is %s, "
                          "treated as unknown; rebuild the projection, or "
                          "add the key that made it to the key file",
                          &ngx_http_affiliate_lookup_kinds[lookup->kind].prefix,
                          &lookup->name,
                          result == AFF_PROJECTION_FORGED
                          ? "not made with a known key" : "malformed");
        }

        return NGX_HTTP_AFFILIATE_UNKNOWN;
    }

    ngx_http_affiliate_cache_put(amcf->cache, lookup->kind, &lookup->name,
                                 &lookup->mark, record);

    if (ngx_queue_empty(&lookup->waiters)) {
        return NGX_HTTP_AFFILIATE_MISS;
    }

    lookup->record = ngx_alloc(record->len, ngx_cycle->log);
    if (lookup->record == NULL) {
        return NGX_HTTP_AFFILIATE_UNKNOWN;
    }

    ngx_memcpy(lookup->record, record->data, record->len);
    lookup->len = record->len;

    return NGX_HTTP_AFFILIATE_MISS;
}


static void
ngx_http_affiliate_lookup_state(void *data, ngx_uint_t up)
{
    ngx_queue_t                  *q;
    ngx_http_affiliate_lookup_t  *lookup;

    /* on a reload the slot is the next worker's already */

    if (!ngx_exiting) {
        ngx_http_affiliate_stat_set(
            connected[NGX_HTTP_AFFILIATE_CONN_LOOKUP], up);
    }

    if (!up) {
        ngx_http_affiliate_lookup_down_since = ngx_current_msec;
        return;
    }

    ngx_http_affiliate_stat_inc(connects[NGX_HTTP_AFFILIATE_CONN_LOOKUP]);

    while (!ngx_queue_empty(&ngx_http_affiliate_lookups_unsent)) {
        q = ngx_queue_head(&ngx_http_affiliate_lookups_unsent);
        lookup = ngx_queue_data(q, ngx_http_affiliate_lookup_t, unsent);

        if (ngx_http_affiliate_lookup_send(lookup) != NGX_OK) {
            ngx_http_affiliate_lookup_end(lookup, NGX_HTTP_AFFILIATE_UNKNOWN);
        }
    }
}


/* "link:CODE", "key:ID" or "all"; what is none of them is from a later one. */

static void
ngx_http_affiliate_lookup_message(void *data, ngx_str_t *message)
{
    ngx_http_affiliate_main_conf_t *amcf = data;

    ngx_str_t   name, *prefix;
    ngx_uint_t  kind;

    ngx_http_affiliate_stat_inc(invalidations);

    if (message->len == 3 && ngx_memcmp(message->data, "all", 3) == 0) {
        ngx_http_affiliate_cache_invalidate_all(amcf->cache);
        return;
    }

    for (kind = 0; kind < NGX_HTTP_AFFILIATE_KINDS; kind++) {
        prefix = &ngx_http_affiliate_lookup_kinds[kind].message;

        if (message->len > prefix->len
            && ngx_memcmp(message->data, prefix->data, prefix->len) == 0)
        {
            name.data = message->data + prefix->len;
            name.len = message->len - prefix->len;

            ngx_http_affiliate_cache_invalidate(amcf->cache, kind, &name);
            return;
        }
    }
}


/* Messages may have been missed until now. */

static void
ngx_http_affiliate_lookup_subscribed(void *data, ngx_uint_t up)
{
    ngx_http_affiliate_main_conf_t *amcf = data;

    if (!ngx_exiting) {
        ngx_http_affiliate_stat_set(
            connected[NGX_HTTP_AFFILIATE_CONN_SUBSCRIBE], up);
    }

    if (up) {
        ngx_http_affiliate_stat_inc(
            connects[NGX_HTTP_AFFILIATE_CONN_SUBSCRIBE]);
        ngx_http_affiliate_cache_invalidate_all(amcf->cache);
    }
}


ngx_int_t
ngx_http_affiliate_lookup_init(ngx_cycle_t *cycle)
{
    ngx_http_affiliate_main_conf_t  *amcf;

    amcf = ngx_http_cycle_get_module_main_conf(cycle,
                                              ngx_http_affiliate_module);

    ngx_rbtree_init(&ngx_http_affiliate_lookups,
                    &ngx_http_affiliate_lookups_sentinel,
                    ngx_http_affiliate_lookup_insert_value);
    ngx_queue_init(&ngx_http_affiliate_lookups_unsent);

    ngx_http_affiliate_lookups_n = 0;
    ngx_http_affiliate_lookup_logged = 0;
    ngx_http_affiliate_lookup_down_since = ngx_current_msec;

    /* waiting requests must leave connections for those that need not wait */

    ngx_http_affiliate_parked_max = ngx_max(cycle->connection_n / 2, 1);

    ngx_http_affiliate_lookup_redis =
        ngx_http_affiliate_redis_create(&amcf->redis, "lookup",
                                        ngx_http_affiliate_lookup_state, amcf);
    if (ngx_http_affiliate_lookup_redis == NULL) {
        return NGX_ERROR;
    }

    if (ngx_worker != 0) {
        return NGX_OK;
    }

    ngx_http_affiliate_lookup_subscriber =
        ngx_http_affiliate_redis_subscribe(&amcf->redis, "subscribe",
                                       &ngx_http_affiliate_lookup_channel,
                                       ngx_http_affiliate_lookup_redis,
                                       ngx_http_affiliate_lookup_message,
                                       ngx_http_affiliate_lookup_subscribed,
                                       amcf);

    return ngx_http_affiliate_lookup_subscriber ? NGX_OK : NGX_ERROR;
}


void
ngx_http_affiliate_lookup_done(void)
{
    if (ngx_http_affiliate_lookup_subscriber) {
        ngx_http_affiliate_redis_destroy(ngx_http_affiliate_lookup_subscriber);
        ngx_http_affiliate_lookup_subscriber = NULL;
    }

    if (ngx_http_affiliate_lookup_redis) {
        ngx_http_affiliate_redis_destroy(ngx_http_affiliate_lookup_redis);
        ngx_http_affiliate_lookup_redis = NULL;
    }
}
