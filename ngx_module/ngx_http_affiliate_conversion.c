
/*
 * affiliate_conversion: POST of one event to the location's path, or of a
 * batch to the path and "/batch", signed in the header.
 */

#include "ngx_http_affiliate_call.h"
#include "ngx_http_affiliate_postback.h"

#include "../protocol/signature.h"

#include <openssl/sha.h>


/* A header that a call may have once. */
typedef struct {
    ngx_str_t    name;           /* as it is told */
    ngx_str_t    lowcase;
    size_t       offset;         /* of an ngx_str_t in the call */
    size_t       max;            /* bytes */
    unsigned     required:1;
} ngx_http_affiliate_conversion_header_t;


static ngx_int_t ngx_http_affiliate_conversion_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_affiliate_conversion_source(ngx_http_request_t *r,
    enum aff_source *source);
static ngx_int_t ngx_http_affiliate_conversion_received(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_conversion_headers(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_conversion_check(
    ngx_http_affiliate_call_t *call,
    const ngx_http_affiliate_conversion_header_t *header, ngx_uint_t count);
static ngx_int_t ngx_http_affiliate_conversion_refuse(
    ngx_http_affiliate_call_t *call, ngx_http_affiliate_problem_e problem,
    const ngx_str_t *name, const char *rule);

static char *ngx_http_affiliate_conversion_set(ngx_conf_t *cf, void *conf,
    ngx_http_handler_pt handler);


#define NGX_HTTP_AFFILIATE_HEADERS  5

static const ngx_http_affiliate_conversion_header_t
    ngx_http_affiliate_conversion_known[NGX_HTTP_AFFILIATE_HEADERS] =
{
    { ngx_string("Affiliate-Key"),
      ngx_string("affiliate-key"),
      offsetof(ngx_http_affiliate_call_t, key_id), AFF_API_KEY_ID_MAX, 1 },

    { ngx_string("Affiliate-Timestamp"),
      ngx_string("affiliate-timestamp"),
      offsetof(ngx_http_affiliate_call_t, timestamp), 11, 1 },

    { ngx_string("Idempotency-Key"),
      ngx_string("idempotency-key"),
      offsetof(ngx_http_affiliate_call_t, idempotency_key),
      AFF_IDEMPOTENCY_KEY_MAX, 1 },

    { ngx_string("Affiliate-Signature"),
      ngx_string("affiliate-signature"),
      offsetof(ngx_http_affiliate_call_t, signature), 1024, 1 },

    { ngx_string("Content-Type"),
      ngx_string("content-type"),
      offsetof(ngx_http_affiliate_call_t, content_type), 256, 0 }
};


static ngx_int_t
ngx_http_affiliate_conversion_handler(ngx_http_request_t *r)
{
    enum aff_source             source;
    ngx_http_affiliate_call_t  *call;

    static ngx_str_t  allow = ngx_string("POST");

    if (r != r->main) {
        return NGX_HTTP_NOT_FOUND;
    }

    if (r->method != NGX_HTTP_POST) {

        if (ngx_http_affiliate_answer_header(r, "Allow", &allow) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        return ngx_http_affiliate_conversion_discard(r,
                                         NGX_HTTP_AFFILIATE_METHOD_NOT_ALLOWED,
                                         "Calls are made with POST.");
    }

    if (ngx_http_affiliate_conversion_source(r, &source) != NGX_OK) {
        return ngx_http_affiliate_conversion_discard(r,
                                                  NGX_HTTP_AFFILIATE_NOT_FOUND,
                                                  "There is no such call.");
    }

    if (r->headers_in.content_length_n < 0 && !r->headers_in.chunked) {
        return ngx_http_affiliate_conversion_discard(r,
                                            NGX_HTTP_AFFILIATE_LENGTH_REQUIRED,
                                            "A call needs a body.");
    }

    call = ngx_http_affiliate_call_create(r, source);
    if (call == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_affiliate_body_read(call,
                                       ngx_http_affiliate_conversion_received);
}


/* The location's own path is for single events; NGX_DECLINED for others. */

static ngx_int_t
ngx_http_affiliate_conversion_source(ngx_http_request_t *r,
    enum aff_source *source)
{
    size_t                     len;
    ngx_str_t                  rest;
    ngx_http_core_loc_conf_t  *clcf;

    static ngx_str_t  batch = ngx_string("/batch");

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    *source = AFF_SOURCE_SINGLE;

    if (r->uri.len >= batch.len
        && ngx_memcmp(r->uri.data + r->uri.len - batch.len, batch.data,
                      batch.len)
           == 0)
    {
        *source = AFF_SOURCE_BATCH;
    }

    /* "location = /v1/batch" and regular expressions say it all themselves */

    if (clcf->exact_match || clcf->named || clcf->noname
#if (NGX_PCRE)
        || clcf->regex
#endif
       )
    {
        return NGX_OK;
    }

    len = ngx_min(clcf->name.len, r->uri.len);

    if (len && r->uri.data[len - 1] == '/') {
        len--;
    }

    rest.len = r->uri.len - len;
    rest.data = r->uri.data + len;

    if (rest.len == 0 || (rest.len == 1 && clcf->name.len > len)) {
        *source = AFF_SOURCE_SINGLE;
        return NGX_OK;
    }

    if (rest.len == batch.len && *source == AFF_SOURCE_BATCH) {
        return NGX_OK;
    }

    return NGX_DECLINED;
}


ngx_int_t
ngx_http_affiliate_conversion_discard(ngx_http_request_t *r,
    ngx_http_affiliate_problem_e problem, const char *detail)
{
    /* as special responses do it: nobody is told to go on and send it */

    r->expect_tested = 1;

    if (ngx_http_discard_request_body(r) != NGX_OK) {
        r->keepalive = 0;
    }

    return ngx_http_affiliate_problem(r, problem, detail, NULL);
}


static ngx_int_t
ngx_http_affiliate_conversion_received(ngx_http_affiliate_call_t *call)
{
    ngx_int_t  rc;

    rc = ngx_http_affiliate_conversion_headers(call);

    if (rc != NGX_DECLINED) {
        return rc;
    }

    call->signed_key = call->idempotency_key;

    SHA256(call->body.data, call->body.len, call->body_hash);

    return ngx_http_affiliate_call_identify(call);
}


/* NGX_DECLINED: there is nothing to refuse. */

static ngx_int_t
ngx_http_affiliate_conversion_headers(ngx_http_affiliate_call_t *call)
{
    ngx_int_t                                      rc;
    ngx_str_t                                     *value;
    ngx_uint_t                                     i, n;
    ngx_uint_t                    counts[NGX_HTTP_AFFILIATE_HEADERS];
    ngx_list_part_t                               *part;
    ngx_table_elt_t                               *h;
    const ngx_http_affiliate_conversion_header_t  *header;

    ngx_memzero(counts, sizeof(counts));

    part = &call->request->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {

            if (part->next == NULL) {
                break;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        for (n = 0; n < NGX_HTTP_AFFILIATE_HEADERS; n++) {
            header = &ngx_http_affiliate_conversion_known[n];

            if (h[i].key.len != header->lowcase.len
                || ngx_strncmp(h[i].lowcase_key, header->lowcase.data,
                               header->lowcase.len)
                   != 0)
            {
                continue;
            }

            value = (ngx_str_t *) ((u_char *) call + header->offset);
            *value = h[i].value;
            counts[n]++;
        }
    }

    for (n = 0; n < NGX_HTTP_AFFILIATE_HEADERS; n++) {
        rc = ngx_http_affiliate_conversion_check(call,
                                       &ngx_http_affiliate_conversion_known[n],
                                       counts[n]);
        if (rc != NGX_DECLINED) {
            return rc;
        }
    }

    return NGX_DECLINED;
}


static ngx_int_t
ngx_http_affiliate_conversion_check(ngx_http_affiliate_call_t *call,
    const ngx_http_affiliate_conversion_header_t *header, ngx_uint_t count)
{
    int64_t     seconds;
    uint8_t     given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES];
    ngx_str_t  *value;
    ngx_uint_t  i;

    value = (ngx_str_t *) ((u_char *) call + header->offset);

    if (count > 1) {
        return ngx_http_affiliate_conversion_refuse(call,
                                           NGX_HTTP_AFFILIATE_DUPLICATE_HEADER,
                                           &header->name, "is given twice");
    }

    if (value->len == 0) {

        if (!header->required) {
            return NGX_DECLINED;
        }

        return ngx_http_affiliate_conversion_refuse(call,
                                             NGX_HTTP_AFFILIATE_MISSING_HEADER,
                                             &header->name, "is missing");
    }

    if (value->len > header->max) {
        return ngx_http_affiliate_conversion_refuse(call,
                                           NGX_HTTP_AFFILIATE_MALFORMED_HEADER,
                                           &header->name, "is too long");
    }

    if (value == &call->idempotency_key) {

        for (i = 0; i < value->len; i++) {
            if (value->data[i] <= 0x20 || value->data[i] >= 0x7f) {
                return ngx_http_affiliate_conversion_refuse(call,
                                           NGX_HTTP_AFFILIATE_MALFORMED_HEADER,
                                           &header->name,
                                           "must be visible ASCII characters");
            }
        }
    }

    if (value == &call->timestamp
        && !aff_timestamp_parse(ngx_http_affiliate_slice(value), &seconds))
    {
        return ngx_http_affiliate_conversion_refuse(call,
                                           NGX_HTTP_AFFILIATE_MALFORMED_HEADER,
                                           &header->name,
                                           "must be unix seconds");
    }

    if (value == &call->signature
        && aff_signature_parse(ngx_http_affiliate_slice(value), given) == 0)
    {
        return ngx_http_affiliate_conversion_refuse(call,
                                           NGX_HTTP_AFFILIATE_MALFORMED_HEADER,
                                           &header->name,
                                           "must be v1=<64 hex digits>, up to "
                                           "4 of them with commas between");
    }

    return NGX_DECLINED;
}


static ngx_int_t
ngx_http_affiliate_conversion_refuse(ngx_http_affiliate_call_t *call,
    ngx_http_affiliate_problem_e problem, const ngx_str_t *name,
    const char *rule)
{
    u_char                     detail[256];
    ngx_http_affiliate_text_t  members;

    ngx_snprintf(detail, sizeof(detail), "The header %V %s.%Z", name, rule);

    ngx_memzero(&members, sizeof(members));
    members.pool = call->request->pool;

    ngx_http_affiliate_text_printf(&members,
                                   ",\"errors\":[{\"header\":\"%V\","
                                   "\"detail\":\"%s\"}]", name, rule);

    return ngx_http_affiliate_problem(call->request, problem, (char *) detail,
                                      &members);
}


char *
ngx_http_affiliate_conversion_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    return ngx_http_affiliate_conversion_set(cf, conf,
                                        ngx_http_affiliate_conversion_handler);
}


char *
ngx_http_affiliate_postback_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    return ngx_http_affiliate_conversion_set(cf, conf,
                                          ngx_http_affiliate_postback_handler);
}


static char *
ngx_http_affiliate_conversion_set(ngx_conf_t *cf, void *conf,
    ngx_http_handler_pt handler)
{
    ngx_http_core_loc_conf_t       *clcf;
    ngx_http_affiliate_loc_conf_t  *alcf = conf;

    static ngx_str_t  request_id = ngx_string("request_id");

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    alcf->request_id = ngx_http_get_variable_index(cf, &request_id);
    if (alcf->request_id == NGX_ERROR) {
        return NGX_CONF_ERROR;
    }

    /* jansson would else read the seed of its tables in the event loop */

    json_object_seed(0);

    clcf->handler = handler;

    return NGX_CONF_OK;
}


void
ngx_http_affiliate_conversion_merge(ngx_conf_t *cf)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (clcf->handler == ngx_http_affiliate_conversion_handler) {
        clcf->client_max_body_size = 0;
    }
}
