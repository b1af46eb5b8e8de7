
/*
 * affiliate_postback: the same call as a signed GET.
 */

#ifndef _NGX_HTTP_AFFILIATE_POSTBACK_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_POSTBACK_H_INCLUDED_


#include "ngx_http_affiliate_call.h"


ngx_int_t ngx_http_affiliate_postback_handler(ngx_http_request_t *r);

/* Refuses a request whose body, if any, is not to be read. */
ngx_int_t ngx_http_affiliate_conversion_discard(ngx_http_request_t *r,
    ngx_http_affiliate_problem_e problem, const char *detail);


#endif /* _NGX_HTTP_AFFILIATE_POSTBACK_H_INCLUDED_ */
