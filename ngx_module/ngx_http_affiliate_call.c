
/*
 * What every call goes through, however it came: its parking, its key, clock,
 * signature and rate, its events, and the answer.
 */

#include "ngx_http_affiliate_refusal.h"

#include "../protocol/api_key.h"
#include "../protocol/signature.h"
#include "../protocol/fault.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>


#define NGX_HTTP_AFFILIATE_JSON_DEPTH    8
#define NGX_HTTP_AFFILIATE_JSON_EXCERPT  24  /* bytes up to a fault */


static void ngx_http_affiliate_call_cleanup(void *data);
static void ngx_http_affiliate_call_unpark(ngx_http_affiliate_call_t *call);
static void ngx_http_affiliate_call_timeout(ngx_event_t *ev);

static ngx_int_t ngx_http_affiliate_call_identified(ngx_http_request_t *r);
static ngx_int_t ngx_http_affiliate_call_key(ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_call_authenticate(
    ngx_http_affiliate_call_t *call, const struct aff_master_key *master);
static ngx_int_t ngx_http_affiliate_call_clock_skew(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_call_bad_signature(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_call_parse(
    ngx_http_affiliate_call_t *call);
static ngx_uint_t ngx_http_affiliate_call_json_type(ngx_str_t *type);
static ngx_int_t ngx_http_affiliate_call_malformed_json(
    ngx_http_affiliate_call_t *call, json_error_t *error);
static ngx_int_t ngx_http_affiliate_call_unavailable(
    ngx_http_affiliate_call_t *call, const char *detail);

static ngx_int_t ngx_http_affiliate_call_judge(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_call_single(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_call_batch(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_call_event(
    ngx_http_affiliate_call_t *call, const json_t *json, const char *prefix,
    ngx_uint_t position, enum aff_event_result *result);
static void ngx_http_affiliate_call_result(ngx_http_affiliate_call_t *call,
    const json_t *json, ngx_uint_t position,
    enum aff_event_result result);
static ngx_int_t ngx_http_affiliate_call_record(
    ngx_http_affiliate_call_t *call, struct aff_conversion *c);
static void ngx_http_affiliate_call_errors(ngx_http_affiliate_text_t *text);
static ngx_int_t ngx_http_affiliate_call_settle(
    ngx_http_affiliate_call_t *call);
static void ngx_http_affiliate_call_durable(void *data, ngx_int_t rc);
static ngx_int_t ngx_http_affiliate_call_settled(
    ngx_http_affiliate_call_t *call);
static ngx_int_t ngx_http_affiliate_call_answer(
    ngx_http_affiliate_call_t *call);


/* By enum aff_event_result. */
static const ngx_http_affiliate_problem_e  ngx_http_affiliate_call_problems[] =
{
    [AFF_EVENT_INVALID] = NGX_HTTP_AFFILIATE_VALIDATION,
    [AFF_EVENT_CLICK_MALFORMED] = NGX_HTTP_AFFILIATE_CLICK_MALFORMED,
    [AFF_EVENT_CLICK_UNKNOWN] = NGX_HTTP_AFFILIATE_CLICK_UNKNOWN,
    [AFF_EVENT_CLICK_MODE] = NGX_HTTP_AFFILIATE_CLICK_MODE,
    [AFF_EVENT_CLICK_EXPIRED] = NGX_HTTP_AFFILIATE_CLICK_EXPIRED
};


/*
 * One event is judged at a time and nothing of it outlives that, so all calls
 * of the worker share these 12 K.
 */
static struct aff_conversion    ngx_http_affiliate_call_conversion;
static struct aff_event_errors  ngx_http_affiliate_call_faults;


ngx_http_affiliate_call_t *
ngx_http_affiliate_call_create(ngx_http_request_t *r, enum aff_source source)
{
    ngx_http_cleanup_t         *cln;
    ngx_http_affiliate_ctx_t   *ctx;
    ngx_http_affiliate_call_t  *call;

    ctx = ngx_http_affiliate_ctx(r);
    if (ctx == NULL) {
        return NULL;
    }

    call = ngx_pcalloc(r->pool, sizeof(ngx_http_affiliate_call_t));
    if (call == NULL) {
        return NULL;
    }

    cln = ngx_http_cleanup_add(r, 0);
    if (cln == NULL) {
        return NULL;
    }

    cln->handler = ngx_http_affiliate_call_cleanup;
    cln->data = call;

    call->request = r;
    call->amcf = ngx_http_get_module_main_conf(r, ngx_http_affiliate_module);
    call->alcf = ngx_http_get_module_loc_conf(r, ngx_http_affiliate_module);
    call->source = source;
    call->target = r->unparsed_uri;
    call->recalled = NGX_DECLINED;
    call->results.pool = r->pool;

    call->timer.handler = ngx_http_affiliate_call_timeout;
    call->timer.data = call;
    call->timer.log = r->connection->log;

    ctx->conversion = call;

    return call;
}


static void
ngx_http_affiliate_call_cleanup(void *data)
{
    ngx_http_affiliate_call_t  *call = data;

    ngx_http_affiliate_call_unpark(call);

    if (call->json) {
        json_decref(call->json);
        call->json = NULL;
    }
}


ngx_int_t
ngx_http_affiliate_call_park(ngx_http_affiliate_call_t *call,
    ngx_http_affiliate_step_pt step, ngx_msec_t timeout)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = call->request;
    c = r->connection;

    if (r->discard_body) {
        r->read_event_handler = ngx_http_discarded_request_body_handler;

    } else {
        r->read_event_handler = ngx_http_test_reading;
    }

    r->write_event_handler = ngx_http_request_empty_handler;

    if (c->read->ready) {
        ngx_post_event(c->read, &ngx_posted_events);

    } else if (ngx_handle_read_event(c->read, 0) != NGX_OK) {
        ngx_http_affiliate_call_unpark(call);
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    call->step = step;
    call->parked = 1;

    ngx_http_affiliate_stat_inc(parked);

    /* not cancelable: a worker that is to exit waits for its answer */

    ngx_add_timer(&call->timer, timeout);

    r->main->count++;

    return NGX_DONE;
}


/* Takes back whatever was to wake the call. */

static void
ngx_http_affiliate_call_unpark(ngx_http_affiliate_call_t *call)
{
    if (call->parked) {
        call->parked = 0;
        ngx_http_affiliate_stat_add(parked, -1);
    }

    if (call->timer.timer_set) {
        ngx_del_timer(&call->timer);
    }

    if (call->waiter.waiting) {
        ngx_http_affiliate_spool_forget(&call->waiter);
    }

    ngx_http_affiliate_recall_forget(call);
}


static void
ngx_http_affiliate_call_timeout(ngx_event_t *ev)
{
    /* the step finds out that what it waited for has not come */

    ngx_http_affiliate_call_resume(ev->data);
}


void
ngx_http_affiliate_call_resume(ngx_http_affiliate_call_t *call)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = call->request;
    c = r->connection;

    ngx_http_affiliate_call_unpark(call);

    ngx_http_set_log_request(c->log, r);

    ngx_http_finalize_request(r, call->step(call));
    ngx_http_run_posted_requests(c);
}


ngx_int_t
ngx_http_affiliate_call_identify(ngx_http_affiliate_call_t *call)
{
    bool       livemode;
    u_char     name[AFF_API_KEY_ID_CHARS + 1 + AFF_IDEMPOTENCY_KEY_MAX], *p;
    ngx_int_t  rc;

    if (!aff_api_key_valid(ngx_http_affiliate_slice(&call->key_id),
                           &livemode))
    {
        return ngx_http_affiliate_problem(call->request,
                                          NGX_HTTP_AFFILIATE_UNKNOWN_KEY,
                                          "The API key is not known.", NULL);
    }

    p = ngx_cpymem(name, call->key_id.data, call->key_id.len);
    *p++ = '\0';
    p = ngx_cpymem(p, call->idempotency_key.data, call->idempotency_key.len);

    SHA256(name, p - name, call->identity);
    SHA256(call->idempotency_key.data, call->idempotency_key.len,
           call->key_hash);

    call->question.kind = NGX_HTTP_AFFILIATE_KEY;
    call->question.name = call->key_id;
    call->question.handler = ngx_http_affiliate_call_identified;

    rc = ngx_http_affiliate_lookup(call->request, &call->question);

    if (rc == NGX_OK) {
        return ngx_http_affiliate_call_key(call);
    }

    if (rc == NGX_DONE) {
        return NGX_DONE;
    }

    return NGX_HTTP_INTERNAL_SERVER_ERROR;
}


static ngx_int_t
ngx_http_affiliate_call_identified(ngx_http_request_t *r)
{
    ngx_http_affiliate_ctx_t  *ctx;

    ctx = ngx_http_affiliate_ctx(r);

    if (ctx == NULL || ctx->conversion == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_affiliate_call_key(ctx->conversion);
}


static ngx_int_t
ngx_http_affiliate_call_key(ngx_http_affiliate_call_t *call)
{
    bool                          livemode;
    struct aff_key               *key;
    const struct aff_master_key  *master;

    key = call->question.key;

    if (key == NULL && call->question.status == NGX_HTTP_AFFILIATE_UNKNOWN) {
        return ngx_http_affiliate_call_unavailable(call,
                                                   "The API key can't be "
                                                   "looked up just now.");
    }

    if (key == NULL || key->revoked
        || !aff_api_key_valid(ngx_http_affiliate_slice(&call->key_id),
                              &livemode)
        || livemode != key->livemode)
    {
        return ngx_http_affiliate_problem(call->request,
                                          NGX_HTTP_AFFILIATE_UNKNOWN_KEY,
                                          "The API key is not known.", NULL);
    }

    /* a master key that was taken out of the file takes its secrets along */

    master = aff_keyring_find(call->amcf->keyring, key->master_id);

    if (master == NULL) {
        return ngx_http_affiliate_problem(call->request,
                                          NGX_HTTP_AFFILIATE_UNKNOWN_KEY,
                                          "The API key is not known.", NULL);
    }

    return ngx_http_affiliate_call_authenticate(call, master);
}


static ngx_int_t
ngx_http_affiliate_call_authenticate(ngx_http_affiliate_call_t *call,
    const struct aff_master_key *master)
{
    char                       secret[AFF_API_KEY_SECRET_CHARS + 1];
    bool                       signed_ok;
    uint8_t                    given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES];
    uint8_t                    expected[AFF_SIGNATURE_BYTES];
    int64_t                    seconds;
    uint64_t                   hash;
    unsigned                   count;
    ngx_msec_t                 wait;
    struct aff_slice           body;
    struct aff_signed_request  request;

    if (!aff_timestamp_parse(ngx_http_affiliate_slice(&call->timestamp),
                             &seconds)
        || seconds < (int64_t) ngx_time() - AFF_TIMESTAMP_SKEW_S
        || seconds > (int64_t) ngx_time() + AFF_TIMESTAMP_SKEW_S)
    {
        return ngx_http_affiliate_call_clock_skew(call);
    }

    body = ngx_http_affiliate_slice(&call->body);

    request.timestamp = ngx_http_affiliate_slice(&call->timestamp);
    request.method = ngx_http_affiliate_slice(&call->request->method_name);
    request.path_with_query = ngx_http_affiliate_slice(&call->target);
    request.idempotency_key = ngx_http_affiliate_slice(&call->signed_key);
    request.body = &body;
    request.body_pieces = 1;

    signed_ok = aff_api_key_secret(master,
                                   ngx_http_affiliate_slice(&call->key_id),
                                   secret)
                && aff_sign(aff_slice(secret, AFF_API_KEY_SECRET_CHARS),
                            &request, expected);

    OPENSSL_cleanse(secret, sizeof(secret));

    if (!signed_ok) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    count = aff_signature_parse(ngx_http_affiliate_slice(&call->signature),
                                given);

    if (!aff_signature_match(expected, given, count)) {
        return ngx_http_affiliate_call_bad_signature(call);
    }

    call->authentic = 1;

    if (call->alcf->key_rate && call->amcf->replay) {
        SHA256(call->key_id.data, call->key_id.len, expected);
        ngx_memcpy(&hash, expected, sizeof(hash));

        wait = ngx_http_affiliate_replay_rate(call->amcf->replay, hash,
                                              call->alcf->key_rate);
        if (wait) {
            return ngx_http_affiliate_problem_retry(call->request,
                                            NGX_HTTP_AFFILIATE_RATE_LIMITED,
                                            "The API key calls too fast.",
                                            (time_t) (wait + 999) / 1000);
        }
    }

    return ngx_http_affiliate_call_parse(call);
}


static ngx_int_t
ngx_http_affiliate_call_clock_skew(ngx_http_affiliate_call_t *call)
{
    ngx_http_affiliate_text_t  members;

    ngx_memzero(&members, sizeof(members));
    members.pool = call->request->pool;

    ngx_http_affiliate_text_printf(&members,
                                   ",\"server_time\":%T,\"tolerance\":%d",
                                   ngx_time(), AFF_TIMESTAMP_SKEW_S);

    return ngx_http_affiliate_problem(call->request,
                                      NGX_HTTP_AFFILIATE_CLOCK_SKEW,
                                      "The timestamp, in unix seconds, is too "
                                      "far from the server's time.",
                                      &members);
}


/*
 * With a test key, tells what the server signed; never the signature, and the
 * body as its length and hash only.
 */

static ngx_int_t
ngx_http_affiliate_call_bad_signature(ngx_http_affiliate_call_t *call)
{
    char                       hex[2 * SHA256_DIGEST_LENGTH];
    u_char                     hash[SHA256_DIGEST_LENGTH];
    ngx_http_affiliate_text_t  members, text;

    if (call->question.key->livemode) {
        return ngx_http_affiliate_problem(call->request,
                                          NGX_HTTP_AFFILIATE_BAD_SIGNATURE,
                                          "No signature given is the "
                                          "call's.", NULL);
    }

    SHA256(call->body.data, call->body.len, hash);
    aff_hex(hash, sizeof(hash), hex);

    ngx_memzero(&text, sizeof(text));
    text.pool = call->request->pool;

    ngx_http_affiliate_text_printf(&text, "v1\n%V\n%V\n%V\n%V\n",
                                   &call->timestamp,
                                   &call->request->method_name,
                                   &call->target, &call->signed_key);

    if (text.failed) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_memzero(&members, sizeof(members));
    members.pool = call->request->pool;

    ngx_http_affiliate_text_puts(&members, ",\"string_to_sign\":");
    ngx_http_affiliate_text_json(&members, text.start,
                                 text.last - text.start);
    ngx_http_affiliate_text_printf(&members,
                                   ",\"body_length\":%uz,"
                                   "\"body_sha256\":\"%*s\"",
                                   call->body.len, sizeof(hex), hex);

    return ngx_http_affiliate_problem(call->request,
                                      NGX_HTTP_AFFILIATE_BAD_SIGNATURE,
                                      "No signature given is the call's. The "
                                      "server signed string_to_sign followed "
                                      "by the body.", &members);
}


static ngx_int_t
ngx_http_affiliate_call_parse(ngx_http_affiliate_call_t *call)
{
    json_error_t  error;

    if (call->source != AFF_SOURCE_POSTBACK) {

        if (!ngx_http_affiliate_call_json_type(&call->content_type)) {
            return ngx_http_affiliate_problem(call->request,
                                              NGX_HTTP_AFFILIATE_MEDIA_TYPE,
                                              "The Content-Type must be "
                                              "application/json, in UTF-8.",
                                              NULL);
        }

        if (aff_json_deep(call->body.data, call->body.len,
                          NGX_HTTP_AFFILIATE_JSON_DEPTH))
        {
            return ngx_http_affiliate_problem(call->request,
                                             NGX_HTTP_AFFILIATE_MALFORMED_JSON,
                                             "The JSON is nested too deeply.",
                                             NULL);
        }

        call->json = json_loadb(call->body.len ? (char *) call->body.data : "",
                                call->body.len,
                                JSON_REJECT_DUPLICATES|JSON_DECODE_ANY,
                                &error);

        if (call->json == NULL) {
            return ngx_http_affiliate_call_malformed_json(call, &error);
        }
    }

    return ngx_http_affiliate_recall(call, ngx_http_affiliate_call_judge);
}


/* application/json, and if it names a charset that is utf-8. */

static ngx_uint_t
ngx_http_affiliate_call_json_type(ngx_str_t *type)
{
    u_char  *p, *end, *value;

    static const char  json[] = "application/json";
    static const char  charset[] = "charset=";

    p = type->data;
    end = p + type->len;

    if (type->len < sizeof(json) - 1
        || ngx_strncasecmp(p, (u_char *) json, sizeof(json) - 1) != 0)
    {
        return 0;
    }

    p += sizeof(json) - 1;

    while (p < end && (*p == ' ' || *p == '\t')) {
        p++;
    }

    if (p == end) {
        return 1;
    }

    if (*p++ != ';') {
        return 0;
    }

    while (p < end && (*p == ' ' || *p == '\t')) {
        p++;
    }

    if ((size_t) (end - p) < sizeof(charset) - 1
        || ngx_strncasecmp(p, (u_char *) charset, sizeof(charset) - 1) != 0)
    {
        return p == end;
    }

    value = p + sizeof(charset) - 1;

    return (end - value == 5
            && ngx_strncasecmp(value, (u_char *) "utf-8", 5) == 0)
           || (end - value == 7
               && ngx_strncasecmp(value, (u_char *) "\"utf-8\"", 7) == 0);
}


static ngx_int_t
ngx_http_affiliate_call_malformed_json(ngx_http_affiliate_call_t *call,
    json_error_t *error)
{
    const char                *detail;
    ngx_http_affiliate_text_t  members;

    /* jansson's own texts repeat what the merchant sent */

    switch (json_error_code(error)) {

    case json_error_out_of_memory:
        return NGX_HTTP_INTERNAL_SERVER_ERROR;

    case json_error_invalid_utf8:
        detail = "The JSON is not valid UTF-8.";
        break;

    case json_error_premature_end_of_input:
        detail = "The JSON ends too early.";
        break;

    case json_error_end_of_input_expected:
        detail = "Something follows the JSON.";
        break;

    case json_error_null_character:
    case json_error_null_byte_in_key:
        detail = "The JSON has a NUL character.";
        break;

    case json_error_duplicate_key:
        detail = "The JSON has a name twice in one object.";
        break;

    case json_error_numeric_overflow:
        detail = "The JSON has a number that is too big.";
        break;

    default:
        detail = "The JSON is malformed.";
        break;
    }

    call->excerpt.len = ngx_min((size_t) ngx_max(error->position, 0),
                                call->body.len);
    call->excerpt.data = call->body.data + call->excerpt.len;
    call->excerpt.len = ngx_min(call->excerpt.len,
                                NGX_HTTP_AFFILIATE_JSON_EXCERPT);
    call->excerpt.data -= call->excerpt.len;

    ngx_memzero(&members, sizeof(members));
    members.pool = call->request->pool;

    ngx_http_affiliate_text_printf(&members,
                                   ",\"line\":%d,\"column\":%d,\"offset\":%d",
                                   error->line, error->column,
                                   error->position);

    return ngx_http_affiliate_problem(call->request,
                                      NGX_HTTP_AFFILIATE_MALFORMED_JSON,
                                      detail, &members);
}


static ngx_int_t
ngx_http_affiliate_call_unavailable(ngx_http_affiliate_call_t *call,
    const char *detail)
{
    return ngx_http_affiliate_problem_retry(call->request,
                                            NGX_HTTP_AFFILIATE_UNAVAILABLE,
                                            detail,
                                            NGX_HTTP_AFFILIATE_RETRY_AFTER);
}


/* The call is its key's; whether it came before is known as far as may be. */

static ngx_int_t
ngx_http_affiliate_call_judge(ngx_http_affiliate_call_t *call)
{
    if (call->source == AFF_SOURCE_BATCH) {
        return ngx_http_affiliate_call_batch(call);
    }

    return ngx_http_affiliate_call_single(call);
}


static ngx_int_t
ngx_http_affiliate_call_single(ngx_http_affiliate_call_t *call)
{
    ngx_int_t                  rc;
    enum aff_event_result      result;
    ngx_http_affiliate_text_t  members;

    rc = ngx_http_affiliate_call_event(call, call->json, "", 0, &result);

    if (rc != NGX_DECLINED) {
        return rc;
    }

    if (result != AFF_EVENT_OK) {
        ngx_memzero(&members, sizeof(members));
        members.pool = call->request->pool;

        ngx_http_affiliate_call_errors(&members);

        return ngx_http_affiliate_problem(call->request,
                                     ngx_http_affiliate_call_problems[result],
                                     result == AFF_EVENT_INVALID
                                     ? "Fields of the event are not valid."
                                     : "The click_id can't be accepted.",
                                     &members);
    }

    return ngx_http_affiliate_call_settle(call);
}


static ngx_int_t
ngx_http_affiliate_call_batch(ngx_http_affiliate_call_t *call)
{
    char                   prefix[sizeof("/events/") + NGX_INT_T_LEN];
    size_t                 i, n;
    json_t                *events, *event;
    u_char                 detail[128];
    ngx_int_t              rc;
    enum aff_event_result  result;

    events = json_object_get(call->json, "events");
    n = json_array_size(events);

    if (!json_is_array(events) || json_object_size(call->json) != 1
        || n == 0 || n > call->alcf->max_events)
    {
        ngx_snprintf(detail, sizeof(detail),
                     "A batch is an object with nothing but \"events\", an "
                     "array of 1 to %ui events.%Z", call->alcf->max_events);

        return ngx_http_affiliate_problem(call->request,
                                          NGX_HTTP_AFFILIATE_VALIDATION,
                                          (char *) detail, NULL);
    }

    ngx_http_affiliate_text_puts(&call->results, ",\"results\":[");

    for (i = 0; i < n; i++) {
        ngx_sprintf((u_char *) prefix, "/events/%uz%Z", i);

        event = json_array_get(events, i);

        rc = ngx_http_affiliate_call_event(call, event, prefix, i, &result);

        if (rc != NGX_DECLINED) {
            return rc;
        }

        ngx_http_affiliate_call_result(call, event, i, result);
    }

    ngx_http_affiliate_text_puts(&call->results, "]");

    if (call->accepted == 0) {
        return ngx_http_affiliate_problem(call->request,
                                          NGX_HTTP_AFFILIATE_VALIDATION,
                                          "None of the events is valid.",
                                          &call->results);
    }

    return ngx_http_affiliate_call_settle(call);
}


/*
 * Judges an event and, unless the call was accepted before, records it.
 * NGX_DECLINED: *result tells; otherwise the call has been answered.
 */

static ngx_int_t
ngx_http_affiliate_call_event(ngx_http_affiliate_call_t *call,
    const json_t *json, const char *prefix, ngx_uint_t position,
    enum aff_event_result *result)
{
    struct aff_conversion   *c;
    struct aff_event_rules   rules;

    c = &ngx_http_affiliate_call_conversion;

    rules.keyring = call->amcf->keyring;
    rules.merchant_id = call->question.key->merchant_id;
    rules.livemode = call->question.key->livemode;
    rules.items = call->source != AFF_SOURCE_POSTBACK;
    rules.now_ms = ngx_http_affiliate_now();
    rules.click_ttl_ms = (uint64_t) call->alcf->click_ttl * 1000;

    *result = aff_event_read(json, &rules, prefix, c,
                             &ngx_http_affiliate_call_faults);

    if (*result != AFF_EVENT_OK) {
        call->faults = &ngx_http_affiliate_call_faults;
        call->refused++;
        return NGX_DECLINED;
    }

    call->accepted++;

    if (call->recalled != NGX_DECLINED) {
        return NGX_DECLINED;
    }

    c->source = (uint8_t) call->source;
    c->position = (uint16_t) position;
    c->key_id = ngx_http_affiliate_slice(&call->key_id);
    c->idempotency_key = ngx_http_affiliate_slice(&call->idempotency_key);
    c->received_ms = rules.now_ms;
    ngx_memcpy(c->body_hash, call->body_hash, AFF_BODY_HASH_BYTES);

    return ngx_http_affiliate_call_record(call, c);
}


/* NGX_DECLINED: it is recorded; otherwise the call has been answered. */

static ngx_int_t
ngx_http_affiliate_call_record(ngx_http_affiliate_call_t *call,
    struct aff_conversion *c)
{
    size_t   size, len;
    u_char  *frame;

    size = aff_event_size(c);
    frame = NULL;

    if (ngx_http_affiliate_conversions) {
        frame = ngx_http_affiliate_spool_reserve(
                                       ngx_http_affiliate_conversions, size);
    }

    if (frame == NULL) {
        return ngx_http_affiliate_call_unavailable(call,
                                                   "Events can't be taken "
                                                   "just now.");
    }

    len = aff_conversion_encode(c, frame + AFF_FRAME_HEADER_BYTES, size);

    if (len == 0) {
        ngx_log_error(NGX_LOG_ALERT, call->request->connection->log, 0,
                      "affiliate: a checked event can't be encoded");
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (AFF_FAULT("conversion.encoded")) {
        return NGX_HTTP_SERVICE_UNAVAILABLE;
    }

    /* the log grows in order: the last position stands for all before it */

    call->waiter.position = ngx_http_affiliate_spool_commit(
                                        ngx_http_affiliate_conversions,
                                        AFF_FRAME_CONVERSION,
                                        AFF_CONVERSION_VERSION, len);

    return AFF_FAULT("conversion.recorded") ? NGX_HTTP_SERVICE_UNAVAILABLE
                                            : NGX_DECLINED;
}


static void
ngx_http_affiliate_call_result(ngx_http_affiliate_call_t *call,
    const json_t *json, ngx_uint_t position,
    enum aff_event_result result)
{
    json_t                        *order_id;
    ngx_http_affiliate_text_t     *text;
    ngx_http_affiliate_problem_e   problem;

    text = &call->results;

    ngx_http_affiliate_text_printf(text, "%s{\"index\":%ui,\"order_id\":",
                                   position ? "," : "", position);

    order_id = json_object_get(json, "order_id");

    if (json_is_string(order_id)
        && json_string_length(order_id) <= AFF_ORDER_ID_MAX)
    {
        ngx_http_affiliate_text_json(text, json_string_value(order_id),
                                     json_string_length(order_id));

    } else {
        ngx_http_affiliate_text_puts(text, "null");
    }

    if (result == AFF_EVENT_OK) {
        ngx_http_affiliate_text_printf(text, ",\"status\":%d}",
                                       call->recalled == NGX_OK ? 200 : 202);
        return;
    }

    problem = ngx_http_affiliate_call_problems[result];

    ngx_http_affiliate_refusal_event(call, problem, json, position);

    ngx_http_affiliate_text_printf(text, ",\"status\":%ui,\"code\":\"%s\"",
                                   ngx_http_affiliate_problem_status(problem),
                                   ngx_http_affiliate_problem_code(problem));
    ngx_http_affiliate_call_errors(text);
    ngx_http_affiliate_text_puts(text, "}");
}


/* ,"errors":[{"pointer":"...","detail":"..."}, ...] of the event just read */

static void
ngx_http_affiliate_call_errors(ngx_http_affiliate_text_t *text)
{
    ngx_uint_t                i;
    struct aff_event_error   *error;
    struct aff_event_errors  *faults;

    faults = &ngx_http_affiliate_call_faults;

    ngx_http_affiliate_text_puts(text, ",\"errors\":[");

    for (i = 0; i < faults->count; i++) {
        error = &faults->error[i];

        ngx_http_affiliate_text_printf(text, "%s{\"pointer\":", i ? "," : "");
        ngx_http_affiliate_text_json(text, error->pointer,
                                     ngx_strlen(error->pointer));
        ngx_http_affiliate_text_puts(text, ",\"detail\":");
        ngx_http_affiliate_text_json(text, error->detail,
                                     ngx_strlen(error->detail));
        ngx_http_affiliate_text_puts(text, "}");
    }

    ngx_http_affiliate_text_puts(text, "]");

    if (faults->more) {
        ngx_http_affiliate_text_printf(text, ",\"more_errors\":%ui",
                                       (ngx_uint_t) faults->more);
    }
}


/* All is judged, and recorded if it is new. */

static ngx_int_t
ngx_http_affiliate_call_settle(ngx_http_affiliate_call_t *call)
{
    ngx_int_t  rc;

    if (call->recalled == NGX_ABORT) {
        return ngx_http_affiliate_problem(call->request,
                                          NGX_HTTP_AFFILIATE_KEY_REUSED,
                                          "This idempotency key was used for "
                                          "another call.", NULL);
    }

    if (call->recalled == NGX_OK) {
        ngx_http_affiliate_refusal_repeated(call);
        return ngx_http_affiliate_call_answer(call);
    }

    rc = ngx_http_affiliate_call_park(call, ngx_http_affiliate_call_settled,
                                      call->alcf->durable_timeout);

    if (rc == NGX_DONE) {
        call->waiter.handler = ngx_http_affiliate_call_durable;
        call->waiter.data = call;

        ngx_http_affiliate_spool_wait(ngx_http_affiliate_conversions,
                                      &call->waiter);
    }

    return rc;
}


static void
ngx_http_affiliate_call_durable(void *data, ngx_int_t rc)
{
    ngx_http_affiliate_call_t  *call = data;

    call->durable = rc == NGX_OK && !AFF_FAULT("conversion.durable");

    ngx_http_affiliate_call_resume(call);
}


static ngx_int_t
ngx_http_affiliate_call_settled(ngx_http_affiliate_call_t *call)
{
    if (!call->durable) {

        /* it may well be applied, and coming again does no harm */

        return ngx_http_affiliate_call_unavailable(call,
                                                   "The call was taken, but "
                                                   "is not known to be on "
                                                   "disk yet. Repeat it with "
                                                   "the same idempotency "
                                                   "key.");
    }

    ngx_http_affiliate_recall_add(call);

    return ngx_http_affiliate_call_answer(call);
}


static ngx_int_t
ngx_http_affiliate_call_answer(ngx_http_affiliate_call_t *call)
{
    json_t                     *order_id;
    ngx_uint_t                  replayed;
    ngx_http_request_t         *r;
    ngx_http_affiliate_text_t   text;

    static ngx_str_t  yes = ngx_string("true");

    r = call->request;
    replayed = call->recalled == NGX_OK;

    if (replayed
        && ngx_http_affiliate_answer_header(r, "Idempotent-Replayed", &yes)
           != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_memzero(&text, sizeof(text));
    text.pool = r->pool;

    ngx_http_affiliate_text_printf(&text,
                                   "{\"status\":\"%s\",\"livemode\":%s",
                                   call->refused ? "partial" : "accepted",
                                   call->question.key->livemode ? "true"
                                                                : "false");
    ngx_http_affiliate_problem_request_id(r, &text);

    if (call->source == AFF_SOURCE_BATCH) {
        ngx_http_affiliate_text_printf(&text,
                                       ",\"accepted\":%ui,\"refused\":%ui",
                                       call->accepted, call->refused);

        if (call->results.failed) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ngx_http_affiliate_text_put(&text, call->results.start,
                                    call->results.last - call->results.start);

    } else {
        order_id = json_object_get(call->json, "order_id");

        ngx_http_affiliate_text_puts(&text, ",\"order_id\":");
        ngx_http_affiliate_text_json(&text, json_string_value(order_id),
                                     json_string_length(order_id));
    }

    ngx_http_affiliate_text_puts(&text, "}\n");

    if (replayed) {
        ngx_http_affiliate_stat_inc(
                           conversions[NGX_HTTP_AFFILIATE_CONV_REPLAYED]);

    } else {
        ngx_http_affiliate_stat_inc(
                           conversions[NGX_HTTP_AFFILIATE_CONV_ACCEPTED]);
    }

    return ngx_http_affiliate_answer(r, replayed ? NGX_HTTP_OK
                                                 : NGX_HTTP_ACCEPTED,
                                     "application/json", &text);
}
