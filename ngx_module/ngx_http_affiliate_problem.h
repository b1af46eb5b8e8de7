
/*
 * Refusals of merchants' calls: RFC 9457 problem documents.
 */

#ifndef _NGX_HTTP_AFFILIATE_PROBLEM_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_PROBLEM_H_INCLUDED_


#include "ngx_http_affiliate_answer.h"


/* What merchants' code may rely on is the name, see the table. */
typedef enum {
    NGX_HTTP_AFFILIATE_METHOD_NOT_ALLOWED = 0,
    NGX_HTTP_AFFILIATE_NOT_FOUND,
    NGX_HTTP_AFFILIATE_LENGTH_REQUIRED,
    NGX_HTTP_AFFILIATE_BODY_TOO_LARGE,
    NGX_HTTP_AFFILIATE_MALFORMED_BODY,
    NGX_HTTP_AFFILIATE_MISSING_HEADER,
    NGX_HTTP_AFFILIATE_DUPLICATE_HEADER,
    NGX_HTTP_AFFILIATE_MALFORMED_HEADER,
    NGX_HTTP_AFFILIATE_MISSING_PARAMETER,
    NGX_HTTP_AFFILIATE_DUPLICATE_PARAMETER,
    NGX_HTTP_AFFILIATE_MALFORMED_PARAMETER,
    NGX_HTTP_AFFILIATE_UNKNOWN_KEY,
    NGX_HTTP_AFFILIATE_CLOCK_SKEW,
    NGX_HTTP_AFFILIATE_BAD_SIGNATURE,
    NGX_HTTP_AFFILIATE_RATE_LIMITED,
    NGX_HTTP_AFFILIATE_MEDIA_TYPE,
    NGX_HTTP_AFFILIATE_MALFORMED_JSON,
    NGX_HTTP_AFFILIATE_VALIDATION,
    NGX_HTTP_AFFILIATE_CLICK_MALFORMED,
    NGX_HTTP_AFFILIATE_CLICK_UNKNOWN,
    NGX_HTTP_AFFILIATE_CLICK_MODE,
    NGX_HTTP_AFFILIATE_CLICK_EXPIRED,
    NGX_HTTP_AFFILIATE_KEY_REUSED,
    NGX_HTTP_AFFILIATE_UNAVAILABLE
} ngx_http_affiliate_problem_e;


/* The code's name and HTTP status. */
const char *ngx_http_affiliate_problem_code(
    ngx_http_affiliate_problem_e problem);
ngx_uint_t ngx_http_affiliate_problem_status(
    ngx_http_affiliate_problem_e problem);

/*
 * Answers with the problem and counts it.  "detail" is a sentence for people.
 * "members" are further members of the object, each begun with a comma, or
 * NULL.  Returns what the request is to be finalized with.
 */
ngx_int_t ngx_http_affiliate_problem(ngx_http_request_t *r,
    ngx_http_affiliate_problem_e problem, const char *detail,
    ngx_http_affiliate_text_t *members);

/* The same with Retry-After, in seconds. */
ngx_int_t ngx_http_affiliate_problem_retry(ngx_http_request_t *r,
    ngx_http_affiliate_problem_e problem, const char *detail, time_t after);

/* ,"request_id":"..." */
void ngx_http_affiliate_problem_request_id(ngx_http_request_t *r,
    ngx_http_affiliate_text_t *text);


#endif /* _NGX_HTTP_AFFILIATE_PROBLEM_H_INCLUDED_ */
