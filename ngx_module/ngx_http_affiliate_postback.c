
/*
 * affiliate_postback: everything is in the query.  The string to sign has the
 * request's target up to the parameter "sig", which is the last one, and an
 * empty body.
 */

#include "ngx_http_affiliate_postback.h"

#include "../protocol/chars.h"
#include "../protocol/signature.h"

#include <openssl/sha.h>


#define NGX_HTTP_AFFILIATE_POSTBACK_HASHED  "sha256:"


static ngx_int_t ngx_http_affiliate_postback_parse(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_postback_param(
    ngx_http_affiliate_call_t *call, ngx_str_t raw,
    ngx_http_affiliate_text_t *event);
static ngx_str_t *ngx_http_affiliate_postback_field(
    ngx_http_affiliate_call_t *call, ngx_str_t *name);
static ngx_int_t ngx_http_affiliate_postback_decode(ngx_pool_t *pool,
    ngx_str_t *value);
static ngx_int_t ngx_http_affiliate_postback_check(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_postback_signature(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_postback_derive(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_postback_refuse(
    ngx_http_affiliate_call_t *call, ngx_http_affiliate_problem_e problem,
    ngx_str_t *name, const char *rule);


ngx_int_t
ngx_http_affiliate_postback_handler(ngx_http_request_t *r)
{
    ngx_int_t                   rc;
    ngx_http_affiliate_call_t  *call;

    static ngx_str_t  allow = ngx_string("GET");

    if (r != r->main) {
        return NGX_HTTP_NOT_FOUND;
    }

    if (r->method != NGX_HTTP_GET) {

        if (ngx_http_affiliate_answer_header(r, "Allow", &allow) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        return ngx_http_affiliate_conversion_discard(r,
                                         NGX_HTTP_AFFILIATE_METHOD_NOT_ALLOWED,
                                         "Postbacks are made with GET.");
    }

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    call = ngx_http_affiliate_call_create(r, AFF_SOURCE_POSTBACK);
    if (call == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    call->json = json_object();
    if (call->json == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rc = ngx_http_affiliate_postback_parse(call);

    if (rc == NGX_DECLINED) {
        rc = ngx_http_affiliate_postback_check(call);
    }

    if (rc != NGX_DECLINED) {
        return rc;
    }

    return ngx_http_affiliate_call_identify(call);
}


/* NGX_DECLINED, here and below: there is nothing to refuse. */

static ngx_int_t
ngx_http_affiliate_postback_parse(ngx_http_affiliate_call_t *call)
{
    u_char                     *p, *end, *next;
    ngx_int_t                   rc;
    ngx_str_t                   raw;
    ngx_http_affiliate_text_t   event;

    static ngx_str_t  sig = ngx_string("sig");

    ngx_memzero(&event, sizeof(event));
    event.pool = call->request->pool;

    end = call->target.data + call->target.len;
    p = ngx_strlchr(call->target.data, end, '?');

    for (p = p ? p + 1 : end; p < end; p = next + 1) {

        next = ngx_strlchr(p, end, '&');
        if (next == NULL) {
            next = end;
        }

        raw.data = p;
        raw.len = next - p;

        if (raw.len == 0) {
            continue;
        }

        if (call->signature.data) {
            return ngx_http_affiliate_postback_refuse(call,
                                        NGX_HTTP_AFFILIATE_MALFORMED_PARAMETER,
                                        &sig, "must be the last one");
        }

        rc = ngx_http_affiliate_postback_param(call, raw, &event);

        if (rc != NGX_DECLINED) {
            return rc;
        }
    }

    if (event.failed) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    /*
     * The same event is told again with another timestamp and signature, so
     * what identifies its "body" is the event's parameters.
     */

    SHA256(event.start, event.last - event.start, call->body_hash);

    return NGX_DECLINED;
}


static ngx_int_t
ngx_http_affiliate_postback_param(ngx_http_affiliate_call_t *call,
    ngx_str_t raw, ngx_http_affiliate_text_t *event)
{
    u_char     *equals;
    json_t     *json;
    ngx_str_t  *field, name, value;

    equals = ngx_strlchr(raw.data, raw.data + raw.len, '=');

    name.data = raw.data;
    name.len = equals ? (size_t) (equals - raw.data) : raw.len;
    value.data = equals ? equals + 1 : raw.data + raw.len;
    value.len = raw.data + raw.len - value.data;

    if (ngx_http_affiliate_postback_decode(call->request->pool, &value)
        != NGX_OK)
    {
        return ngx_http_affiliate_postback_refuse(call,
                                        NGX_HTTP_AFFILIATE_MALFORMED_PARAMETER,
                                        &name, "is not percent-encoded well");
    }

    field = ngx_http_affiliate_postback_field(call, &name);

    if (field) {

        if (field->data) {
            return ngx_http_affiliate_postback_refuse(call,
                                        NGX_HTTP_AFFILIATE_DUPLICATE_PARAMETER,
                                        &name, "is given twice");
        }

        *field = value;

        if (field == &call->signature) {
            call->target.len = raw.data - 1 - call->target.data;
        }

        return NGX_DECLINED;
    }

    if (json_object_getn(call->json, (char *) name.data, name.len)) {
        return ngx_http_affiliate_postback_refuse(call,
                                        NGX_HTTP_AFFILIATE_DUPLICATE_PARAMETER,
                                        &name, "is given twice");
    }

    json = json_stringn((char *) value.data, value.len);

    if (json == NULL
        || json_object_setn_new(call->json, (char *) name.data, name.len, json)
           != 0)
    {
        return ngx_http_affiliate_postback_refuse(call,
                                        NGX_HTTP_AFFILIATE_MALFORMED_PARAMETER,
                                        &name, "is not UTF-8");
    }

    ngx_http_affiliate_text_put(event, raw.data, raw.len);
    ngx_http_affiliate_text_puts(event, "&");

    return NGX_DECLINED;
}


/* Where a parameter of the call itself goes; NULL for the event's. */

static ngx_str_t *
ngx_http_affiliate_postback_field(ngx_http_affiliate_call_t *call,
    ngx_str_t *name)
{
    if (name->len == 3 && ngx_strncmp(name->data, "key", 3) == 0) {
        return &call->key_id;
    }

    if (name->len == 2 && ngx_strncmp(name->data, "ts", 2) == 0) {
        return &call->timestamp;
    }

    if (name->len == 3 && ngx_strncmp(name->data, "sig", 3) == 0) {
        return &call->signature;
    }

    if (name->len == sizeof("idempotency") - 1
        && ngx_strncmp(name->data, "idempotency", name->len) == 0)
    {
        return &call->signed_key;
    }

    return NULL;
}


/* As forms are encoded: %XX, and "+" for a space. */

static ngx_int_t
ngx_http_affiliate_postback_decode(ngx_pool_t *pool, ngx_str_t *value)
{
    int      high, low;
    u_char  *p, *src, *end;

    src = value->data;
    end = src + value->len;

    p = ngx_pnalloc(pool, value->len + 1);
    if (p == NULL) {
        return NGX_ERROR;
    }

    value->data = p;

    while (src < end) {

        if (*src == '%') {

            if (end - src < 3) {
                return NGX_ERROR;
            }

            high = aff_char_hex(src[1]);
            low = aff_char_hex(src[2]);

            if (high < 0 || low < 0) {
                return NGX_ERROR;
            }

            *p++ = (u_char) (high << 4 | low);
            src += 3;
            continue;
        }

        *p++ = *src == '+' ? ' ' : *src;
        src++;
    }

    value->len = p - value->data;

    return NGX_OK;
}


static ngx_int_t
ngx_http_affiliate_postback_check(ngx_http_affiliate_call_t *call)
{
    int64_t     seconds;
    ngx_uint_t  i;
    ngx_str_t  *missing;

    static ngx_str_t  key = ngx_string("key");
    static ngx_str_t  ts = ngx_string("ts");
    static ngx_str_t  sig = ngx_string("sig");
    static ngx_str_t  idempotency = ngx_string("idempotency");

    missing = call->key_id.len == 0 ? &key
              : call->timestamp.len == 0 ? &ts
              : call->signature.len == 0 ? &sig : NULL;

    if (missing) {
        return ngx_http_affiliate_postback_refuse(call,
                                          NGX_HTTP_AFFILIATE_MISSING_PARAMETER,
                                          missing, "is missing");
    }

    if (!aff_timestamp_parse(ngx_http_affiliate_slice(&call->timestamp),
                             &seconds))
    {
        return ngx_http_affiliate_postback_refuse(call,
                                        NGX_HTTP_AFFILIATE_MALFORMED_PARAMETER,
                                        &ts, "must be unix seconds");
    }

    if (ngx_http_affiliate_postback_signature(call) != NGX_OK) {
        return ngx_http_affiliate_postback_refuse(call,
                                        NGX_HTTP_AFFILIATE_MALFORMED_PARAMETER,
                                        &sig,
                                        "must be 64 hex digits, up to 4 times "
                                        "with commas between");
    }

    if (call->signed_key.len == 0) {
        return ngx_http_affiliate_postback_derive(call);
    }

    for (i = 0; i < call->signed_key.len; i++) {
        if (call->signed_key.data[i] <= 0x20
            || call->signed_key.data[i] >= 0x7f)
        {
            break;
        }
    }

    if (i < call->signed_key.len || i > AFF_IDEMPOTENCY_KEY_MAX) {
        return ngx_http_affiliate_postback_refuse(call,
                                        NGX_HTTP_AFFILIATE_MALFORMED_PARAMETER,
                                        &idempotency,
                                        "must be 1 to 128 visible ASCII "
                                        "characters");
    }

    call->idempotency_key = call->signed_key;

    return NGX_DECLINED;
}


/* "sig" may be written as in the header, or leave the "v1=" out. */

static ngx_int_t
ngx_http_affiliate_postback_signature(ngx_http_affiliate_call_t *call)
{
    uint8_t                     given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES];
    u_char                     *p, *end, *next;
    ngx_http_affiliate_text_t   header;

    p = call->signature.data;
    end = p + call->signature.len;

    if (ngx_strlchr(p, end, '=') == NULL) {
        ngx_memzero(&header, sizeof(header));
        header.pool = call->request->pool;

        for ( ;; ) {
            next = ngx_strlchr(p, end, ',');

            ngx_http_affiliate_text_puts(&header, "v1=");
            ngx_http_affiliate_text_put(&header, p, (next ? next : end) - p);

            if (next == NULL) {
                break;
            }

            ngx_http_affiliate_text_puts(&header, ",");
            p = next + 1;
        }

        if (header.failed) {
            return NGX_ERROR;
        }

        call->signature.data = header.start;
        call->signature.len = header.last - header.start;
    }

    return aff_signature_parse(ngx_http_affiliate_slice(&call->signature),
                               given)
           ? NGX_OK : NGX_ERROR;
}


/* order_id:status:refund_id, or its hash where that is too long for a key. */

static ngx_int_t
ngx_http_affiliate_postback_derive(ngx_http_affiliate_call_t *call)
{
    json_t                     *field;
    u_char                      hash[SHA256_DIGEST_LENGTH], *p;
    size_t                      len;
    ngx_uint_t                  i;
    ngx_http_affiliate_text_t   text;

    static const char  *names[] = { "order_id", "status", "refund_id" };

    ngx_memzero(&text, sizeof(text));
    text.pool = call->request->pool;

    for (i = 0; i < 3; i++) {
        field = json_object_get(call->json, names[i]);

        if (i) {
            ngx_http_affiliate_text_puts(&text, ":");
        }

        if (field) {
            ngx_http_affiliate_text_put(&text, json_string_value(field),
                                        json_string_length(field));
        }
    }

    if (text.failed) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    len = text.last - text.start;

    if (len > AFF_IDEMPOTENCY_KEY_MAX) {
        SHA256(text.start, len, hash);

        p = ngx_cpymem(text.start, NGX_HTTP_AFFILIATE_POSTBACK_HASHED,
                       sizeof(NGX_HTTP_AFFILIATE_POSTBACK_HASHED) - 1);
        aff_hex(hash, sizeof(hash), (char *) p);

        len = p + 2 * sizeof(hash) - text.start;
    }

    call->idempotency_key.data = text.start;
    call->idempotency_key.len = len;

    return NGX_DECLINED;
}


static ngx_int_t
ngx_http_affiliate_postback_refuse(ngx_http_affiliate_call_t *call,
    ngx_http_affiliate_problem_e problem, ngx_str_t *name, const char *rule)
{
    u_char                     detail[256];
    ngx_str_t                  shown;
    ngx_http_affiliate_text_t  members;

    shown.data = name->data;
    shown.len = ngx_min(name->len, 64);

    ngx_snprintf(detail, sizeof(detail), "The parameter %V %s.%Z", &shown,
                 rule);

    ngx_memzero(&members, sizeof(members));
    members.pool = call->request->pool;

    ngx_http_affiliate_text_puts(&members, ",\"errors\":[{\"parameter\":");
    ngx_http_affiliate_text_json(&members, shown.data, shown.len);
    ngx_http_affiliate_text_printf(&members, ",\"detail\":\"%s\"}]", rule);

    return ngx_http_affiliate_problem(call->request, problem, (char *) detail,
                                      &members);
}
