
/*
 * From a code or a key id to its record: the shared cache first, then Redis,
 * with one question in flight per name and worker however many wait.
 */

#ifndef _NGX_HTTP_AFFILIATE_LOOKUP_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_LOOKUP_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_affiliate_cache.h"


typedef struct ngx_http_affiliate_lookup_s  ngx_http_affiliate_lookup_t;


/*
 * A request's question.  Lives in the request's pool; "status" and the record
 * are filled when ngx_http_affiliate_lookup() returns NGX_OK, or when handler
 * is called.  A record (link or key by kind) is NULL for status NEGATIVE and
 * UNKNOWN.  A key is of the request's pool; a link is good until control goes
 * back to the event loop, or something else is looked up.
 */
typedef struct {
    ngx_http_affiliate_kind_e           kind;
    ngx_str_t                           name;
    ngx_http_affiliate_cache_status_e   status;
    struct aff_link                    *link;
    struct aff_key                     *key;
    ngx_msec_t                          time;     /* spent waiting */
    ngx_int_t                         (*handler)(ngx_http_request_t *r);
    /* the rest belongs to lookup.c */
    ngx_http_request_t                 *request;
    ngx_http_cleanup_t                 *cleanup;
    ngx_http_affiliate_lookup_t        *lookup;
    ngx_queue_t                         queue;
    ngx_event_t                         timer;
    ngx_msec_t                          start;
} ngx_http_affiliate_question_t;


/*
 * NGX_OK: answered at once.  NGX_DONE: the request is parked (count++ done);
 * q->handler(r) will be called from a posted event with the answer filled, and
 * what it returns is given to ngx_http_finalize_request().  NGX_ERROR.
 * A client that goes away meanwhile is forgotten by the request's cleanup.
 */
ngx_int_t ngx_http_affiliate_lookup(ngx_http_request_t *r,
    ngx_http_affiliate_question_t *q);

/*
 * init_process: opens the lookup connection and, in the first worker, the
 * subscription to invalidations.  exit_process: closes them.
 */
ngx_int_t ngx_http_affiliate_lookup_init(ngx_cycle_t *cycle);
void ngx_http_affiliate_lookup_done(void);


#endif /* _NGX_HTTP_AFFILIATE_LOOKUP_H_INCLUDED_ */
