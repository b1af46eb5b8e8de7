
/*
 * Texts and responses of the module's own.
 */

#include "ngx_http_affiliate_answer.h"
#include "ngx_http_affiliate_compat.h"


#define NGX_HTTP_AFFILIATE_TEXT_MIN  1024


static ngx_int_t ngx_http_affiliate_text_room(ngx_http_affiliate_text_t *text,
    size_t size);


void
ngx_http_affiliate_text_put(ngx_http_affiliate_text_t *text, const void *data,
    size_t len)
{
    if (ngx_http_affiliate_text_room(text, len) == NGX_OK) {
        text->last = ngx_cpymem(text->last, data, len);
    }
}


void
ngx_http_affiliate_text_printf(ngx_http_affiliate_text_t *text,
    const char *fmt, ...)
{
    u_char   *p;
    size_t    size;
    va_list   args;

    for (size = NGX_HTTP_AFFILIATE_TEXT_MIN / 2; ; size *= 2) {

        if (ngx_http_affiliate_text_room(text, size) != NGX_OK) {
            return;
        }

        va_start(args, fmt);
        p = ngx_vslprintf(text->last, text->end, fmt, args);
        va_end(args);

        /* a text that ends at the very end may have been cut */

        if (p < text->end) {
            text->last = p;
            return;
        }
    }
}


void
ngx_http_affiliate_text_json(ngx_http_affiliate_text_t *text,
    const void *data, size_t len)
{
    u_char    *p, *end, *start;
    uint32_t   ch;

    /* a byte becomes 6 at most: \u001f */

    if (ngx_http_affiliate_text_room(text, len * 6 + 2) != NGX_OK) {
        return;
    }

    *text->last++ = '"';

    p = (u_char *) data;
    end = p + len;

    while (p < end) {

        if (*p < 0x80) {
            text->last = (u_char *) ngx_escape_json(text->last, p, 1);
            p++;
            continue;
        }

        start = p;
        ch = ngx_utf8_decode(&p, (size_t) (end - p));

        if (ch <= 0x10ffff && (ch < 0xd800 || ch > 0xdfff)) {
            text->last = ngx_cpymem(text->last, start, p - start);

        } else {
            text->last = ngx_cpymem(text->last, "\\ufffd",
                                    sizeof("\\ufffd") - 1);
            p = start + 1;
        }
    }

    *text->last++ = '"';
}


static ngx_int_t
ngx_http_affiliate_text_room(ngx_http_affiliate_text_t *text, size_t size)
{
    u_char  *p;
    size_t   used, room;

    if ((size_t) (text->end - text->last) >= size) {
        return text->failed ? NGX_ERROR : NGX_OK;
    }

    if (text->failed) {
        return NGX_ERROR;
    }

    used = text->last - text->start;
    room = ngx_max(text->end - text->start, NGX_HTTP_AFFILIATE_TEXT_MIN);

    while (room - used < size) {
        room *= 2;
    }

    p = ngx_pnalloc(text->pool, room);

    if (p == NULL) {
        text->failed = 1;
        return NGX_ERROR;
    }

    if (used) {
        ngx_memcpy(p, text->start, used);
    }

    if (text->start) {
        ngx_pfree(text->pool, text->start);
    }

    text->start = p;
    text->last = p + used;
    text->end = p + room;

    return NGX_OK;
}


ngx_int_t
ngx_http_affiliate_answer_header(ngx_http_request_t *r, const char *name,
    ngx_str_t *value)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->hash = 1;
    h->key.len = ngx_strlen(name);
    h->key.data = (u_char *) name;
    h->value = *value;

    ngx_http_affiliate_header_single(h);

    return NGX_OK;
}


ngx_int_t
ngx_http_affiliate_answer(ngx_http_request_t *r, ngx_uint_t status,
    const char *content_type, ngx_http_affiliate_text_t *text)
{
    ngx_int_t           rc;
    ngx_buf_t          *b;
    ngx_chain_t         out;

    static ngx_str_t    no_store = ngx_string("no-store");

    if (text->failed || text->start == NULL
        || ngx_http_affiliate_answer_header(r, "Cache-Control", &no_store)
           != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->headers_out.status = status;
    r->headers_out.content_length_n = text->last - text->start;
    r->headers_out.content_type.len = ngx_strlen(content_type);
    r->headers_out.content_type.data = (u_char *) content_type;
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    b = ngx_calloc_buf(r->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->start = text->start;
    b->pos = text->start;
    b->last = text->last;
    b->end = text->end;
    b->temporary = 1;
    b->last_buf = 1;
    b->last_in_chain = 1;

    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}
