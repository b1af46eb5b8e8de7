
/*
 * Answers made by the module itself: a growing text, and a response of it that
 * no error_page gets hold of.
 */

#ifndef _NGX_HTTP_AFFILIATE_ANSWER_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_ANSWER_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>


/*
 * A text that grows in a pool; begin it with all but the pool zero.  Out of
 * memory is told once, by "failed", and by ngx_http_affiliate_answer().
 */
typedef struct {
    ngx_pool_t                          *pool;
    u_char                              *start;
    u_char                              *last;
    u_char                              *end;
    unsigned                             failed:1;
} ngx_http_affiliate_text_t;


void ngx_http_affiliate_text_put(ngx_http_affiliate_text_t *text,
    const void *data, size_t len);

#define ngx_http_affiliate_text_puts(text, literal)                          \
    ngx_http_affiliate_text_put(text, literal, sizeof(literal) - 1)

/* As ngx_sprintf(), of any length. */
void ngx_http_affiliate_text_printf(ngx_http_affiliate_text_t *text,
    const char *fmt, ...);

/* A JSON string with its quotes; bytes that are not UTF-8 become U+FFFD. */
void ngx_http_affiliate_text_json(ngx_http_affiliate_text_t *text,
    const void *data, size_t len);

/* A response header; name and value must live as long as the request. */
ngx_int_t ngx_http_affiliate_answer_header(ngx_http_request_t *r,
    const char *name, ngx_str_t *value);

/*
 * Sends status and text, with "Cache-Control: no-store"; only the header to a
 * HEAD request.  Returns what the request is to be finalized with.
 */
ngx_int_t ngx_http_affiliate_answer(ngx_http_request_t *r, ngx_uint_t status,
    const char *content_type, ngx_http_affiliate_text_t *text);


#endif /* _NGX_HTTP_AFFILIATE_ANSWER_H_INCLUDED_ */
