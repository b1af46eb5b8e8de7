
/*
 * The redirect: a code becomes a 302 to its link's page with a fresh click_id
 * on it, and a record in the log of clicks.
 *
 * The click_id is given out only together with its record: when the log has no
 * room the visitor is still sent on, without one.
 */

#include "ngx_http_affiliate.h"
#include "../protocol/chars.h"
#include "../protocol/fault.h"


#define NGX_HTTP_AFFILIATE_GONE  410       /* nginx has no name for it */

#define NGX_HTTP_AFFILIATE_TAGS_MAX                                          \
    (AFF_MERGE_MAX - AFF_SUB_IDS - 1)      /* utm_ parameters passed on */


/* What a visitor's query brings along. */
typedef struct {
    struct aff_slice                 sub_ids[AFF_SUB_IDS];
    struct aff_param                 tags[NGX_HTTP_AFFILIATE_TAGS_MAX];
    ngx_uint_t                       tags_n;
    struct aff_slice                 url;
} ngx_http_affiliate_query_t;


static ngx_int_t ngx_http_affiliate_redirect_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_affiliate_redirect_code(ngx_http_request_t *r,
    ngx_str_t *code);
static ngx_int_t ngx_http_affiliate_redirect_answer(ngx_http_request_t *r);
static ngx_int_t ngx_http_affiliate_redirect_click(ngx_http_request_t *r,
    ngx_http_affiliate_ctx_t *ctx, const struct aff_link *link);
static ngx_int_t ngx_http_affiliate_redirect_query(ngx_http_request_t *r,
    ngx_http_affiliate_query_t *query);
static struct aff_slice ngx_http_affiliate_redirect_decode(
    ngx_http_request_t *r, struct aff_slice text);
static struct aff_slice ngx_http_affiliate_redirect_target(
    const struct aff_link *link, struct aff_slice url, struct aff_slice param,
    ngx_uint_t has_click_id);
static ngx_int_t ngx_http_affiliate_redirect_location(ngx_http_request_t *r,
    ngx_http_affiliate_ctx_t *ctx, const struct aff_link *link,
    ngx_http_affiliate_query_t *query, ngx_str_t *location);
static ngx_int_t ngx_http_affiliate_redirect_refuse(ngx_http_request_t *r,
    const struct aff_link *link, ngx_uint_t status);
static ngx_int_t ngx_http_affiliate_redirect_send(ngx_http_request_t *r,
    ngx_str_t *location);
static ngx_table_elt_t *ngx_http_affiliate_redirect_header(
    ngx_http_request_t *r, const char *name, size_t name_len,
    const char *value, size_t value_len);


#define ngx_http_affiliate_header(r, name, value)                            \
    ngx_http_affiliate_redirect_header(r, name, sizeof(name) - 1,            \
                                       value, sizeof(value) - 1)


static struct aff_click_clock  ngx_http_affiliate_click_clock;


static ngx_int_t
ngx_http_affiliate_redirect_handler(ngx_http_request_t *r)
{
    ngx_int_t                       rc;
    ngx_str_t                       code;
    ngx_http_affiliate_ctx_t       *ctx;
    ngx_http_affiliate_question_t  *q;

    if (r != r->main) {
        return NGX_HTTP_NOT_FOUND;
    }

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        if (ngx_http_affiliate_header(r, "Allow", "GET, HEAD") == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    ctx = ngx_http_affiliate_ctx(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    /* an error_page may have led here from another code */

    ngx_str_null(&ctx->code);
    ctx->has_click_id = 0;
    ctx->judged = 0;
    ctx->recorded = 0;
    ctx->dropped = 0;

    q = &ctx->question;
    q->status = NGX_HTTP_AFFILIATE_NONE;

    rc = ngx_http_affiliate_redirect_code(r, &code);

    if (rc == NGX_ERROR) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (rc == NGX_DECLINED) {
        return ngx_http_affiliate_redirect_refuse(r, NULL, NGX_HTTP_NOT_FOUND);
    }

    ctx->code = code;

    q->kind = NGX_HTTP_AFFILIATE_LINK;
    q->name = code;
    q->handler = ngx_http_affiliate_redirect_answer;

    rc = ngx_http_affiliate_lookup(r, q);

    if (rc == NGX_OK) {
        return ngx_http_affiliate_redirect_answer(r);
    }

    return (rc == NGX_DONE) ? NGX_DONE : NGX_HTTP_INTERNAL_SERVER_ERROR;
}


/* NGX_DECLINED if there is none that could be one. */

static ngx_int_t
ngx_http_affiliate_redirect_code(ngx_http_request_t *r, ngx_str_t *code)
{
    ngx_http_core_loc_conf_t       *clcf;
    ngx_http_affiliate_loc_conf_t  *alcf;

    alcf = ngx_http_get_module_loc_conf(r, ngx_http_affiliate_module);

    if (alcf->code) {
        if (ngx_http_complex_value(r, alcf->code, code) != NGX_OK) {
            return NGX_ERROR;
        }

    } else {
        clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

        if (r->uri.len <= clcf->name.len) {
            return NGX_DECLINED;
        }

        code->data = r->uri.data + clcf->name.len;
        code->len = r->uri.len - clcf->name.len;
    }

    return aff_code_valid(aff_slice(code->data, code->len))
           ? NGX_OK : NGX_DECLINED;
}


static ngx_int_t
ngx_http_affiliate_redirect_answer(ngx_http_request_t *r)
{
    struct aff_link           *link;
    ngx_http_affiliate_ctx_t  *ctx;

    ctx = ngx_http_affiliate_ctx(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (ctx->question.status == NGX_HTTP_AFFILIATE_UNKNOWN) {
        return ngx_http_affiliate_redirect_refuse(r, NULL,
                                                NGX_HTTP_SERVICE_UNAVAILABLE);
    }

    link = ctx->question.link;

    if (link == NULL) {
        return ngx_http_affiliate_redirect_refuse(r, NULL, NGX_HTTP_NOT_FOUND);
    }

    if (link->state == AFF_LINK_PAUSED
        || (link->expires_ms && link->expires_ms <= ngx_http_affiliate_now()))
    {
        return ngx_http_affiliate_redirect_refuse(r, link,
                                                  NGX_HTTP_AFFILIATE_GONE);
    }

    if (link->state != AFF_LINK_ACTIVE) {
        return ngx_http_affiliate_redirect_refuse(r, link, NGX_HTTP_NOT_FOUND);
    }

    return ngx_http_affiliate_redirect_click(r, ctx, link);
}


static ngx_int_t
ngx_http_affiliate_redirect_click(ngx_http_request_t *r,
    ngx_http_affiliate_ctx_t *ctx, const struct aff_link *link)
{
    u_char                           random[AFF_RANDOM_BYTES], *frame;
    size_t                           size;
    ngx_str_t                        location;
    struct aff_click                 click;
    ngx_http_affiliate_query_t       query;
    ngx_http_affiliate_loc_conf_t   *alcf;
    ngx_http_affiliate_main_conf_t  *amcf;

    amcf = ngx_http_get_module_main_conf(r, ngx_http_affiliate_module);
    alcf = ngx_http_get_module_loc_conf(r, ngx_http_affiliate_module);

    click.link_id = link->link_id;
    click.merchant_id = link->merchant_id;
    click.campaign_id = link->campaign_id;
    click.affiliate_id = link->affiliate_id;
    click.livemode = link->livemode;

    ngx_http_affiliate_fraud_judge(r, &alcf->fraud, amcf->fraud, amcf->keyring,
                                   &click);

    ctx->verdict = click.verdict;
    ctx->judged = 1;

    if (ngx_http_affiliate_redirect_query(r, &query) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_memcpy(click.sub_ids, query.sub_ids, sizeof(click.sub_ids));

    frame = NULL;
    size = aff_click_size(&click);

    if (ngx_http_affiliate_clicks
        && ngx_http_affiliate_random(random, sizeof(random)) == NGX_OK)
    {
        frame = ngx_http_affiliate_spool_reserve(ngx_http_affiliate_clicks,
                                                 size);
        (void) AFF_FAULT("redirect.reserved");
    }

    if (frame) {
        aff_uuid_make(&ngx_http_affiliate_click_clock,
                      ngx_http_affiliate_now(), random, click.id);

        if (click.verdict < AFF_VERDICT_PREFETCH) {
            aff_click_id_format(&amcf->keyring->keys[0], click.id,
                                click.merchant_id, click.livemode,
                                (char *) ctx->click_id);
            ctx->has_click_id = 1;
        }

    } else {
        ctx->dropped = 1;
    }

    if (ngx_http_affiliate_redirect_location(r, ctx, link, &query, &location)
        != NGX_OK)
    {
        ctx->has_click_id = 0;
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (frame) {
        size = aff_click_encode(&click, frame + AFF_FRAME_HEADER_BYTES, size);

        (void) ngx_http_affiliate_spool_commit(ngx_http_affiliate_clicks,
                                               AFF_FRAME_CLICK,
                                               AFF_CLICK_VERSION, size);
        ctx->recorded = 1;

        if (AFF_FAULT("redirect.recorded")) {
            return NGX_HTTP_SERVICE_UNAVAILABLE;
        }
    }

    ngx_http_affiliate_stat_inc(redirects[click.verdict][ctx->question.status]);

    return ngx_http_affiliate_redirect_send(r, &location);
}


static ngx_int_t
ngx_http_affiliate_redirect_query(ngx_http_request_t *r,
    ngx_http_affiliate_query_t *query)
{
    ngx_uint_t         i;
    struct aff_slice   args, name, value, text;
    struct aff_param  *tag;

    ngx_memzero(query->sub_ids, sizeof(query->sub_ids));
    query->tags_n = 0;
    query->url.len = 0;

    args = aff_slice(r->args.data, r->args.len);

    while (args.len != 0 && aff_query_next(&args, &name, &value)) {

        if (value.len == 0) {
            continue;
        }

        if (name.len == 4 && ngx_memcmp(name.data, "sub", 3) == 0
            && name.data[3] >= '1' && name.data[3] <= '0' + AFF_SUB_IDS)
        {
            i = name.data[3] - '1';

        } else if (name.len == 3 && ngx_memcmp(name.data, "url", 3) == 0) {
            i = AFF_SUB_IDS;

        } else if (name.len > 4 && ngx_memcmp(name.data, "utm_", 4) == 0
                   && query->tags_n < NGX_HTTP_AFFILIATE_TAGS_MAX
                   && aff_param_name_valid(name))
        {
            i = AFF_SUB_IDS + 1;

        } else {
            continue;
        }

        text = ngx_http_affiliate_redirect_decode(r, value);

        if (text.data == NULL) {
            return NGX_ERROR;
        }

        if (i == AFF_SUB_IDS) {
            query->url = text;
            continue;
        }

        /* over-long ones are cut, between characters */

        if (text.len > AFF_SUB_ID_MAX) {
            text.len = AFF_SUB_ID_MAX;

            while (text.len > AFF_SUB_ID_MAX - 4
                   && (text.data[text.len] & 0xc0) == 0x80)
            {
                text.len--;
            }
        }

        if (i < AFF_SUB_IDS) {
            query->sub_ids[i] = text;

        } else if (text.len != 0) {
            tag = &query->tags[query->tags_n++];
            tag->name = name;
            tag->value = text;
        }
    }

    return NGX_OK;
}


/* Empty if it is malformed; data is NULL only if out of memory. */

static struct aff_slice
ngx_http_affiliate_redirect_decode(ngx_http_request_t *r,
    struct aff_slice text)
{
    long     n;
    u_char  *p;

    p = ngx_pnalloc(r->pool, text.len);
    if (p == NULL) {
        return aff_slice(NULL, 0);
    }

    n = aff_query_decode(text, p, text.len);

    return aff_slice(p, n > 0 ? (size_t) n : 0);
}


/* A deep link where the merchant allows it, else the link's own page. */

static struct aff_slice
ngx_http_affiliate_redirect_target(const struct aff_link *link,
    struct aff_slice url, struct aff_slice param, ngx_uint_t has_click_id)
{
    u_char                text[AFF_PARAM_MAX];
    long                  n;
    unsigned              i;
    const char           *rule;
    const u_char         *p, *end;
    struct aff_slice      query, name, value;
    struct aff_url_parts  parts;

    if (url.len == 0 || !aff_url_check(url, &parts, &rule)) {
        return link->url;
    }

    for (i = 0; i < link->hosts_count; i++) {
        if (aff_host_match(parts.host, link->hosts[i])) {
            break;
        }
    }

    if (i == link->hosts_count) {
        return link->url;
    }

    if (has_click_id) {
        return url;
    }

    /* nothing would replace a click_id that it brings along */

    end = url.data + url.len;
    p = memchr(url.data, '#', url.len);

    if (p) {
        end = p;
    }

    p = memchr(url.data, '?', end - url.data);

    if (p == NULL) {
        return url;
    }

    query = aff_slice(p + 1, end - p - 1);

    while (aff_query_next(&query, &name, &value)) {
        n = aff_query_decode(name, text, sizeof(text));

        if (n >= 0 && aff_slice_equal(aff_slice(text, n), param)) {
            return link->url;
        }
    }

    return url;
}


static ngx_int_t
ngx_http_affiliate_redirect_location(ngx_http_request_t *r,
    ngx_http_affiliate_ctx_t *ctx, const struct aff_link *link,
    ngx_http_affiliate_query_t *query, ngx_str_t *location)
{
    size_t                          size;
    ngx_uint_t                      i, n;
    struct aff_slice                target, param;
    struct aff_param                params[AFF_MERGE_MAX];
    ngx_http_affiliate_loc_conf_t  *alcf;

    static const char  names[AFF_SUB_IDS][5] = {
        "sub1", "sub2", "sub3", "sub4", "sub5"
    };

    param = link->param;

    if (param.len == 0) {
        alcf = ngx_http_get_module_loc_conf(r, ngx_http_affiliate_module);
        param = aff_slice(alcf->param.data, alcf->param.len);
    }

    n = 0;

    for (i = 0; i < AFF_SUB_IDS; i++) {
        if (query->sub_ids[i].len != 0) {
            params[n].name = aff_slice(names[i], 4);
            params[n].value = query->sub_ids[i];
            n += !aff_slice_equal(params[n].name, param);
        }
    }

    for (i = 0; i < query->tags_n; i++) {
        params[n] = query->tags[i];
        n += !aff_slice_equal(params[n].name, param);
    }

    if (ctx->has_click_id) {
        params[n].name = param;
        params[n].value = aff_slice(ctx->click_id, AFF_CLICK_ID_CHARS);
        n++;
    }

    target = ngx_http_affiliate_redirect_target(link, query->url, param,
                                                ctx->has_click_id);

    size = aff_url_merge_size(target, params, n);

    location->data = ngx_pnalloc(r->pool, size);
    if (location->data == NULL) {
        return NGX_ERROR;
    }

    location->len = aff_url_merge(target, params, n, location->data, size);

    return (location->len != 0) ? NGX_OK : NGX_ERROR;
}


/* To the link's fallback, the location's, or nowhere. */

static ngx_int_t
ngx_http_affiliate_redirect_refuse(ngx_http_request_t *r,
    const struct aff_link *link, ngx_uint_t status)
{
    ngx_str_t                       url;
    ngx_http_affiliate_loc_conf_t  *alcf;

    alcf = ngx_http_get_module_loc_conf(r, ngx_http_affiliate_module);

    if (link && link->fallback.len != 0) {

        /* the header outlives the link: $sent_http_location in a log */

        url.len = link->fallback.len;
        url.data = ngx_pnalloc(r->pool, url.len);
        if (url.data == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ngx_memcpy(url.data, link->fallback.data, url.len);

    } else {
        url = alcf->fallback;
    }

    if (url.len != 0) {
        ngx_http_affiliate_stat_inc(fallbacks);
        return ngx_http_affiliate_redirect_send(r, &url);
    }

    switch (status) {

    case NGX_HTTP_NOT_FOUND:
        ngx_http_affiliate_stat_inc(not_found);
        break;

    case NGX_HTTP_AFFILIATE_GONE:
        ngx_http_affiliate_stat_inc(gone);
        break;

    default: /* NGX_HTTP_SERVICE_UNAVAILABLE */
        ngx_http_affiliate_stat_inc(unavailable);

        if (ngx_http_affiliate_header(r, "Retry-After", "5") == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    return (ngx_int_t) status;
}


/*
 * The header alone, which is half the work of nginx's own redirect with its
 * page; where a 302 has an error_page, or an error's status is to be kept,
 * nginx answers.
 *
 * Cache-Control is not entered in headers_out: "expires" would replace it with
 * a lifetime, and a cached redirect is a lost click.
 */

static ngx_int_t
ngx_http_affiliate_redirect_send(ngx_http_request_t *r, ngx_str_t *location)
{
    ngx_uint_t                 i;
    ngx_table_elt_t           *h;
    ngx_http_err_page_t       *page;
    ngx_http_core_loc_conf_t  *clcf;

    if (!aff_chars_visible(aff_slice(location->data, location->len))) {
        ngx_log_error(NGX_LOG_ALERT, r->connection->log, 0,
                      "affiliate destination has a byte "
                      "that no header may have");
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_clear_location(r);

    h = ngx_http_affiliate_redirect_header(r, "Location",
                                           sizeof("Location") - 1,
                                           (char *) location->data,
                                           location->len);

    if (h == NULL
        || ngx_http_affiliate_header(r, "Cache-Control", "no-store") == NULL
        || ngx_http_affiliate_header(r, "Referrer-Policy",
                                     "strict-origin-when-cross-origin") == NULL
        || ngx_http_affiliate_header(r, "X-Robots-Tag", "noindex") == NULL)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->headers_out.location = h;

    if (r->err_status) {
        return NGX_HTTP_MOVED_TEMPORARILY;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (clcf->error_pages) {
        page = clcf->error_pages->elts;

        for (i = 0; i < clcf->error_pages->nelts; i++) {
            if (page[i].status == NGX_HTTP_MOVED_TEMPORARILY) {
                return NGX_HTTP_MOVED_TEMPORARILY;
            }
        }
    }

    r->headers_out.status = NGX_HTTP_MOVED_TEMPORARILY;
    r->headers_out.content_length_n = 0;
    r->header_only = 1;

    return ngx_http_send_header(r);
}


static ngx_table_elt_t *
ngx_http_affiliate_redirect_header(ngx_http_request_t *r, const char *name,
    size_t name_len, const char *value, size_t value_len)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NULL;
    }

    h->hash = 1;
    h->key.data = (u_char *) name;
    h->key.len = name_len;
    h->value.data = (u_char *) value;
    h->value.len = value_len;
    h->lowcase_key = NULL;
    ngx_http_affiliate_header_single(h);

    return h;
}


char *
ngx_http_affiliate_redirect_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_http_affiliate_loc_conf_t *alcf = conf;

    ngx_str_t                         *value;
    ngx_uint_t                         prefix;
    ngx_http_core_loc_conf_t          *clcf;
    ngx_http_compile_complex_value_t   ccv;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_affiliate_redirect_handler;

    if (cf->args->nelts == 1) {
        prefix = !clcf->exact_match && !clcf->noname;

#if (NGX_PCRE)
        prefix = prefix && clcf->regex == NULL;
#endif

        if (!prefix || clcf->named) {
            return "needs the code as its parameter in a location "
                   "that is not a prefix";
        }

        return NGX_CONF_OK;
    }

    value = cf->args->elts;

    alcf->code = ngx_palloc(cf->pool, sizeof(ngx_http_complex_value_t));
    if (alcf->code == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

    ccv.cf = cf;
    ccv.value = &value[1];
    ccv.complex_value = alcf->code;

    if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}
