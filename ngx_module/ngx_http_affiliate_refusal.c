
/*
 * What a merchant should know of a refused call goes into the spool as a
 * record among the conversions.  It never stands in a conversion's way: it is
 * small, rare, and given up as soon as room is not plenty.
 *
 * Whoever knows a key's public id can have calls refused in its name.  Those
 * have a rate of their own, and are marked.
 */

#include "ngx_http_affiliate_refusal.h"

#include "../protocol/api_key.h"
#include "../protocol/refusal.h"

#include <openssl/sha.h>


#define NGX_HTTP_AFFILIATE_REFUSAL_RATE  5   /* a second and key */


static struct aff_key *ngx_http_affiliate_refusal_key(
    ngx_http_affiliate_call_t *call);
static ngx_str_t *ngx_http_affiliate_refusal_key_id(
    ngx_http_affiliate_call_t *call);
static ngx_uint_t ngx_http_affiliate_refusal_limited(
    ngx_http_affiliate_call_t *call, struct aff_key *key);
static void ngx_http_affiliate_refusal_fill(ngx_http_affiliate_call_t *call,
    struct aff_refusal *refusal, struct aff_key *key, const char *code,
    ngx_uint_t status, const char *detail);
static void ngx_http_affiliate_refusal_errors(struct aff_refusal *refusal,
    const struct aff_event_errors *errors);
static void ngx_http_affiliate_refusal_order(struct aff_refusal *refusal,
    const json_t *event);
static void ngx_http_affiliate_refusal_record(struct aff_refusal *refusal);


/* The cache's answer about a key; nothing of it outlives the look-up. */
static ngx_http_affiliate_record_t  ngx_http_affiliate_refusal_found;


void
ngx_http_affiliate_refusal_add(ngx_http_request_t *r,
    ngx_http_affiliate_problem_e problem, const char *detail)
{
    struct aff_key             *key;
    struct aff_refusal          refusal;
    ngx_http_affiliate_ctx_t   *ctx;
    ngx_http_affiliate_call_t  *call;

    ctx = ngx_http_affiliate_ctx_find(r);

    /* what is not to be had just now is no fault of the merchant's */

    if (ctx == NULL || ctx->conversion == NULL
        || problem == NGX_HTTP_AFFILIATE_UNAVAILABLE)
    {
        return;
    }

    call = ctx->conversion;

    /* of a batch, each event was recorded */

    if (call->results.start && problem == NGX_HTTP_AFFILIATE_VALIDATION) {
        return;
    }

    key = ngx_http_affiliate_refusal_key(call);

    if (key == NULL || ngx_http_affiliate_refusal_limited(call, key)) {
        return;
    }

    if (problem == NGX_HTTP_AFFILIATE_UNKNOWN_KEY && key->revoked) {
        detail = "The API key was revoked.";
    }

    ngx_http_affiliate_refusal_fill(call, &refusal, key,
                                    ngx_http_affiliate_problem_code(problem),
                                    ngx_http_affiliate_problem_status(problem),
                                    detail);

    if (call->faults && call->results.start == NULL) {
        ngx_http_affiliate_refusal_errors(&refusal, call->faults);
    }

    ngx_http_affiliate_refusal_order(&refusal, call->json);
    ngx_http_affiliate_refusal_record(&refusal);
}


void
ngx_http_affiliate_refusal_event(ngx_http_affiliate_call_t *call,
    ngx_http_affiliate_problem_e problem, const json_t *event,
    ngx_uint_t position)
{
    struct aff_refusal  refusal;

    if (ngx_http_affiliate_refusal_limited(call, call->question.key)) {
        return;
    }

    ngx_http_affiliate_refusal_fill(call, &refusal, call->question.key,
                                    ngx_http_affiliate_problem_code(problem),
                                    ngx_http_affiliate_problem_status(problem),
                                    "The event of the batch is not valid.");

    refusal.position = (uint16_t) position;

    ngx_http_affiliate_refusal_errors(&refusal, call->faults);
    ngx_http_affiliate_refusal_order(&refusal, event);
    ngx_http_affiliate_refusal_record(&refusal);
}


void
ngx_http_affiliate_refusal_repeated(ngx_http_affiliate_call_t *call)
{
    struct aff_refusal  refusal;

    if (call->question.key->livemode
        || ngx_http_affiliate_refusal_limited(call, call->question.key))
    {
        return;
    }

    ngx_http_affiliate_refusal_fill(call, &refusal, call->question.key,
                                    "repeated", NGX_HTTP_OK,
                                    "The call was accepted before.");
    ngx_http_affiliate_refusal_order(&refusal, call->json);
    ngx_http_affiliate_refusal_record(&refusal);
}


/*
 * The call's key, if it was looked up, or is in the cache.  Redis is not asked
 * for the sake of a call that is refused already.
 */

static struct aff_key *
ngx_http_affiliate_refusal_key(ngx_http_affiliate_call_t *call)
{
    bool                        livemode;
    ngx_str_t                  *id;
    ngx_uint_t                  refresh;
    ngx_http_affiliate_found_e  found;

    if (call->question.key) {
        return call->question.key;
    }

    id = ngx_http_affiliate_refusal_key_id(call);

    if (id == NULL || call->amcf->cache == NULL
        || !aff_api_key_valid(ngx_http_affiliate_slice(id), &livemode))
    {
        return NULL;
    }

    found = ngx_http_affiliate_cache_get(call->amcf->cache,
                                         NGX_HTTP_AFFILIATE_KEY, id,
                                         &call->amcf->cache_times, 0,
                                         &ngx_http_affiliate_refusal_found,
                                         &refresh);

    if (found == NGX_HTTP_AFFILIATE_ABSENT
        || found == NGX_HTTP_AFFILIATE_NOT_THERE)
    {
        return NULL;
    }

    return ngx_http_affiliate_key_unpack(call->request->pool, id,
                                         ngx_http_affiliate_refusal_found.data,
                                         ngx_http_affiliate_refusal_found.len);
}


/* The headers may not have been read yet, where the body is refused. */

static ngx_str_t *
ngx_http_affiliate_refusal_key_id(ngx_http_affiliate_call_t *call)
{
    ngx_str_t        *id;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    if (call->key_id.len) {
        return &call->key_id;
    }

    id = NULL;
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

        if (h[i].key.len == sizeof("affiliate-key") - 1
            && ngx_strncmp(h[i].lowcase_key, "affiliate-key", h[i].key.len)
               == 0)
        {
            if (id) {
                return NULL;
            }

            id = &h[i].value;
        }
    }

    return id;
}


static ngx_uint_t
ngx_http_affiliate_refusal_limited(ngx_http_affiliate_call_t *call,
    struct aff_key *key)
{
    u_char    digest[SHA256_DIGEST_LENGTH];
    uint64_t  hash;

    if (ngx_http_affiliate_conversions == NULL || call->amcf->replay == NULL) {
        return 1;
    }

    SHA256(key->id.data, key->id.len, digest);

    /* the first words are the calls' own */

    ngx_memcpy(&hash, digest + (call->authentic ? 8 : 16), sizeof(hash));

    return ngx_http_affiliate_replay_rate(call->amcf->replay, hash,
                                          NGX_HTTP_AFFILIATE_REFUSAL_RATE)
           != 0;
}


static void
ngx_http_affiliate_refusal_fill(ngx_http_affiliate_call_t *call,
    struct aff_refusal *refusal, struct aff_key *key, const char *code,
    ngx_uint_t status, const char *detail)
{
    u_char                         *p;
    ngx_http_variable_value_t      *vv;

    ngx_memzero(refusal, sizeof(*refusal));

    refusal->merchant_id = key->merchant_id;
    refusal->livemode = key->livemode;
    refusal->source = (uint8_t) call->source;
    refusal->authentic = call->authentic;
    refusal->status = (uint16_t) status;
    refusal->refused_ms = ngx_http_affiliate_now();
    refusal->key_id = key->id;
    refusal->code = aff_slice_of(code);
    refusal->detail = aff_slice_of(detail);
    refusal->idempotency_key = ngx_http_affiliate_slice(&call->idempotency_key);
    refusal->timestamp = ngx_http_affiliate_slice(&call->timestamp);
    refusal->target = ngx_http_affiliate_slice(&call->target);
    refusal->excerpt = ngx_http_affiliate_slice(&call->excerpt);

    if (call->source == AFF_SOURCE_POSTBACK) {

        /* the query is its body */

        p = ngx_strlchr(call->target.data,
                        call->target.data + call->target.len, '?');
        if (p) {
            refusal->target.len = p - call->target.data;
        }

    } else if (call->body.data) {
        refusal->body_bytes = (uint32_t) ngx_min(call->body.len, UINT32_MAX);
        SHA256(call->body.data, call->body.len, refusal->body_hash);
    }

    vv = ngx_http_get_indexed_variable(call->request, call->alcf->request_id);

    if (vv && !vv->not_found) {
        refusal->request_id = aff_slice(vv->data, vv->len);
    }
}


static void
ngx_http_affiliate_refusal_errors(struct aff_refusal *refusal,
    const struct aff_event_errors *errors)
{
    ngx_uint_t  i;

    refusal->errors_count = ngx_min(errors->count, AFF_REFUSAL_ERRORS_MAX);

    for (i = 0; i < refusal->errors_count; i++) {
        refusal->errors[i].pointer = aff_slice_of(errors->error[i].pointer);
        refusal->errors[i].rule = aff_slice_of(errors->error[i].detail);
    }
}


static void
ngx_http_affiliate_refusal_order(struct aff_refusal *refusal,
    const json_t *event)
{
    json_t  *order_id;

    order_id = json_object_get(event, "order_id");

    if (json_is_string(order_id)) {
        refusal->order_id = aff_slice(json_string_value(order_id),
                                      json_string_length(order_id));
    }
}


static void
ngx_http_affiliate_refusal_record(struct aff_refusal *refusal)
{
    size_t   len;
    u_char  *frame;

    frame = ngx_http_affiliate_spool_reserve_spare(
                                               ngx_http_affiliate_conversions,
                                               AFF_REFUSAL_BYTES_MAX);

    if (frame == NULL) {
        return;
    }

    len = aff_refusal_encode(refusal, frame + AFF_FRAME_HEADER_BYTES,
                             AFF_REFUSAL_BYTES_MAX);

    if (len) {
        (void) ngx_http_affiliate_spool_commit(ngx_http_affiliate_conversions,
                                               AFF_FRAME_REFUSAL,
                                               AFF_REFUSAL_VERSION, len);
    }
}
