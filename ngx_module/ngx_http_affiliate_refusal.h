
/*
 * Refused calls of known keys, on their way to the merchant's log of calls.
 */

#ifndef _NGX_HTTP_AFFILIATE_REFUSAL_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_REFUSAL_H_INCLUDED_


#include "ngx_http_affiliate_call.h"


/*
 * Records that the request's call is refused, if it has one and its key is
 * known here.  Best effort: so many a second and key, and none while the spool
 * has a backlog.
 */
void ngx_http_affiliate_refusal_add(ngx_http_request_t *r,
    ngx_http_affiliate_problem_e problem, const char *detail);

/* The same of one event of a batch, whose other events may be accepted. */
void ngx_http_affiliate_refusal_event(ngx_http_affiliate_call_t *call,
    ngx_http_affiliate_problem_e problem, const json_t *event,
    ngx_uint_t position);

/* In test mode: that the call was accepted before, and answered like that. */
void ngx_http_affiliate_refusal_repeated(ngx_http_affiliate_call_t *call);


#endif /* _NGX_HTTP_AFFILIATE_REFUSAL_H_INCLUDED_ */
