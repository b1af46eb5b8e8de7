
/*
 * Problem documents (RFC 9457).  Their type is about:blank, so the title is
 * the status's; what a program should look at is "code".
 */

#include "ngx_http_affiliate_refusal.h"


typedef struct {
    ngx_uint_t                              status;
    const char                             *code;
    ngx_http_affiliate_conversion_code_e    counter;
} ngx_http_affiliate_problem_kind_t;


static const char *ngx_http_affiliate_problem_title(ngx_uint_t status);


static const ngx_http_affiliate_problem_kind_t
    ngx_http_affiliate_problem_kinds[] =
{
    [NGX_HTTP_AFFILIATE_METHOD_NOT_ALLOWED] =
        { 405, "method_not_allowed", NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST },
    [NGX_HTTP_AFFILIATE_NOT_FOUND] =
        { 404, "not_found", NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST },
    [NGX_HTTP_AFFILIATE_LENGTH_REQUIRED] =
        { 411, "length_required", NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST },
    [NGX_HTTP_AFFILIATE_BODY_TOO_LARGE] =
        { 413, "body_too_large", NGX_HTTP_AFFILIATE_CONV_TOO_LARGE },
    [NGX_HTTP_AFFILIATE_MALFORMED_BODY] =
        { 400, "malformed_body", NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST },
    [NGX_HTTP_AFFILIATE_MISSING_HEADER] =
        { 400, "missing_header", NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST },
    [NGX_HTTP_AFFILIATE_DUPLICATE_HEADER] =
        { 400, "duplicate_header", NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST },
    [NGX_HTTP_AFFILIATE_MALFORMED_HEADER] =
        { 400, "malformed_header", NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST },
    [NGX_HTTP_AFFILIATE_MISSING_PARAMETER] =
        { 400, "missing_parameter", NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST },
    [NGX_HTTP_AFFILIATE_DUPLICATE_PARAMETER] =
        { 400, "duplicate_parameter", NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST },
    [NGX_HTTP_AFFILIATE_MALFORMED_PARAMETER] =
        { 400, "malformed_parameter", NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST },
    [NGX_HTTP_AFFILIATE_UNKNOWN_KEY] =
        { 401, "unknown_key", NGX_HTTP_AFFILIATE_CONV_UNKNOWN_KEY },
    [NGX_HTTP_AFFILIATE_CLOCK_SKEW] =
        { 401, "clock_skew", NGX_HTTP_AFFILIATE_CONV_CLOCK_SKEW },
    [NGX_HTTP_AFFILIATE_BAD_SIGNATURE] =
        { 401, "bad_signature", NGX_HTTP_AFFILIATE_CONV_BAD_SIGNATURE },
    [NGX_HTTP_AFFILIATE_RATE_LIMITED] =
        { 429, "rate_limited", NGX_HTTP_AFFILIATE_CONV_LIMITED },
    [NGX_HTTP_AFFILIATE_MEDIA_TYPE] =
        { 415, "unsupported_media_type", NGX_HTTP_AFFILIATE_CONV_MEDIA_TYPE },
    [NGX_HTTP_AFFILIATE_MALFORMED_JSON] =
        { 400, "malformed_json", NGX_HTTP_AFFILIATE_CONV_BAD_REQUEST },
    [NGX_HTTP_AFFILIATE_VALIDATION] =
        { 422, "validation", NGX_HTTP_AFFILIATE_CONV_INVALID },
    [NGX_HTTP_AFFILIATE_CLICK_MALFORMED] =
        { 422, "malformed_click_id", NGX_HTTP_AFFILIATE_CONV_INVALID },
    [NGX_HTTP_AFFILIATE_CLICK_UNKNOWN] =
        { 422, "unknown_click_id", NGX_HTTP_AFFILIATE_CONV_INVALID },
    [NGX_HTTP_AFFILIATE_CLICK_MODE] =
        { 422, "wrong_livemode", NGX_HTTP_AFFILIATE_CONV_INVALID },
    [NGX_HTTP_AFFILIATE_CLICK_EXPIRED] =
        { 422, "expired_click_id", NGX_HTTP_AFFILIATE_CONV_INVALID },
    [NGX_HTTP_AFFILIATE_KEY_REUSED] =
        { 422, "idempotency_key_reused", NGX_HTTP_AFFILIATE_CONV_KEY_REUSED },
    [NGX_HTTP_AFFILIATE_UNAVAILABLE] =
        { 503, "unavailable", NGX_HTTP_AFFILIATE_CONV_UNAVAILABLE }
};


const char *
ngx_http_affiliate_problem_code(ngx_http_affiliate_problem_e problem)
{
    return ngx_http_affiliate_problem_kinds[problem].code;
}


ngx_uint_t
ngx_http_affiliate_problem_status(ngx_http_affiliate_problem_e problem)
{
    return ngx_http_affiliate_problem_kinds[problem].status;
}


ngx_int_t
ngx_http_affiliate_problem(ngx_http_request_t *r,
    ngx_http_affiliate_problem_e problem, const char *detail,
    ngx_http_affiliate_text_t *members)
{
    ngx_http_affiliate_text_t                 text;
    const ngx_http_affiliate_problem_kind_t  *kind;

    static ngx_str_t  challenge = ngx_string("Affiliate-Signature");

    kind = &ngx_http_affiliate_problem_kinds[problem];

    ngx_http_affiliate_stat_inc(conversions[kind->counter]);

    ngx_http_affiliate_refusal_add(r, problem, detail);

    if (kind->status == NGX_HTTP_UNAUTHORIZED
        && ngx_http_affiliate_answer_header(r, "WWW-Authenticate", &challenge)
           != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_memzero(&text, sizeof(text));
    text.pool = r->pool;

    ngx_http_affiliate_text_printf(&text,
                                   "{\"type\":\"about:blank\",\"title\":\"%s\""
                                   ",\"status\":%ui,\"code\":\"%s\""
                                   ",\"detail\":",
                                   ngx_http_affiliate_problem_title(
                                                               kind->status),
                                   kind->status, kind->code);
    ngx_http_affiliate_text_json(&text, detail, ngx_strlen(detail));
    ngx_http_affiliate_problem_request_id(r, &text);

    if (members) {

        if (members->failed) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ngx_http_affiliate_text_put(&text, members->start,
                                    members->last - members->start);
    }

    ngx_http_affiliate_text_puts(&text, "}\n");

    return ngx_http_affiliate_answer(r, kind->status,
                                     "application/problem+json", &text);
}


ngx_int_t
ngx_http_affiliate_problem_retry(ngx_http_request_t *r,
    ngx_http_affiliate_problem_e problem, const char *detail, time_t after)
{
    ngx_str_t  value;

    value.data = ngx_pnalloc(r->pool, NGX_TIME_T_LEN);
    if (value.data == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    value.len = ngx_sprintf(value.data, "%T", after) - value.data;

    if (ngx_http_affiliate_answer_header(r, "Retry-After", &value) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_affiliate_problem(r, problem, detail, NULL);
}


void
ngx_http_affiliate_problem_request_id(ngx_http_request_t *r,
    ngx_http_affiliate_text_t *text)
{
    ngx_http_variable_value_t       *vv;
    ngx_http_affiliate_loc_conf_t   *alcf;

    alcf = ngx_http_get_module_loc_conf(r, ngx_http_affiliate_module);

    /* indexed, so that it is the same as in the access log */

    vv = ngx_http_get_indexed_variable(r, alcf->request_id);

    if (vv == NULL || vv->not_found) {
        return;
    }

    ngx_http_affiliate_text_puts(text, ",\"request_id\":");
    ngx_http_affiliate_text_json(text, vv->data, vv->len);
}


static const char *
ngx_http_affiliate_problem_title(ngx_uint_t status)
{
    switch (status) {

    case 400:
        return "Bad Request";

    case 401:
        return "Unauthorized";

    case 404:
        return "Not Found";

    case 405:
        return "Method Not Allowed";

    case 411:
        return "Length Required";

    case 413:
        return "Content Too Large";

    case 415:
        return "Unsupported Media Type";

    case 422:
        return "Unprocessable Content";

    case 429:
        return "Too Many Requests";

    default: /* 503 */
        return "Service Unavailable";
    }
}
