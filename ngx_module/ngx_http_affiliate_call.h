
/*
 * A merchant's call on its way: read, identified, authenticated, compared with
 * what was accepted before, judged, recorded, answered.
 *
 * Each step returns what the request is to be finalized with: NGX_DONE when it
 * has parked the request, with a reference of its own, and will go on later.
 */

#ifndef _NGX_HTTP_AFFILIATE_CALL_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_CALL_H_INCLUDED_


#include "ngx_http_affiliate.h"
#include "ngx_http_affiliate_problem.h"
#include "ngx_http_affiliate_replay.h"

#include "../protocol/event.h"


#define NGX_HTTP_AFFILIATE_RETRY_AFTER  5   /* seconds, with a 503 */


typedef struct ngx_http_affiliate_call_s  ngx_http_affiliate_call_t;
typedef struct ngx_http_affiliate_recall_s  ngx_http_affiliate_recall_t;

typedef ngx_int_t (*ngx_http_affiliate_step_pt)(
    ngx_http_affiliate_call_t *call);


struct ngx_http_affiliate_call_s {
    ngx_http_request_t                  *request;
    ngx_http_affiliate_main_conf_t      *amcf;
    ngx_http_affiliate_loc_conf_t       *alcf;
    enum aff_source                      source;

    /* as they stood on the wire */
    ngx_str_t                            key_id;
    ngx_str_t                            timestamp;
    ngx_str_t                            signature;
    ngx_str_t                            signed_key;   /* the Idempotency-Key
                                                          in the signature */
    ngx_str_t                            idempotency_key;
    ngx_str_t                            target;       /* path_with_query */
    ngx_str_t                            content_type;
    ngx_str_t                            body;

    u_char                               body_hash[32];    /* SHA-256 */
    u_char                               key_hash[32];     /* of the
                                                              Idempotency-Key */
    u_char                               identity[32];     /* of key id and
                                                              that */
    ngx_http_affiliate_question_t        question;
    ngx_http_affiliate_recall_t         *recall;       /* Redis is asked */
    ngx_int_t                            recalled;     /* as replay_find() */

    json_t                              *json;
    struct aff_event_errors             *faults;       /* of the event at hand,
                                                          or NULL */
    ngx_str_t                            excerpt;      /* of the body, where it
                                                          is no JSON */
    ngx_http_affiliate_step_pt           step;         /* after parking */
    ngx_event_t                          timer;
    ngx_http_affiliate_waiter_t          waiter;
    ngx_http_affiliate_text_t            results;      /* of a batch */
    ngx_uint_t                           accepted;     /* events */
    ngx_uint_t                           refused;

    size_t                               room;         /* of body.data */
    unsigned                             own_body:1;   /* read by us alone */
    unsigned                             parked:1;
    unsigned                             authentic:1;  /* its signature is
                                                          right */
    unsigned                             durable:1;    /* all events */
};


/* A call of this request, forgotten when the request is gone; or NULL. */
ngx_http_affiliate_call_t *ngx_http_affiliate_call_create(
    ngx_http_request_t *r, enum aff_source source);

/*
 * Holds the request until ngx_http_affiliate_call_resume(), at most "timeout";
 * then "step" goes on.
 */
ngx_int_t ngx_http_affiliate_call_park(ngx_http_affiliate_call_t *call,
    ngx_http_affiliate_step_pt step, ngx_msec_t timeout);

/* From a posted event only; neither call nor request may be touched after. */
void ngx_http_affiliate_call_resume(ngx_http_affiliate_call_t *call);

/*
 * The way on, once the fields up to body_hash are filled (for a postback, json
 * too); idempotency_key is within AFF_IDEMPOTENCY_KEY_MAX.
 */
ngx_int_t ngx_http_affiliate_call_identify(ngx_http_affiliate_call_t *call);

/*
 * Reads the request's body into memory, at most max_body bytes, and calls
 * "step".  To be returned from the content handler.
 */
ngx_int_t ngx_http_affiliate_body_read(ngx_http_affiliate_call_t *call,
    ngx_http_affiliate_step_pt step);

/*
 * Sets call->recalled from the zone, or else by asking Redis, which parks the
 * request; then calls "step".
 */
ngx_int_t ngx_http_affiliate_recall(ngx_http_affiliate_call_t *call,
    ngx_http_affiliate_step_pt step);

/* Forgets a call whose request is gone. */
void ngx_http_affiliate_recall_forget(ngx_http_affiliate_call_t *call);

/* Remembers an accepted call in the zone and in Redis. */
void ngx_http_affiliate_recall_add(ngx_http_affiliate_call_t *call);


static ngx_inline struct aff_slice
ngx_http_affiliate_slice(ngx_str_t *s)
{
    return aff_slice(s->data, s->len);
}


#endif /* _NGX_HTTP_AFFILIATE_CALL_H_INCLUDED_ */
