
/*
 * The body of a call.  It is read with nginx's own unbuffered reading, piece
 * by piece into one block of memory: so a body never goes to a file, whatever
 * client_body_buffer_size is, and the limit is held to the byte for chunked
 * bodies, too.
 */

#include "ngx_http_affiliate_call.h"


#define NGX_HTTP_AFFILIATE_BODY_CHUNKED  4096  /* first block of a body of
                                                  unknown length */


static void ngx_http_affiliate_body_start(ngx_http_request_t *r);
static void ngx_http_affiliate_body_handler(ngx_http_request_t *r);
static void ngx_http_affiliate_body_process(ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_body_take(ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_body_append(
    ngx_http_affiliate_call_t *call, ngx_buf_t *b);
static ngx_int_t ngx_http_affiliate_body_room(ngx_http_affiliate_call_t *call,
    size_t size);
static ngx_int_t ngx_http_affiliate_body_error(ngx_http_affiliate_call_t *call,
    ngx_int_t rc);


ngx_int_t
ngx_http_affiliate_body_read(ngx_http_affiliate_call_t *call,
    ngx_http_affiliate_step_pt step)
{
    ngx_int_t            rc;
    ngx_http_request_t  *r;

    r = call->request;

    if (r->headers_in.content_length_n > 0) {

        if (r->headers_in.content_length_n > (off_t) call->alcf->max_body) {
            return ngx_http_affiliate_body_error(call,
                                            NGX_HTTP_REQUEST_ENTITY_TOO_LARGE);
        }

        if (ngx_http_affiliate_body_room(call,
                                     (size_t) r->headers_in.content_length_n)
            != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    call->step = step;

    /* ngx_http_mirror_module, say, reads it earlier and needs it later */

    if (r->request_body == NULL) {
        call->own_body = 1;
        r->request_body_no_buffering = 1;
    }

    rc = ngx_http_read_client_request_body(r, ngx_http_affiliate_body_start);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return ngx_http_affiliate_body_error(call, rc);
    }

    return NGX_DONE;
}


static void
ngx_http_affiliate_body_start(ngx_http_request_t *r)
{
    ngx_http_affiliate_ctx_t  *ctx;

    ctx = ngx_http_affiliate_ctx(r);

    if (ctx == NULL || ctx->conversion == NULL) {
        ngx_http_finalize_request(r, NGX_HTTP_INTERNAL_SERVER_ERROR);
        return;
    }

    if (r->reading_body) {
        r->read_event_handler = ngx_http_affiliate_body_handler;
    }

    ngx_http_affiliate_body_process(ctx->conversion);
}


static void
ngx_http_affiliate_body_handler(ngx_http_request_t *r)
{
    ngx_http_affiliate_ctx_t  *ctx;

    if (r->connection->read->timedout) {
        r->connection->timedout = 1;
        ngx_http_finalize_request(r, NGX_HTTP_REQUEST_TIME_OUT);
        return;
    }

    ctx = ngx_http_affiliate_ctx(r);

    if (ctx == NULL || ctx->conversion == NULL) {
        ngx_http_finalize_request(r, NGX_HTTP_INTERNAL_SERVER_ERROR);
        return;
    }

    ngx_http_affiliate_body_process(ctx->conversion);
}


/* Holds the reference that reading took until all is read, or not to be. */

static void
ngx_http_affiliate_body_process(ngx_http_affiliate_call_t *call)
{
    ngx_int_t            rc;
    ngx_http_request_t  *r;

    r = call->request;

    for ( ;; ) {
        rc = ngx_http_affiliate_body_take(call);

        if (rc != NGX_OK || !r->reading_body) {
            break;
        }

        rc = ngx_http_read_unbuffered_request_body(r);

        if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
            break;
        }

        if (r->reading_body && r->request_body->bufs == NULL) {
            return;
        }
    }

    if (r->connection->read->timer_set) {
        ngx_del_timer(r->connection->read);
    }

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        ngx_http_finalize_request(r, ngx_http_affiliate_body_error(call, rc));
        return;
    }

    /* all has been read: closing has nothing to wait for */

    r->lingering_close = 0;
    r->read_event_handler = ngx_http_block_reading;

    ngx_http_finalize_request(r, call->step(call));
}


/* Copies what has come, and gives the buffers back to be filled again. */

static ngx_int_t
ngx_http_affiliate_body_take(ngx_http_affiliate_call_t *call)
{
    ngx_int_t                 rc;
    ngx_chain_t              *cl, *next;
    ngx_http_request_body_t  *rb;

    rb = call->request->request_body;

    if (rb == NULL) {
        return NGX_OK;
    }

    for (cl = rb->bufs; cl; cl = next) {
        next = cl->next;

        rc = ngx_http_affiliate_body_append(call, cl->buf);

        if (rc != NGX_OK) {
            return rc;
        }

        if (call->own_body) {
            cl->buf->pos = cl->buf->last;
            rb->bufs = next;
            ngx_free_chain(call->request->pool, cl);
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_affiliate_body_append(ngx_http_affiliate_call_t *call, ngx_buf_t *b)
{
    off_t    size;
    ssize_t  n;

    size = ngx_buf_size(b);

    if (size == 0) {
        return NGX_OK;
    }

    if (size > (off_t) (call->alcf->max_body - call->body.len)) {
        return NGX_HTTP_REQUEST_ENTITY_TOO_LARGE;
    }

    if (ngx_http_affiliate_body_room(call, call->body.len + (size_t) size)
        != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (ngx_buf_in_memory(b)) {
        ngx_memcpy(call->body.data + call->body.len, b->pos, (size_t) size);

    } else {

        /* somebody else had it buffered, a moment ago: it is in the cache */

        n = ngx_read_file(b->file, call->body.data + call->body.len,
                          (size_t) size, b->file_pos);

        if (n != (ssize_t) size) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    call->body.len += (size_t) size;

    return NGX_OK;
}


static ngx_int_t
ngx_http_affiliate_body_room(ngx_http_affiliate_call_t *call, size_t size)
{
    u_char  *p;
    size_t   room;

    if (size <= call->room) {
        return NGX_OK;
    }

    room = size;

    if (call->request->headers_in.chunked) {
        room = ngx_max(call->room, NGX_HTTP_AFFILIATE_BODY_CHUNKED);

        while (room < size) {
            room *= 2;
        }

        room = ngx_min(room, call->alcf->max_body);
    }

    p = ngx_pnalloc(call->request->pool, room);
    if (p == NULL) {
        return NGX_ERROR;
    }

    if (call->body.len) {
        ngx_memcpy(p, call->body.data, call->body.len);
    }

    if (call->body.data) {
        (void) ngx_pfree(call->request->pool, call->body.data);
    }

    call->body.data = p;
    call->room = room;

    return NGX_OK;
}


static ngx_int_t
ngx_http_affiliate_body_error(ngx_http_affiliate_call_t *call, ngx_int_t rc)
{
    u_char               detail[64 + NGX_SIZE_T_LEN];
    ngx_http_request_t  *r;

    r = call->request;

    if (r->connection->error) {
        return rc;
    }

    /* what is left of the body is no next request */

    r->keepalive = 0;

    switch (rc) {

    case NGX_HTTP_REQUEST_ENTITY_TOO_LARGE:
        ngx_sprintf(detail, "The body is over the limit of %uz bytes.%Z",
                    call->alcf->max_body);

        return ngx_http_affiliate_problem(r,
                                          NGX_HTTP_AFFILIATE_BODY_TOO_LARGE,
                                          (char *) detail, NULL);

    case NGX_HTTP_BAD_REQUEST:
        return ngx_http_affiliate_problem(r,
                                          NGX_HTTP_AFFILIATE_MALFORMED_BODY,
                                          "The body's chunks or length are "
                                          "malformed.", NULL);

    default:
        return rc;
    }
}
