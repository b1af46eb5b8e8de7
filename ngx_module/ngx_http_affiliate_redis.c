
/*
 * hiredis (0.14 and 1.x) on nginx's event loop.
 *
 * Events are level-triggered: hiredis reads at most 16K a call and can't say
 * whether there is more.  It frees its context by itself on errors, so the
 * cleanup hook is the only place that forgets it, and the only place that
 * closes the socket.  Nothing is freed from within its callbacks: they leave
 * a note and post an event, and ngx_http_affiliate_redis_event_handler() does
 * the rest.
 *
 * Every periodic timer is cancelable: a connection never keeps a worker that
 * quits.  Who waits for a reply owns a timer of his own.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>

#include <netinet/tcp.h>

#include <hiredis/async.h>

#include "ngx_http_affiliate_queue.h"
#include "ngx_http_affiliate_redis.h"


/* Of commands not answered yet; the output buffer is moved as it drains. */
#define NGX_HTTP_AFFILIATE_REDIS_IN_FLIGHT     (2 * 1024 * 1024)
/* What a command costs besides its arguments. */
#define NGX_HTTP_AFFILIATE_REDIS_OVERHEAD      128
#define NGX_HTTP_AFFILIATE_REDIS_FREE_MAX      256
#define NGX_HTTP_AFFILIATE_REDIS_PASSWORD_MAX  4096
#define NGX_HTTP_AFFILIATE_REDIS_ERROR_LEN     160
/* A subscription's silence after which it is tested, and given up. */
#define NGX_HTTP_AFFILIATE_REDIS_IDLE          10000
#define NGX_HTTP_AFFILIATE_REDIS_PING          "ping"
/* Of all arrays of a reply; none that we ask for has more than three. */
#define NGX_HTTP_AFFILIATE_REDIS_ELEMENTS      64
/* Of a reply that is not all there yet; what we ask for is much less. */
#define NGX_HTTP_AFFILIATE_REDIS_REPLY         (1024 * 1024)


typedef enum {
    NGX_HTTP_AFFILIATE_REDIS_WAITING = 0,   /* for the backoff's end */
    NGX_HTTP_AFFILIATE_REDIS_CONNECTING,
    NGX_HTTP_AFFILIATE_REDIS_GREETING,      /* AUTH, SELECT, PING */
    NGX_HTTP_AFFILIATE_REDIS_READY,
    NGX_HTTP_AFFILIATE_REDIS_CLOSED         /* for good */
} ngx_http_affiliate_redis_state_e;


#if (HIREDIS_MAJOR >= 1)
typedef size_t  ngx_http_affiliate_redis_elements_t;
#else
typedef int     ngx_http_affiliate_redis_elements_t;
#endif


/* A command in flight, in the order of sending. */
typedef struct {
    ngx_queue_t                           queue;
    ngx_http_affiliate_redis_t           *redis;
    ngx_http_affiliate_redis_reply_pt     handler;
    void                                 *data;
    size_t                                size;
    ngx_msec_t                            sent;
} ngx_http_affiliate_redis_command_t;


struct ngx_http_affiliate_redis_s {
    /* debug logging takes a timer's data for a connection: an fd of -1 */
    void                                 *ident[4];

    ngx_http_affiliate_redis_conf_t      *conf;
    const char                           *name;
    ngx_http_affiliate_redis_state_pt     handler;
    void                                 *data;

    redisAsyncContext                    *context;
    ngx_connection_t                     *connection;
    ngx_http_affiliate_redis_state_e      state;

    ngx_uint_t                            server;    /* to try next */
    ngx_addr_t                           *addr;      /* tried last */
    ngx_uint_t                            failures;  /* in a row */
    ngx_msec_t                            since;     /* it's ready */

    ngx_event_t                           retry;     /* the backoff */
    ngx_event_t                           watch;     /* of an attempt, of the
                                                        oldest command */
    ngx_event_t                           event;     /* posted */

    ngx_queue_t                           commands;
    ngx_queue_t                           free;
    ngx_uint_t                            nfree;
    size_t                                in_flight;
    size_t                                elements;  /* of this reply */

    u_char                                error[
                                  NGX_HTTP_AFFILIATE_REDIS_ERROR_LEN];
    size_t                                error_len;

    /* of subscriptions */
    ngx_str_t                             channel;
    ngx_http_affiliate_redis_t           *publisher;
    ngx_http_affiliate_redis_message_pt   message;
    ngx_event_t                           idle;
    ngx_msec_t                            heard;

    unsigned                              subscribe:1;
    unsigned                              failed:1;    /* to be closed */
    unsigned                              up:1;        /* as told */
    unsigned                              complained:1;
    unsigned                              proven:1;    /* it has worked */
    unsigned                              doubtful:1;  /* the last one was
                                                          ready, no more */
    unsigned                              writing:1;
    unsigned                              tested:1;    /* "idle" has asked */
    unsigned                              quit:1;      /* nginx closes it */
};


static void ngx_http_affiliate_redis_connect(ngx_http_affiliate_redis_t *rd);
static redisAsyncContext *ngx_http_affiliate_redis_open(ngx_addr_t *addr);
static ngx_int_t ngx_http_affiliate_redis_attach(
    ngx_http_affiliate_redis_t *rd, redisAsyncContext *ac);
static void ngx_http_affiliate_redis_guard(ngx_http_affiliate_redis_t *rd,
    redisReader *reader);
static ngx_uint_t ngx_http_affiliate_redis_expected(const redisReadTask *task);
static ngx_uint_t ngx_http_affiliate_redis_message(const redisReadTask *task,
    size_t elements, const char *str, size_t len);
static void *ngx_http_affiliate_redis_create_string(const redisReadTask *task,
    char *str, size_t len);
static void *ngx_http_affiliate_redis_create_array(const redisReadTask *task,
    ngx_http_affiliate_redis_elements_t elements);
static void *ngx_http_affiliate_redis_create_integer(const redisReadTask *task,
    long long value);
static void *ngx_http_affiliate_redis_create_nil(const redisReadTask *task);
#if (HIREDIS_MAJOR >= 1)
static void *ngx_http_affiliate_redis_create_double(const redisReadTask *task,
    double value, char *str, size_t len);
static void *ngx_http_affiliate_redis_create_bool(const redisReadTask *task,
    int value);
#endif
static void ngx_http_affiliate_redis_keepalive(ngx_addr_t *addr, int fd);
static void ngx_http_affiliate_redis_read_handler(ngx_event_t *rev);
static void ngx_http_affiliate_redis_write_handler(ngx_event_t *wev);
static void ngx_http_affiliate_redis_add_read(void *data);
static void ngx_http_affiliate_redis_del_read(void *data);
static void ngx_http_affiliate_redis_add_write(void *data);
static void ngx_http_affiliate_redis_del_write(void *data);
static void ngx_http_affiliate_redis_cleanup(void *data);
static void ngx_http_affiliate_redis_on_connect(const redisAsyncContext *ac,
    int status);
static void ngx_http_affiliate_redis_on_disconnect(
    const redisAsyncContext *ac, int status);
static void ngx_http_affiliate_redis_greet(ngx_http_affiliate_redis_t *rd,
    redisAsyncContext *ac);
static void ngx_http_affiliate_redis_greeting(redisAsyncContext *ac,
    void *reply, void *data);
static void ngx_http_affiliate_redis_greeted(redisAsyncContext *ac,
    void *reply, void *data);
static void ngx_http_affiliate_redis_subscribed(redisAsyncContext *ac,
    void *reply, void *data);
static void ngx_http_affiliate_redis_set_ready(ngx_http_affiliate_redis_t *rd);
static void ngx_http_affiliate_redis_announce(ngx_http_affiliate_redis_t *rd);
static void ngx_http_affiliate_redis_answered(redisAsyncContext *ac,
    void *reply, void *data);
static void ngx_http_affiliate_redis_fail(ngx_http_affiliate_redis_t *rd,
    const char *reason, size_t len);
static void ngx_http_affiliate_redis_event_handler(ngx_event_t *ev);
static void ngx_http_affiliate_redis_down(ngx_http_affiliate_redis_t *rd);
static ngx_msec_t ngx_http_affiliate_redis_backoff(
    ngx_http_affiliate_redis_t *rd);
static void ngx_http_affiliate_redis_retry_handler(ngx_event_t *ev);
static void ngx_http_affiliate_redis_watch_handler(ngx_event_t *ev);
static void ngx_http_affiliate_redis_idle_handler(ngx_event_t *ev);
static void ngx_http_affiliate_redis_ponged(void *data, redisReply *reply);
static char *ngx_http_affiliate_redis_address(ngx_conf_t *cf,
    ngx_http_affiliate_redis_conf_t *rcf, ngx_str_t *value);
static char *ngx_http_affiliate_redis_password(ngx_conf_t *cf,
    ngx_http_affiliate_redis_conf_t *rcf, ngx_str_t *name);


/* Those of hiredis, and ours in front of them. */
static redisReplyObjectFunctions  *ngx_http_affiliate_redis_objects;
static redisReplyObjectFunctions   ngx_http_affiliate_redis_guarded;


/* First words of errors that another time or another server may not give. */
static ngx_str_t  ngx_http_affiliate_redis_unavailable_errors[] = {
    ngx_string("LOADING"),
    ngx_string("READONLY"),
    ngx_string("MASTERDOWN"),
    ngx_string("NOREPLICAS"),
    ngx_string("OOM"),
    ngx_string("MISCONF"),
    ngx_string("NOAUTH"),
    ngx_string("WRONGPASS"),
    ngx_string("NOPERM"),
    ngx_string("BUSY"),
    ngx_string("CLUSTERDOWN"),
    ngx_string("TRYAGAIN"),
    ngx_string("MOVED"),
    ngx_string("ASK"),
    ngx_null_string
};


ngx_http_affiliate_redis_t *
ngx_http_affiliate_redis_create(ngx_http_affiliate_redis_conf_t *conf,
    const char *name, ngx_http_affiliate_redis_state_pt handler, void *data)
{
    ngx_http_affiliate_redis_t  *rd;

    rd = ngx_calloc(sizeof(ngx_http_affiliate_redis_t), ngx_cycle->log);
    if (rd == NULL) {
        return NULL;
    }

    /*
     * set by ngx_calloc():
     *
     *     rd->context = NULL;
     *     rd->connection = NULL;
     *     rd->state = NGX_HTTP_AFFILIATE_REDIS_WAITING;
     */

    rd->ident[3] = (void *) -1;
    rd->conf = conf;
    rd->name = name;
    rd->handler = handler;
    rd->data = data;

    ngx_queue_init(&rd->commands);
    ngx_queue_init(&rd->free);

    rd->retry.handler = ngx_http_affiliate_redis_retry_handler;
    rd->retry.data = rd;
    rd->retry.log = ngx_cycle->log;
    rd->retry.cancelable = 1;

    rd->watch.handler = ngx_http_affiliate_redis_watch_handler;
    rd->watch.data = rd;
    rd->watch.log = ngx_cycle->log;
    rd->watch.cancelable = 1;

    rd->idle.handler = ngx_http_affiliate_redis_idle_handler;
    rd->idle.data = rd;
    rd->idle.log = ngx_cycle->log;
    rd->idle.cancelable = 1;

    rd->event.handler = ngx_http_affiliate_redis_event_handler;
    rd->event.data = rd;
    rd->event.log = ngx_cycle->log;

    ngx_add_timer(&rd->retry,
                  1 + (ngx_msec_t) ngx_random() % (conf->reconnect_min + 1));

    return rd;
}


ngx_http_affiliate_redis_t *
ngx_http_affiliate_redis_subscribe(ngx_http_affiliate_redis_conf_t *conf,
    const char *name, ngx_str_t *channel, ngx_http_affiliate_redis_t *publisher,
    ngx_http_affiliate_redis_message_pt message,
    ngx_http_affiliate_redis_state_pt handler, void *data)
{
    ngx_http_affiliate_redis_t  *rd;

    rd = ngx_http_affiliate_redis_create(conf, name, handler, data);
    if (rd == NULL) {
        return NULL;
    }

    rd->subscribe = 1;
    rd->channel = *channel;
    rd->publisher = publisher;
    rd->message = message;

    return rd;
}


void
ngx_http_affiliate_redis_destroy(ngx_http_affiliate_redis_t *rd)
{
    ngx_queue_t  *q;

    rd->state = NGX_HTTP_AFFILIATE_REDIS_CLOSED;

    if (rd->context) {
        /* every pending reply becomes NULL; the cleanup hook forgets it */
        redisAsyncFree(rd->context);
    }

    if (rd->retry.timer_set) {
        ngx_del_timer(&rd->retry);
    }

    if (rd->watch.timer_set) {
        ngx_del_timer(&rd->watch);
    }

    if (rd->idle.timer_set) {
        ngx_del_timer(&rd->idle);
    }

    if (rd->event.posted) {
        ngx_delete_posted_event(&rd->event);
    }

    while (!ngx_queue_empty(&rd->free)) {
        q = ngx_http_affiliate_queue_take(&rd->free);
        ngx_free(ngx_queue_data(q, ngx_http_affiliate_redis_command_t, queue));
    }

    ngx_free(rd);
}


ngx_uint_t
ngx_http_affiliate_redis_ready(ngx_http_affiliate_redis_t *rd)
{
    return rd->state == NGX_HTTP_AFFILIATE_REDIS_READY && !rd->failed
           && rd->context != NULL;
}


size_t
ngx_http_affiliate_redis_in_flight(ngx_http_affiliate_redis_t *rd)
{
    return rd->in_flight;
}


ngx_int_t
ngx_http_affiliate_redis_command(ngx_http_affiliate_redis_t *rd,
    ngx_http_affiliate_redis_reply_pt handler, void *data, int argc,
    const char **argv, const size_t *argvlen)
{
    int                                  i;
    size_t                               size;
    ngx_queue_t                         *q;
    ngx_http_affiliate_redis_command_t  *cmd;

    if (!ngx_http_affiliate_redis_ready(rd) || rd->subscribe) {
        return NGX_DECLINED;
    }

    size = NGX_HTTP_AFFILIATE_REDIS_OVERHEAD;

    for (i = 0; i < argc; i++) {
        size += argvlen[i];
    }

    /* a single command always goes, however large it is */

    if (rd->in_flight && rd->in_flight + size
                         > NGX_HTTP_AFFILIATE_REDIS_IN_FLIGHT)
    {
        return NGX_DECLINED;
    }

    if (ngx_queue_empty(&rd->free)) {
        cmd = ngx_alloc(sizeof(ngx_http_affiliate_redis_command_t),
                        ngx_cycle->log);
        if (cmd == NULL) {
            return NGX_DECLINED;
        }

    } else {
        q = ngx_http_affiliate_queue_take(&rd->free);
        rd->nfree--;
        cmd = ngx_queue_data(q, ngx_http_affiliate_redis_command_t, queue);
    }

    cmd->redis = rd;
    cmd->handler = handler;
    cmd->data = data;
    cmd->size = size;
    cmd->sent = ngx_current_msec;

    if (redisAsyncCommandArgv(rd->context, ngx_http_affiliate_redis_answered,
                              cmd, argc, argv, argvlen)
        != REDIS_OK)
    {
        ngx_free(cmd);
        return NGX_DECLINED;
    }

    ngx_queue_insert_tail(&rd->commands, &cmd->queue);
    rd->in_flight += size;

    if (!rd->watch.timer_set) {
        ngx_add_timer(&rd->watch, rd->conf->timeout);
    }

    return NGX_OK;
}


ngx_uint_t
ngx_http_affiliate_redis_unavailable(ngx_http_affiliate_redis_t *rd,
    redisReply *reply)
{
    ngx_str_t  *e;

    if (reply == NULL || reply->type != REDIS_REPLY_ERROR
        || reply->str == NULL)
    {
        return 0;
    }

    for (e = ngx_http_affiliate_redis_unavailable_errors; e->len; e++) {

        if ((size_t) reply->len >= e->len
            && ngx_strncmp(reply->str, e->data, e->len) == 0
            && ((size_t) reply->len == e->len || reply->str[e->len] == ' '))
        {
            rd->proven = 0;
            ngx_http_affiliate_redis_fail(rd, reply->str, reply->len);
            return 1;
        }
    }

    return 0;
}


void
ngx_http_affiliate_redis_give_up(ngx_http_affiliate_redis_t *rd,
    const char *reason)
{
    rd->proven = 0;
    ngx_http_affiliate_redis_fail(rd, reason, ngx_strlen(reason));
}


static void
ngx_http_affiliate_redis_connect(ngx_http_affiliate_redis_t *rd)
{
    ngx_addr_t         *addrs;
    redisAsyncContext  *ac;

    addrs = rd->conf->servers.elts;

    rd->addr = &addrs[rd->server % rd->conf->servers.nelts];
    rd->server = (rd->server + 1) % rd->conf->servers.nelts;
    rd->state = NGX_HTTP_AFFILIATE_REDIS_CONNECTING;
    rd->error_len = 0;
    rd->failed = 0;

    ac = ngx_http_affiliate_redis_open(rd->addr);
    if (ac == NULL) {
        ngx_http_affiliate_redis_fail(rd, "out of memory",
                                      sizeof("out of memory") - 1);
        return;
    }

    if (ac->err) {
        ngx_http_affiliate_redis_fail(rd, ac->c.errstr,
                                      ngx_strlen(ac->c.errstr));
        redisAsyncFree(ac);
        return;
    }

    if (ngx_http_affiliate_redis_attach(rd, ac) != NGX_OK) {
        /* worker_connections are used up, which nginx has logged */
        ngx_http_affiliate_redis_fail(rd, "no free connection",
                                      sizeof("no free connection") - 1);
        redisAsyncFree(ac);
        return;
    }

    ngx_http_affiliate_redis_keepalive(rd->addr, ac->c.fd);

    rd->context = ac;

    /* these arm the events through the hooks, so they come last */
    (void) redisAsyncSetDisconnectCallback(ac,
                                       ngx_http_affiliate_redis_on_disconnect);
    (void) redisAsyncSetConnectCallback(ac,
                                        ngx_http_affiliate_redis_on_connect);

    if (!rd->failed) {
        ngx_add_timer(&rd->watch, rd->conf->connect_timeout);
    }
}


/* The addresses were resolved by the configuration: this does not block. */

static redisAsyncContext *
ngx_http_affiliate_redis_open(ngx_addr_t *addr)
{
    size_t               len;
    u_char               text[NGX_SOCKADDR_STRLEN + 1];
#if (NGX_HAVE_UNIX_DOMAIN)
    struct sockaddr_un  *sun;

    if (addr->sockaddr->sa_family == AF_UNIX) {
        sun = (struct sockaddr_un *) addr->sockaddr;
        return redisAsyncConnectUnix(sun->sun_path);
    }
#endif

    len = ngx_sock_ntop(addr->sockaddr, addr->socklen, text,
                        NGX_SOCKADDR_STRLEN, 0);
    text[len] = '\0';

#if (NGX_HAVE_INET6)
    if (addr->sockaddr->sa_family == AF_INET6) {
        /* nginx writes [::1], the resolver reads ::1 */
        if (len > 2 && text[0] == '[' && text[len - 1] == ']') {
            text[len - 1] = '\0';
            return redisAsyncConnect((char *) text + 1,
                                     ngx_inet_get_port(addr->sockaddr));
        }
    }
#endif

    return redisAsyncConnect((char *) text, ngx_inet_get_port(addr->sockaddr));
}


static ngx_int_t
ngx_http_affiliate_redis_attach(ngx_http_affiliate_redis_t *rd,
    redisAsyncContext *ac)
{
    ngx_connection_t  *c;

    c = ngx_get_connection(ac->c.fd, ngx_cycle->log);
    if (c == NULL) {
        return NGX_ERROR;
    }

    (void) fcntl(ac->c.fd, F_SETFD, FD_CLOEXEC);

    c->data = rd;
    c->number = ngx_atomic_fetch_add(ngx_connection_counter, 1);
    c->log = ngx_cycle->log;
    /* worker_shutdown_timeout calls read->handler whatever the state is */
    c->read->handler = ngx_http_affiliate_redis_read_handler;
    c->write->handler = ngx_http_affiliate_redis_write_handler;
    c->read->log = c->log;
    c->write->log = c->log;
    /* a subscription is of no use to a worker that quits: closed at once */
    c->idle = rd->subscribe;

    rd->connection = c;

    ac->data = rd;
    ac->ev.data = rd;
    ac->ev.addRead = ngx_http_affiliate_redis_add_read;
    ac->ev.delRead = ngx_http_affiliate_redis_del_read;
    ac->ev.addWrite = ngx_http_affiliate_redis_add_write;
    ac->ev.delWrite = ngx_http_affiliate_redis_del_write;
    ac->ev.cleanup = ngx_http_affiliate_redis_cleanup;

    ngx_http_affiliate_redis_guard(rd, ac->c.reader);

    return NGX_OK;
}


/*
 * hiredis asserts that somebody waits for each reply, and would abort the
 * worker where a server sends one too many.  So the objects of replies are
 * made through these functions, which refuse that one; to hiredis it is a
 * lack of memory, and it closes.  Errors may come unasked, it knows them, and
 * so may messages; but it asserts what a message looks like, too.
 *
 * It also takes as much memory as an array says that it has elements, before
 * any of them has come: what we can not have asked for is refused, too.
 */

static void
ngx_http_affiliate_redis_guard(ngx_http_affiliate_redis_t *rd,
    redisReader *reader)
{
    if (ngx_http_affiliate_redis_objects == NULL) {
        ngx_http_affiliate_redis_objects = reader->fn;

        ngx_http_affiliate_redis_guarded = *reader->fn;
        ngx_http_affiliate_redis_guarded.createString =
                                        ngx_http_affiliate_redis_create_string;
        ngx_http_affiliate_redis_guarded.createArray =
                                        ngx_http_affiliate_redis_create_array;
        ngx_http_affiliate_redis_guarded.createInteger =
                                       ngx_http_affiliate_redis_create_integer;
        ngx_http_affiliate_redis_guarded.createNil =
                                        ngx_http_affiliate_redis_create_nil;
#if (HIREDIS_MAJOR >= 1)
        ngx_http_affiliate_redis_guarded.createDouble =
                                        ngx_http_affiliate_redis_create_double;
        ngx_http_affiliate_redis_guarded.createBool =
                                        ngx_http_affiliate_redis_create_bool;
#endif
    }

    reader->fn = &ngx_http_affiliate_redis_guarded;
    reader->privdata = rd;
}


static ngx_uint_t
ngx_http_affiliate_redis_expected(const redisReadTask *task)
{
    ngx_http_affiliate_redis_t  *rd;

    rd = task->privdata;

    if (task->parent != NULL || task->type == REDIS_REPLY_ERROR
        || (rd->context && rd->context->replies.head != NULL))
    {
        return 1;
    }

    ngx_http_affiliate_redis_fail(rd, "reply to nothing",
                                  sizeof("reply to nothing") - 1);
    return 0;
}


/*
 * Whether this is, or is a part of, what we can have subscribed to: an array
 * of three, of which the kind and the channel are ours.  Of anything but a
 * subscription, it tells whether it is expected.  A nil may have the type of
 * a string, but has no bytes.
 */

static ngx_uint_t
ngx_http_affiliate_redis_message(const redisReadTask *task, size_t elements,
    const char *str, size_t len)
{
    ngx_uint_t                   good;
    ngx_http_affiliate_redis_t  *rd;

    rd = task->privdata;

    if (rd->context == NULL || !(rd->context->c.flags & REDIS_SUBSCRIBED)
        || rd->context->replies.head != NULL)
    {
        return ngx_http_affiliate_redis_expected(task);
    }

    if (task->parent == NULL) {
        good = (elements == 3 || task->type == REDIS_REPLY_ERROR);

    } else if (task->parent->parent != NULL || task->idx > 1) {
        good = 1;

    } else if (task->type != REDIS_REPLY_STRING || str == NULL) {
        good = 0;

    } else if (task->idx == 1) {
        good = (len == rd->channel.len
                && ngx_memcmp(str, rd->channel.data, len) == 0);

    } else {
        good = ((len == sizeof("message") - 1
                 && ngx_strncasecmp((u_char *) str, (u_char *) "message", len)
                    == 0)
                || (len == sizeof("subscribe") - 1
                    && ngx_strncasecmp((u_char *) str, (u_char *) "subscribe",
                                       len) == 0));
    }

    if (good) {
        return 1;
    }

    ngx_http_affiliate_redis_fail(rd, "unexpected message",
                                  sizeof("unexpected message") - 1);
    return 0;
}


static void *
ngx_http_affiliate_redis_create_string(const redisReadTask *task, char *str,
    size_t len)
{
    return ngx_http_affiliate_redis_message(task, 0, str, len)
           ? ngx_http_affiliate_redis_objects->createString(task, str, len)
           : NULL;
}


static void *
ngx_http_affiliate_redis_create_array(const redisReadTask *task,
    ngx_http_affiliate_redis_elements_t elements)
{
    ngx_http_affiliate_redis_t  *rd;

    if (!ngx_http_affiliate_redis_message(task, (size_t) elements, NULL, 0)) {
        return NULL;
    }

    rd = task->privdata;

    if (task->parent == NULL) {
        rd->elements = 0;
    }

    if ((size_t) elements > NGX_HTTP_AFFILIATE_REDIS_ELEMENTS - rd->elements) {
        ngx_http_affiliate_redis_fail(rd, "too large a reply",
                                      sizeof("too large a reply") - 1);
        return NULL;
    }

    rd->elements += (size_t) elements;

    return ngx_http_affiliate_redis_objects->createArray(task, elements);
}


static void *
ngx_http_affiliate_redis_create_integer(const redisReadTask *task,
    long long value)
{
    return ngx_http_affiliate_redis_message(task, 0, NULL, 0)
           ? ngx_http_affiliate_redis_objects->createInteger(task, value)
           : NULL;
}


static void *
ngx_http_affiliate_redis_create_nil(const redisReadTask *task)
{
    return ngx_http_affiliate_redis_message(task, 0, NULL, 0)
           ? ngx_http_affiliate_redis_objects->createNil(task) : NULL;
}


#if (HIREDIS_MAJOR >= 1)

static void *
ngx_http_affiliate_redis_create_double(const redisReadTask *task, double value,
    char *str, size_t len)
{
    return ngx_http_affiliate_redis_message(task, 0, NULL, 0)
           ? ngx_http_affiliate_redis_objects->createDouble(task, value, str,
                                                            len)
           : NULL;
}


static void *
ngx_http_affiliate_redis_create_bool(const redisReadTask *task, int value)
{
    return ngx_http_affiliate_redis_message(task, 0, NULL, 0)
           ? ngx_http_affiliate_redis_objects->createBool(task, value) : NULL;
}

#endif


/* A peer that vanished is noticed also where nothing is ever sent. */

static void
ngx_http_affiliate_redis_keepalive(ngx_addr_t *addr, int fd)
{
    int  on;

    if (addr->sockaddr->sa_family != AF_INET
        && addr->sockaddr->sa_family != AF_INET6)
    {
        return;
    }

    on = 1;
    (void) setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));

#if (NGX_HAVE_KEEPALIVE_TUNABLE)
    on = 15;
    (void) setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &on, sizeof(on));
    on = 5;
    (void) setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &on, sizeof(on));
    on = 3;
    (void) setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &on, sizeof(on));
#endif
}


static void
ngx_http_affiliate_redis_read_handler(ngx_event_t *rev)
{
    ngx_connection_t            *c;
    ngx_http_affiliate_redis_t  *rd;

    c = rev->data;
    rd = c->data;

    if (c->close) {
        /* the worker quits: an idle connection, or worker_shutdown_timeout */
        rd->quit = 1;
        ngx_http_affiliate_redis_fail(rd, "nginx is shutting down",
                                      sizeof("nginx is shutting down") - 1);
        return;
    }

    if (rd->context == NULL) {
        return;
    }

    redisAsyncHandleRead(rd->context);

    /* on a subscription, no command would run into its timeout */

    if (rd->context && rd->context->c.reader->len
                       - rd->context->c.reader->pos
                       > NGX_HTTP_AFFILIATE_REDIS_REPLY)
    {
        ngx_http_affiliate_redis_fail(rd, "too large a reply",
                                      sizeof("too large a reply") - 1);
    }
}


static void
ngx_http_affiliate_redis_write_handler(ngx_event_t *wev)
{
    ngx_connection_t            *c;
    ngx_http_affiliate_redis_t  *rd;

    c = wev->data;
    rd = c->data;

    if (c->close || rd->context == NULL) {
        return;
    }

    rd->writing = 1;

    redisAsyncHandleWrite(rd->context);

    rd->writing = 0;
}


static void
ngx_http_affiliate_redis_add_read(void *data)
{
    ngx_http_affiliate_redis_t *rd = data;

    if (rd->connection == NULL || rd->connection->read->active) {
        return;
    }

    if (ngx_add_event(rd->connection->read, NGX_READ_EVENT, NGX_LEVEL_EVENT)
        != NGX_OK)
    {
        ngx_http_affiliate_redis_fail(rd, "could not watch the socket",
                                   sizeof("could not watch the socket") - 1);
    }
}


static void
ngx_http_affiliate_redis_del_read(void *data)
{
    ngx_http_affiliate_redis_t *rd = data;

    if (rd->connection && rd->connection->read->active) {
        (void) ngx_del_event(rd->connection->read, NGX_READ_EVENT, 0);
    }
}


/*
 * Once connected, what was queued is written at the end of this iteration, all
 * commands at once; the kernel is asked to tell of room only where that did
 * not suffice.  While connecting, writability is what says that it succeeded.
 */

static void
ngx_http_affiliate_redis_add_write(void *data)
{
    ngx_event_t                 *wev;
    ngx_http_affiliate_redis_t  *rd;

    rd = data;

    if (rd->connection == NULL) {
        return;
    }

    wev = rd->connection->write;

    if (wev->active) {
        return;
    }

    if (rd->state >= NGX_HTTP_AFFILIATE_REDIS_GREETING && !rd->writing) {
        ngx_post_event(wev, &ngx_posted_events);
        return;
    }

    if (ngx_add_event(wev, NGX_WRITE_EVENT, NGX_LEVEL_EVENT) != NGX_OK) {
        ngx_http_affiliate_redis_fail(rd, "could not watch the socket",
                                   sizeof("could not watch the socket") - 1);
    }
}


static void
ngx_http_affiliate_redis_del_write(void *data)
{
    ngx_http_affiliate_redis_t *rd = data;

    if (rd->connection && rd->connection->write->active) {
        (void) ngx_del_event(rd->connection->write, NGX_WRITE_EVENT, 0);
    }
}


/*
 * hiredis is about to free the context.  The socket is closed here, with its
 * events, so that hiredis must not close the number again: another connection
 * may have got it by then.
 */

static void
ngx_http_affiliate_redis_cleanup(void *data)
{
    ngx_connection_t            *c;
    ngx_http_affiliate_redis_t  *rd;

    rd = data;
    c = rd->connection;

    if (c == NULL) {
        return;
    }

    rd->connection = NULL;

    if (rd->context) {
        rd->context->c.fd = -1;
        rd->context = NULL;
    }

    ngx_close_connection(c);

    if (rd->state != NGX_HTTP_AFFILIATE_REDIS_CLOSED) {
        ngx_post_event(&rd->event, &ngx_posted_events);
    }
}


static void
ngx_http_affiliate_redis_on_connect(const redisAsyncContext *ac, int status)
{
    ngx_http_affiliate_redis_t  *rd;

    rd = ac->data;

    if (rd->state == NGX_HTTP_AFFILIATE_REDIS_CLOSED) {
        return;
    }

    if (status != REDIS_OK) {
        /* ac->errstr is not set yet in 0.14; hiredis frees the context */
        ngx_http_affiliate_redis_fail(rd, ac->c.errstr,
                                      ngx_strlen(ac->c.errstr));
        return;
    }

    rd->state = NGX_HTTP_AFFILIATE_REDIS_GREETING;
    ngx_http_affiliate_redis_greet(rd, rd->context);
}


static void
ngx_http_affiliate_redis_on_disconnect(const redisAsyncContext *ac, int status)
{
    ngx_http_affiliate_redis_t  *rd;

    rd = ac->data;

    if (rd->state == NGX_HTTP_AFFILIATE_REDIS_CLOSED || status == REDIS_OK) {
        return;
    }

    ngx_http_affiliate_redis_fail(rd, ac->c.errstr, ngx_strlen(ac->c.errstr));
}


static void
ngx_http_affiliate_redis_greet(ngx_http_affiliate_redis_t *rd,
    redisAsyncContext *ac)
{
    int          argc, rc;
    u_char       db[NGX_INT_T_LEN];
    size_t       argvlen[3];
    const char  *argv[3];

    rc = REDIS_OK;

    if (rd->conf->password.len) {
        argc = 0;
        argv[argc] = "AUTH";
        argvlen[argc++] = sizeof("AUTH") - 1;

        if (rd->conf->user.len) {
            argv[argc] = (char *) rd->conf->user.data;
            argvlen[argc++] = rd->conf->user.len;
        }

        argv[argc] = (char *) rd->conf->password.data;
        argvlen[argc++] = rd->conf->password.len;

        rc = redisAsyncCommandArgv(ac, ngx_http_affiliate_redis_greeting, rd,
                                   argc, argv, argvlen);
    }

    if (rc == REDIS_OK && rd->conf->database) {
        argv[0] = "SELECT";
        argvlen[0] = sizeof("SELECT") - 1;
        argv[1] = (char *) db;
        argvlen[1] = ngx_sprintf(db, "%ui", rd->conf->database) - db;

        rc = redisAsyncCommandArgv(ac, ngx_http_affiliate_redis_greeting, rd,
                                   2, argv, argvlen);
    }

    if (rc == REDIS_OK) {
        argv[0] = "PING";
        argvlen[0] = sizeof("PING") - 1;

        rc = redisAsyncCommandArgv(ac, ngx_http_affiliate_redis_greeted, rd,
                                   1, argv, argvlen);
    }

    if (rc != REDIS_OK) {
        ngx_http_affiliate_redis_fail(rd, "could not send",
                                      sizeof("could not send") - 1);
    }
}


/* The answer to AUTH or SELECT. */

static void
ngx_http_affiliate_redis_greeting(redisAsyncContext *ac, void *reply,
    void *data)
{
    redisReply                  *r;
    ngx_http_affiliate_redis_t  *rd;

    (void) ac;

    r = reply;
    rd = data;

    if (r == NULL || r->type == REDIS_REPLY_STATUS) {
        return;
    }

    if (r->type == REDIS_REPLY_ERROR && r->str != NULL) {
        ngx_http_affiliate_redis_fail(rd, r->str, r->len);
        return;
    }

    ngx_http_affiliate_redis_fail(rd, "unexpected reply",
                                  sizeof("unexpected reply") - 1);
}


/* The answer to PING. */

static void
ngx_http_affiliate_redis_greeted(redisAsyncContext *ac, void *reply,
    void *data)
{
    size_t                       argvlen[2];
    const char                  *argv[2];
    ngx_http_affiliate_redis_t  *rd;

    rd = data;

    ngx_http_affiliate_redis_greeting(ac, reply, data);

    if (reply == NULL || rd->failed
        || rd->state != NGX_HTTP_AFFILIATE_REDIS_GREETING)
    {
        return;
    }

    if (!rd->subscribe) {
        ngx_http_affiliate_redis_set_ready(rd);
        return;
    }

    argv[0] = "SUBSCRIBE";
    argvlen[0] = sizeof("SUBSCRIBE") - 1;
    argv[1] = (char *) rd->channel.data;
    argvlen[1] = rd->channel.len;

    if (redisAsyncCommandArgv(ac, ngx_http_affiliate_redis_subscribed, rd, 2,
                              argv, argvlen)
        != REDIS_OK)
    {
        ngx_http_affiliate_redis_fail(rd, "could not send",
                                      sizeof("could not send") - 1);
    }
}


/* The subscription's confirmation, and each message. */

static void
ngx_http_affiliate_redis_subscribed(redisAsyncContext *ac, void *reply,
    void *data)
{
    ngx_str_t                    message;
    redisReply                  *r, *kind;
    ngx_http_affiliate_redis_t  *rd;

    (void) ac;

    r = reply;
    rd = data;

    if (r == NULL || rd->failed
        || rd->state == NGX_HTTP_AFFILIATE_REDIS_CLOSED)
    {
        return;
    }

    if (r->type == REDIS_REPLY_ERROR && r->str != NULL) {
        ngx_http_affiliate_redis_fail(rd, r->str, r->len);
        return;
    }

    if (r->type != REDIS_REPLY_ARRAY || r->elements != 3
        || r->element[0]->type != REDIS_REPLY_STRING)
    {
        ngx_http_affiliate_redis_fail(rd, "unexpected reply",
                                      sizeof("unexpected reply") - 1);
        return;
    }

    rd->heard = ngx_current_msec;
    rd->tested = 0;

    kind = r->element[0];

    if (ngx_strcasecmp((u_char *) kind->str, (u_char *) "subscribe") == 0) {

        if (rd->state == NGX_HTTP_AFFILIATE_REDIS_GREETING) {
            ngx_http_affiliate_redis_set_ready(rd);
        }

        return;
    }

    if (ngx_strcasecmp((u_char *) kind->str, (u_char *) "message") != 0
        || r->element[2]->type != REDIS_REPLY_STRING)
    {
        return;
    }

    message.data = (u_char *) r->element[2]->str;
    message.len = r->element[2]->len;

    if (message.len == sizeof(NGX_HTTP_AFFILIATE_REDIS_PING) - 1
        && ngx_memcmp(message.data, NGX_HTTP_AFFILIATE_REDIS_PING, message.len)
           == 0)
    {
        return;
    }

    rd->message(rd->data, &message);
}


static void
ngx_http_affiliate_redis_set_ready(ngx_http_affiliate_redis_t *rd)
{
    rd->state = NGX_HTTP_AFFILIATE_REDIS_READY;

    if (rd->watch.timer_set) {
        ngx_del_timer(&rd->watch);
    }

    rd->proven = 0;
    rd->since = ngx_current_msec;

    /* where the last one was of no use, this one proves itself first */

    if (!rd->doubtful) {
        rd->failures = 0;
        ngx_http_affiliate_redis_announce(rd);
    }

    if (rd->subscribe) {
        rd->heard = ngx_current_msec;
        rd->tested = 0;
        ngx_add_timer(&rd->idle, NGX_HTTP_AFFILIATE_REDIS_IDLE);
    }

    /* told from the posted event: this is a callback of hiredis */
    ngx_post_event(&rd->event, &ngx_posted_events);
}


/* The line that ends the one of ngx_http_affiliate_redis_down(). */

static void
ngx_http_affiliate_redis_announce(ngx_http_affiliate_redis_t *rd)
{
    ngx_uint_t  level;

    /* one line for what went wrong, and one that it is over */
    level = rd->complained ? NGX_LOG_WARN : NGX_LOG_INFO;

    ngx_log_error(level, ngx_cycle->log, 0,
                  "affiliate %s: connected to redis \"%V\"", rd->name,
                  &rd->addr->name);

    rd->complained = 0;
}


static void
ngx_http_affiliate_redis_answered(redisAsyncContext *ac, void *reply,
    void *data)
{
    redisReply                          *r;
    ngx_http_affiliate_redis_t          *rd;
    ngx_http_affiliate_redis_command_t  *cmd;

    (void) ac;

    r = reply;
    cmd = data;
    rd = cmd->redis;

    ngx_queue_remove(&cmd->queue);
    rd->in_flight -= cmd->size;

    if (r == NULL) {
        /* hiredis is tearing the connection down: nothing more is taken */
        rd->failed = 1;
    }

    cmd->handler(cmd->data, r);

    if (!rd->failed && r->type != REDIS_REPLY_ERROR) {
        rd->proven = 1;

        if (rd->doubtful) {
            rd->doubtful = 0;
            rd->failures = 0;
            ngx_http_affiliate_redis_announce(rd);
        }
    }

    if (rd->nfree < NGX_HTTP_AFFILIATE_REDIS_FREE_MAX) {
        ngx_queue_insert_head(&rd->free, &cmd->queue);
        rd->nfree++;
        return;
    }

    ngx_free(cmd);
}


/* Notes why; the posted event closes.  The first reason is the one. */

static void
ngx_http_affiliate_redis_fail(ngx_http_affiliate_redis_t *rd,
    const char *reason, size_t len)
{
    if (rd->state == NGX_HTTP_AFFILIATE_REDIS_CLOSED) {
        return;
    }

    if (rd->error_len == 0) {
        rd->error_len = ngx_min(len, NGX_HTTP_AFFILIATE_REDIS_ERROR_LEN);
        ngx_memcpy(rd->error, reason, rd->error_len);
    }

    rd->failed = 1;
    ngx_post_event(&rd->event, &ngx_posted_events);
}


static void
ngx_http_affiliate_redis_event_handler(ngx_event_t *ev)
{
    ngx_http_affiliate_redis_t  *rd;

    rd = ev->data;

    if (rd->failed && rd->context) {
        /* the cleanup hook forgets the context and posts this event again */
        redisAsyncFree(rd->context);

        if (ev->posted) {
            ngx_delete_posted_event(ev);
        }
    }

    if (rd->context == NULL) {

        if (rd->state != NGX_HTTP_AFFILIATE_REDIS_WAITING) {
            ngx_http_affiliate_redis_down(rd);
        }

        return;
    }

    if (rd->state == NGX_HTTP_AFFILIATE_REDIS_READY && !rd->up) {
        rd->up = 1;

        if (rd->handler) {
            rd->handler(rd->data, 1);
        }
    }
}


static void
ngx_http_affiliate_redis_down(ngx_http_affiliate_redis_t *rd)
{
    ngx_uint_t  up;

    if (rd->watch.timer_set) {
        ngx_del_timer(&rd->watch);
    }

    if (rd->idle.timer_set) {
        ngx_del_timer(&rd->idle);
    }

    if (!rd->complained && !rd->quit) {
        rd->complained = 1;

        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "affiliate %s: %s redis \"%V\": %*s, trying again",
                      rd->name,
                      (rd->state == NGX_HTTP_AFFILIATE_REDIS_READY)
                      ? "lost" : "could not connect to",
                      &rd->addr->name, rd->error_len, rd->error);
    }

    if (rd->state == NGX_HTTP_AFFILIATE_REDIS_READY) {

        /* an idle one has proven itself by lasting */

        rd->doubtful = !rd->proven
                       && ngx_current_msec - rd->since
                          < 2 * rd->conf->reconnect_max;
    }

    up = rd->up;

    rd->up = 0;
    rd->failed = 0;
    rd->state = NGX_HTTP_AFFILIATE_REDIS_WAITING;

    /* a worker that is told to close does not open again */

    if (!rd->quit) {
        ngx_add_timer(&rd->retry, ngx_http_affiliate_redis_backoff(rd));
    }

    if (up && rd->handler) {
        rd->handler(rd->data, 0);
    }
}


/*
 * Full jitter (M. Brooker, "Exponential Backoff And Jitter"), doubled when all
 * the servers were tried.
 */

static ngx_msec_t
ngx_http_affiliate_redis_backoff(ngx_http_affiliate_redis_t *rd)
{
    ngx_uint_t  n;
    ngx_msec_t  limit;

    limit = rd->conf->reconnect_min;

    for (n = rd->failures++ / rd->conf->servers.nelts;
         n != 0 && limit < rd->conf->reconnect_max;
         n--)
    {
        limit *= 2;
    }

    limit = ngx_min(limit, rd->conf->reconnect_max);

    return 1 + (ngx_msec_t) ngx_random() % (limit + 1);
}


static void
ngx_http_affiliate_redis_retry_handler(ngx_event_t *ev)
{
    ngx_http_affiliate_redis_connect(ev->data);
}


static void
ngx_http_affiliate_redis_watch_handler(ngx_event_t *ev)
{
    ngx_msec_t                           elapsed;
    ngx_queue_t                         *q;
    ngx_http_affiliate_redis_t          *rd;
    ngx_http_affiliate_redis_command_t  *cmd;

    rd = ev->data;

    if (rd->state != NGX_HTTP_AFFILIATE_REDIS_READY) {
        ngx_http_affiliate_redis_fail(rd, "timed out",
                                      sizeof("timed out") - 1);
        return;
    }

    if (ngx_queue_empty(&rd->commands)) {
        return;
    }

    q = ngx_queue_head(&rd->commands);
    cmd = ngx_queue_data(q, ngx_http_affiliate_redis_command_t, queue);

    elapsed = ngx_current_msec - cmd->sent;

    if (elapsed >= rd->conf->timeout) {
        /* it takes commands and doesn't answer */
        rd->proven = 0;
        ngx_http_affiliate_redis_fail(rd, "no answer in time",
                                      sizeof("no answer in time") - 1);
        return;
    }

    ngx_add_timer(ev, rd->conf->timeout - elapsed);
}


/* Only subscriptions have this timer. */

static void
ngx_http_affiliate_redis_idle_handler(ngx_event_t *ev)
{
    size_t                       argvlen[3];
    const char                  *argv[3];
    ngx_msec_t                   silent;
    ngx_http_affiliate_redis_t  *rd;

    rd = ev->data;

    if (rd->state != NGX_HTTP_AFFILIATE_REDIS_READY) {
        return;
    }

    silent = ngx_current_msec - rd->heard;

    if (silent < NGX_HTTP_AFFILIATE_REDIS_IDLE) {
        ngx_add_timer(ev, NGX_HTTP_AFFILIATE_REDIS_IDLE - silent);
        return;
    }

    if (rd->tested) {
        ngx_http_affiliate_redis_fail(rd, "the subscription is dead",
                                      sizeof("the subscription is dead") - 1);
        return;
    }

    ngx_add_timer(ev, NGX_HTTP_AFFILIATE_REDIS_IDLE);

    if (rd->publisher == NULL) {
        return;
    }

    argv[0] = "PUBLISH";
    argvlen[0] = sizeof("PUBLISH") - 1;
    argv[1] = (char *) rd->channel.data;
    argvlen[1] = rd->channel.len;
    argv[2] = NGX_HTTP_AFFILIATE_REDIS_PING;
    argvlen[2] = sizeof(NGX_HTTP_AFFILIATE_REDIS_PING) - 1;

    /* a publisher that is away itself proves nothing */

    if (ngx_http_affiliate_redis_command(rd->publisher,
                                         ngx_http_affiliate_redis_ponged,
                                         rd->publisher, 3, argv, argvlen)
        == NGX_OK)
    {
        rd->tested = 1;
    }
}


static void
ngx_http_affiliate_redis_ponged(void *data, redisReply *reply)
{
    (void) ngx_http_affiliate_redis_unavailable(data, reply);
}


char *
ngx_http_affiliate_redis_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    char                             *p, *rv, *rule;
    ngx_int_t                         n;
    ngx_str_t                        *value, s;
    ngx_uint_t                        i;
    ngx_http_affiliate_redis_conf_t  *rcf;

    p = conf;
    rcf = (ngx_http_affiliate_redis_conf_t *) (p + cmd->offset);

    if (rcf->servers.elts != NULL) {
        return "is duplicate";
    }

    if (ngx_array_init(&rcf->servers, cf->pool, 2, sizeof(ngx_addr_t))
        != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    rcf->database = 0;
    ngx_str_null(&rcf->user);
    ngx_str_null(&rcf->password);

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {

        if (ngx_strncmp(value[i].data, "user=", 5) == 0) {
            rcf->user.len = value[i].len - 5;
            rcf->user.data = value[i].data + 5;

            if (rcf->user.len == 0) {
                rule = "must name a user";
                goto invalid;
            }

            continue;
        }

        if (ngx_strncmp(value[i].data, "password_file=", 14) == 0) {
            s.len = value[i].len - 14;
            s.data = value[i].data + 14;

            if (s.len == 0 || rcf->password.len) {
                rule = "must name one file";
                goto invalid;
            }

            rv = ngx_http_affiliate_redis_password(cf, rcf, &s);
            if (rv != NGX_CONF_OK) {
                return rv;
            }

            continue;
        }

        if (ngx_strncmp(value[i].data, "db=", 3) == 0) {
            n = ngx_atoi(value[i].data + 3, value[i].len - 3);
            if (n == NGX_ERROR) {
                rule = "must be a database's number";
                goto invalid;
            }

            rcf->database = n;
            continue;
        }

        rv = ngx_http_affiliate_redis_address(cf, rcf, &value[i]);
        if (rv != NGX_CONF_OK) {
            return rv;
        }
    }

    if (rcf->servers.nelts == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" must have at least one address", &cmd->name);
        return NGX_CONF_ERROR;
    }

    if (rcf->user.len && rcf->password.len == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" with \"user=\" must have "
                           "\"password_file=\"", &cmd->name);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;

invalid:

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" %s", &value[i], rule);
    return NGX_CONF_ERROR;
}


static char *
ngx_http_affiliate_redis_address(ngx_conf_t *cf,
    ngx_http_affiliate_redis_conf_t *rcf, ngx_str_t *value)
{
    ngx_url_t    u;
    ngx_uint_t   i;
    ngx_addr_t  *addr;

    ngx_memzero(&u, sizeof(ngx_url_t));

    u.url = *value;
    u.default_port = 6379;

    if (ngx_parse_url(cf->pool, &u) != NGX_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "%s in redis address \"%V\"",
                           u.err ? u.err : "out of memory", &u.url);
        return NGX_CONF_ERROR;
    }

    for (i = 0; i < u.naddrs; i++) {
        addr = ngx_array_push(&rcf->servers);
        if (addr == NULL) {
            return NGX_CONF_ERROR;
        }

        *addr = u.addrs[i];
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_affiliate_redis_password(ngx_conf_t *cf,
    ngx_http_affiliate_redis_conf_t *rcf, ngx_str_t *name)
{
    char             *rv;
    u_char           *buf;
    ssize_t           n;
    ngx_fd_t          fd;
    ngx_file_info_t   fi;

    if (ngx_conf_full_name(cf->cycle, name, 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    fd = ngx_open_file(name->data, NGX_FILE_RDONLY, NGX_FILE_OPEN, 0);
    if (fd == NGX_INVALID_FILE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           ngx_open_file_n " \"%V\" failed", name);
        return NGX_CONF_ERROR;
    }

    rv = NGX_CONF_ERROR;

    buf = ngx_pnalloc(cf->pool, NGX_HTTP_AFFILIATE_REDIS_PASSWORD_MAX + 1);
    if (buf == NULL) {
        goto done;
    }

    n = ngx_read_fd(fd, buf, NGX_HTTP_AFFILIATE_REDIS_PASSWORD_MAX + 1);
    if (n == -1) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           ngx_read_fd_n " \"%V\" failed", name);
        goto done;
    }

    if (n > NGX_HTTP_AFFILIATE_REDIS_PASSWORD_MAX) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "password file \"%V\" is longer than %d bytes",
                           name, NGX_HTTP_AFFILIATE_REDIS_PASSWORD_MAX);
        goto done;
    }

    if (n > 0 && buf[n - 1] == LF) {
        n--;
    }

    if (n > 0 && buf[n - 1] == CR) {
        n--;
    }

    if (n == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "password file \"%V\" is empty", name);
        goto done;
    }

    if (ngx_fd_info(fd, &fi) != NGX_FILE_ERROR
        && (ngx_file_access(&fi) & (S_IRWXO)))
    {
        ngx_conf_log_error(NGX_LOG_WARN, cf, 0,
                           "password file \"%V\" is open to everyone, "
                           "chmod it to 0600", name);
    }

    rcf->password.data = buf;
    rcf->password.len = n;

    rv = NGX_CONF_OK;

done:

    if (ngx_close_file(fd) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_ALERT, cf, ngx_errno,
                           ngx_close_file_n " \"%V\" failed", name);
    }

    return rv;
}
