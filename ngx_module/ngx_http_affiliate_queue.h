
/*
 * What ngx_queue.h lacks.
 */

#ifndef _NGX_HTTP_AFFILIATE_QUEUE_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_QUEUE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>


/* Removes the first of a queue that is not empty, and returns it. */

static ngx_inline ngx_queue_t *
ngx_http_affiliate_queue_take(ngx_queue_t *queue)
{
    ngx_queue_t  *q;

    q = ngx_queue_head(queue);

    /* the analyzer loses track of a ring's links, and sees freed ones */
    ngx_queue_remove(q);  /* NOLINT(clang-analyzer-*) */

    return q;
}


#endif /* _NGX_HTTP_AFFILIATE_QUEUE_H_INCLUDED_ */
