
/*
 * What differs between nginx 1.22 and mainline, gathered here.
 */

#ifndef _NGX_HTTP_AFFILIATE_COMPAT_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_COMPAT_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>


/* Headers of one name became a linked list in 1.23.0. */

#if defined(nginx_version) && nginx_version >= 1023000
#define ngx_http_affiliate_header_single(h)  (h)->next = NULL
#else
#define ngx_http_affiliate_header_single(h)
#endif


#endif /* _NGX_HTTP_AFFILIATE_COMPAT_H_INCLUDED_ */
