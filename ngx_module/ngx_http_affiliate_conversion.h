
/*
 * Merchants' signed calls: affiliate_conversion and affiliate_postback.
 */

#ifndef _NGX_HTTP_AFFILIATE_CONVERSION_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_CONVERSION_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>


/* Idempotency keys of the last day, in the shared zone; lossy, fixed size. */
typedef struct ngx_http_affiliate_replay_s  ngx_http_affiliate_replay_t;

size_t ngx_http_affiliate_replay_size(size_t zone_size);
ngx_http_affiliate_replay_t *ngx_http_affiliate_replay_init(void *mem,
    size_t size);


/* Directives; each sets the location's content handler. */
char *ngx_http_affiliate_conversion_directive(ngx_conf_t *cf,
    ngx_command_t *cmd, void *conf);
char *ngx_http_affiliate_postback_directive(ngx_conf_t *cf,
    ngx_command_t *cmd, void *conf);

/*
 * Called when a location has been merged: where affiliate_conversion is, lifts
 * client_max_body_size, so that affiliate_conversion_max_body is the limit and
 * its 413 the answer.
 */
void ngx_http_affiliate_conversion_merge(ngx_conf_t *cf);


#endif /* _NGX_HTTP_AFFILIATE_CONVERSION_H_INCLUDED_ */
