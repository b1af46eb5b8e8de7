
/*
 * Redis on nginx's event loop: one pipelined connection to the first server
 * that answers, its timeouts, its backoff.  Knows nothing of HTTP requests.
 */

#ifndef _NGX_HTTP_AFFILIATE_REDIS_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_REDIS_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include <hiredis/hiredis.h>


typedef struct {
    ngx_array_t                      servers;  /* ngx_addr_t */
    ngx_str_t                        user;
    ngx_str_t                        password; /* read from its file */
    ngx_uint_t                       database;
    ngx_msec_t                       connect_timeout;
    ngx_msec_t                       timeout;  /* of a command */
    ngx_msec_t                       reconnect_min;
    ngx_msec_t                       reconnect_max;
} ngx_http_affiliate_redis_conf_t;


typedef struct ngx_http_affiliate_redis_s  ngx_http_affiliate_redis_t;

/*
 * Called once for every accepted command: with the reply (valid during the
 * call only; may be of type REDIS_REPLY_ERROR), or with NULL if the
 * connection was lost or the command timed out.  Must not finalize a request
 * nor close this connection: post an event instead.
 */
typedef void (*ngx_http_affiliate_redis_reply_pt)(void *data,
    redisReply *reply);

/* Called when the connection becomes ready (up = 1) or is lost (up = 0). */
typedef void (*ngx_http_affiliate_redis_state_pt)(void *data, ngx_uint_t up);


/* Called for every payload of a subscribed channel. */
typedef void (*ngx_http_affiliate_redis_message_pt)(void *data,
    ngx_str_t *message);


/*
 * "affiliate_redis address [address ...] [user=] [password_file=] [db=]":
 * the directive's setter; conf is the ngx_http_affiliate_redis_conf_t at
 * cmd->offset.
 */
char *ngx_http_affiliate_redis_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

/*
 * Creates a connection that keeps itself open from now on; "name" ("lookup",
 * "ship", "subscribe") is for the log.  Both must outlive it.  The first
 * attempt is made from a timer with jitter, never from within this call.
 * NULL if out of memory.
 */
ngx_http_affiliate_redis_t *ngx_http_affiliate_redis_create(
    ngx_http_affiliate_redis_conf_t *conf, const char *name,
    ngx_http_affiliate_redis_state_pt handler, void *data);

/*
 * A dedicated connection that subscribes to one channel: message() gets every
 * payload published there (valid during the call only), handler() the state;
 * up = 1 means that the subscription is in force, so that what was missed
 * while it was not can be made up for.  It is never pinged itself.  Where a
 * publisher is given (another connection to the same servers, which must
 * outlive this one), a payload of our own is published on the channel when it
 * was silent for a while, and the subscription is renewed if nothing comes
 * back; these payloads are not given to message().  Name and channel must
 * outlive it.  NULL if out of memory.
 */
ngx_http_affiliate_redis_t *ngx_http_affiliate_redis_subscribe(
    ngx_http_affiliate_redis_conf_t *conf, const char *name,
    ngx_str_t *channel, ngx_http_affiliate_redis_t *publisher,
    ngx_http_affiliate_redis_message_pt message,
    ngx_http_affiliate_redis_state_pt handler, void *data);

/* Closes for good: every command in flight gets its NULL reply first. */
void ngx_http_affiliate_redis_destroy(ngx_http_affiliate_redis_t *rd);

ngx_uint_t ngx_http_affiliate_redis_ready(ngx_http_affiliate_redis_t *rd);

/*
 * Sends a command.  NGX_OK: reply handler will be called, never from within
 * this call.  NGX_DECLINED: not ready, too much in flight, or out of memory;
 * the handler will not be called.  argv is copied.
 */
ngx_int_t ngx_http_affiliate_redis_command(ngx_http_affiliate_redis_t *rd,
    ngx_http_affiliate_redis_reply_pt handler, void *data, int argc,
    const char **argv, const size_t *argvlen);

/* Bytes handed over and not answered yet. */
size_t ngx_http_affiliate_redis_in_flight(ngx_http_affiliate_redis_t *rd);

/*
 * True for replies that mean "later, or elsewhere" (-LOADING, -READONLY,
 * -MASTERDOWN, -NOREPLICAS, -OOM, -MISCONF, -NOAUTH, ...); the connection is
 * then given up and tried again after the backoff.
 */
ngx_uint_t ngx_http_affiliate_redis_unavailable(ngx_http_affiliate_redis_t *rd,
    redisReply *reply);

/*
 * Gives the connection up for another reason, which is logged, and tries again
 * after the backoff.  May be called by a reply handler.
 */
void ngx_http_affiliate_redis_give_up(ngx_http_affiliate_redis_t *rd,
    const char *reason);


#endif /* _NGX_HTTP_AFFILIATE_REDIS_H_INCLUDED_ */
