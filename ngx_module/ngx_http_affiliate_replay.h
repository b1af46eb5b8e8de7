
/*
 * What was accepted lately, and how fast each API key calls: tables in the
 * shared zone, of fixed size, without locks.
 */

#ifndef _NGX_HTTP_AFFILIATE_REPLAY_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_REPLAY_H_INCLUDED_


#include "ngx_http_affiliate_conversion.h"


#define NGX_HTTP_AFFILIATE_REPLAY_BYTES   16     /* of a hash */
#define NGX_HTTP_AFFILIATE_REPLAY_VALID   86400  /* seconds */


/*
 * What is known of a call's identity: NGX_OK, accepted with this very body;
 * NGX_ABORT, with another one; NGX_DECLINED, not known (any more).
 */
ngx_int_t ngx_http_affiliate_replay_find(ngx_http_affiliate_replay_t *replay,
    const u_char *identity, const u_char *body);

/* Remembers an accepted call; the oldest of its neighbours is forgotten. */
void ngx_http_affiliate_replay_add(ngx_http_affiliate_replay_t *replay,
    const u_char *identity, const u_char *body);

/*
 * Whether a key with this hash may call now, at "rate" calls a second with a
 * burst of one second's worth: 0, or milliseconds until it may.
 */
ngx_msec_t ngx_http_affiliate_replay_rate(ngx_http_affiliate_replay_t *replay,
    uint64_t hash, ngx_uint_t rate);


#endif /* _NGX_HTTP_AFFILIATE_REPLAY_H_INCLUDED_ */
