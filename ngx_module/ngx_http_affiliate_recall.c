
/*
 * Whether a call was accepted before: asked of the shared zone, and of Redis
 * where the zone does not know it (another host may have accepted it, or this
 * one before its zone was made).  Best effort; PostgreSQL decides in the end.
 *
 * In Redis, the value of aff:idem:<key id>:<hex of the Idempotency-Key's hash>
 * is the hex of the body's hash, and that of a MAC (SipHash-2-4 under label
 * "recall", little-endian) over name and body: who can write there and has no
 * master key can't have a call answered that was never taken.  A value with
 * another MAC is as none.
 */

#include "ngx_http_affiliate_call.h"

#include <openssl/crypto.h>

#include "../protocol/bytes.h"
#include "../protocol/signature.h"
#include "../protocol/siphash.h"


#define NGX_HTTP_AFFILIATE_RECALL_PREFIX  "aff:idem:"
#define NGX_HTTP_AFFILIATE_RECALL_HEX     (NGX_HTTP_AFFILIATE_REPLAY_BYTES * 2)
#define NGX_HTTP_AFFILIATE_RECALL_MAC     8
#define NGX_HTTP_AFFILIATE_RECALL_LEN                                         \
    (NGX_HTTP_AFFILIATE_RECALL_HEX + 2 * NGX_HTTP_AFFILIATE_RECALL_MAC)
#define NGX_HTTP_AFFILIATE_RECALL_NAME                                        \
    (sizeof(NGX_HTTP_AFFILIATE_RECALL_PREFIX) + AFF_API_KEY_ID_MAX            \
     + NGX_HTTP_AFFILIATE_RECALL_HEX)


/*
 * A question on its way.  Redis answers it whether or not the request still
 * lives, so it is no memory of the request's.
 */
struct ngx_http_affiliate_recall_s {
    ngx_http_affiliate_call_t  *call;     /* NULL: nobody waits any more */
    ngx_event_t                 event;
    unsigned                    answered:1;
    unsigned                    known:1;
    u_char                      value[NGX_HTTP_AFFILIATE_RECALL_LEN];
};


static ngx_int_t ngx_http_affiliate_recall_ask(
    ngx_http_affiliate_call_t *call);
static void ngx_http_affiliate_recall_reply(void *data, redisReply *reply);
static void ngx_http_affiliate_recall_answered(ngx_event_t *ev);
static void ngx_http_affiliate_recall_stored(void *data, redisReply *reply);
static size_t ngx_http_affiliate_recall_name(ngx_http_affiliate_call_t *call,
    u_char *name);
static ngx_uint_t ngx_http_affiliate_recall_sealed(
    ngx_http_affiliate_call_t *call, const u_char *value);
static void ngx_http_affiliate_recall_seal(ngx_http_affiliate_call_t *call,
    struct aff_master_key *key, const u_char *body, char *hex);


ngx_int_t
ngx_http_affiliate_recall(ngx_http_affiliate_call_t *call,
    ngx_http_affiliate_step_pt step)
{
    call->recalled = NGX_DECLINED;

    if (call->amcf->replay) {
        call->recalled = ngx_http_affiliate_replay_find(call->amcf->replay,
                                                        call->identity,
                                                        call->body_hash);
    }

    if (call->recalled != NGX_DECLINED
        || ngx_http_affiliate_recall_ask(call) != NGX_OK)
    {
        return step(call);
    }

    return ngx_http_affiliate_call_park(call, step,
                                        call->alcf->lookup_timeout);
}


/* NGX_OK: there will be an answer. */

static ngx_int_t
ngx_http_affiliate_recall_ask(ngx_http_affiliate_call_t *call)
{
    u_char                        name[NGX_HTTP_AFFILIATE_RECALL_NAME];
    size_t                        argvlen[2];
    const char                   *argv[2];
    ngx_http_affiliate_recall_t  *recall;

    if (ngx_http_affiliate_lookup_redis == NULL
        || !ngx_http_affiliate_redis_ready(ngx_http_affiliate_lookup_redis))
    {
        return NGX_DECLINED;
    }

    recall = ngx_calloc(sizeof(ngx_http_affiliate_recall_t), ngx_cycle->log);
    if (recall == NULL) {
        return NGX_DECLINED;
    }

    recall->call = call;
    recall->event.handler = ngx_http_affiliate_recall_answered;
    recall->event.data = recall;
    recall->event.log = ngx_cycle->log;

    argv[0] = "GET";
    argvlen[0] = sizeof("GET") - 1;
    argv[1] = (char *) name;
    argvlen[1] = ngx_http_affiliate_recall_name(call, name);

    if (ngx_http_affiliate_redis_command(ngx_http_affiliate_lookup_redis,
                                         ngx_http_affiliate_recall_reply,
                                         recall, 2, argv, argvlen)
        != NGX_OK)
    {
        ngx_free(recall);
        return NGX_DECLINED;
    }

    call->recall = recall;

    return NGX_OK;
}


static void
ngx_http_affiliate_recall_reply(void *data, redisReply *reply)
{
    ngx_http_affiliate_recall_t  *recall = data;

    if (reply && reply->type == REDIS_REPLY_ERROR) {
        (void) ngx_http_affiliate_redis_unavailable(
                                      ngx_http_affiliate_lookup_redis, reply);

    } else if (reply && reply->type != REDIS_REPLY_STRING
               && reply->type != REDIS_REPLY_NIL)
    {
        ngx_http_affiliate_redis_give_up(ngx_http_affiliate_lookup_redis,
                                         "unexpected reply to GET");
    }

    if (recall->call == NULL) {
        ngx_free(recall);
        return;
    }

    recall->answered = 1;

    if (reply && reply->type == REDIS_REPLY_STRING
        && reply->len == NGX_HTTP_AFFILIATE_RECALL_LEN)
    {
        recall->known = 1;
        ngx_memcpy(recall->value, reply->str, NGX_HTTP_AFFILIATE_RECALL_LEN);
    }

    ngx_post_event(&recall->event, &ngx_posted_events);
}


static void
ngx_http_affiliate_recall_answered(ngx_event_t *ev)
{
    char                          hex[NGX_HTTP_AFFILIATE_RECALL_HEX];
    ngx_http_affiliate_call_t    *call;
    ngx_http_affiliate_recall_t  *recall;

    recall = ev->data;
    call = recall->call;

    if (recall->known && ngx_http_affiliate_recall_sealed(call, recall->value))
    {
        aff_hex(call->body_hash, NGX_HTTP_AFFILIATE_REPLAY_BYTES, hex);

        call->recalled = ngx_memcmp(hex, recall->value, sizeof(hex)) == 0
                         ? NGX_OK : NGX_ABORT;
    }

    call->recall = NULL;
    ngx_free(recall);

    ngx_http_affiliate_call_resume(call);
}


void
ngx_http_affiliate_recall_forget(ngx_http_affiliate_call_t *call)
{
    ngx_http_affiliate_recall_t  *recall;

    recall = call->recall;

    if (recall == NULL) {
        return;
    }

    call->recall = NULL;

    if (!recall->answered) {
        recall->call = NULL;
        return;
    }

    if (recall->event.posted) {
        ngx_delete_posted_event(&recall->event);
    }

    ngx_free(recall);
}


void
ngx_http_affiliate_recall_add(ngx_http_affiliate_call_t *call)
{
    char         value[NGX_HTTP_AFFILIATE_RECALL_LEN];
    u_char       name[NGX_HTTP_AFFILIATE_RECALL_NAME];
    u_char       valid[NGX_INT_T_LEN];
    size_t       argvlen[5];
    const char  *argv[5];

    if (call->amcf->replay) {
        ngx_http_affiliate_replay_add(call->amcf->replay, call->identity,
                                      call->body_hash);
    }

    if (ngx_http_affiliate_lookup_redis == NULL) {
        return;
    }

    aff_hex(call->body_hash, NGX_HTTP_AFFILIATE_REPLAY_BYTES, value);
    ngx_http_affiliate_recall_seal(call, &call->amcf->keyring->keys[0],
                                   (u_char *) value,
                                   value + NGX_HTTP_AFFILIATE_RECALL_HEX);

    argv[0] = "SET";
    argvlen[0] = sizeof("SET") - 1;
    argv[1] = (char *) name;
    argvlen[1] = ngx_http_affiliate_recall_name(call, name);
    argv[2] = value;
    argvlen[2] = sizeof(value);
    argv[3] = "EX";
    argvlen[3] = sizeof("EX") - 1;
    argv[4] = (char *) valid;
    argvlen[4] = ngx_sprintf(valid, "%d", NGX_HTTP_AFFILIATE_REPLAY_VALID)
                 - valid;

    /* declined or lost, it is only not remembered there */

    (void) ngx_http_affiliate_redis_command(ngx_http_affiliate_lookup_redis,
                                            ngx_http_affiliate_recall_stored,
                                            NULL, 5, argv, argvlen);
}


static void
ngx_http_affiliate_recall_stored(void *data, redisReply *reply)
{
    if (reply && reply->type == REDIS_REPLY_ERROR) {
        (void) ngx_http_affiliate_redis_unavailable(
                                      ngx_http_affiliate_lookup_redis, reply);
    }
}


/* aff:idem:<key id>:<hex of the Idempotency-Key's hash>; returns its length. */

static size_t
ngx_http_affiliate_recall_name(ngx_http_affiliate_call_t *call, u_char *name)
{
    u_char  *p;

    p = ngx_cpymem(name, NGX_HTTP_AFFILIATE_RECALL_PREFIX,
                   sizeof(NGX_HTTP_AFFILIATE_RECALL_PREFIX) - 1);
    p = ngx_cpymem(p, call->key_id.data, call->key_id.len);
    *p++ = ':';
    aff_hex(call->key_hash, NGX_HTTP_AFFILIATE_REPLAY_BYTES, (char *) p);

    return p + NGX_HTTP_AFFILIATE_RECALL_HEX - name;
}


/* Whether some key of the ring made the value's MAC, for this name. */

static ngx_uint_t
ngx_http_affiliate_recall_sealed(ngx_http_affiliate_call_t *call,
    const u_char *value)
{
    char                 hex[2 * NGX_HTTP_AFFILIATE_RECALL_MAC];
    ngx_uint_t           i;
    struct aff_keyring  *ring;

    ring = call->amcf->keyring;

    for (i = 0; i < ring->count; i++) {
        ngx_http_affiliate_recall_seal(call, &ring->keys[i], value, hex);

        if (CRYPTO_memcmp(hex, value + NGX_HTTP_AFFILIATE_RECALL_HEX,
                          sizeof(hex))
            == 0)
        {
            return 1;
        }
    }

    return 0;
}


static void
ngx_http_affiliate_recall_seal(ngx_http_affiliate_call_t *call,
    struct aff_master_key *key, const u_char *body, char *hex)
{
    u_char              name[NGX_HTTP_AFFILIATE_RECALL_NAME];
    u_char              mac[NGX_HTTP_AFFILIATE_RECALL_MAC];
    struct aff_siphash  hash;

    aff_siphash_init(&hash, key->recall);
    aff_siphash_update(&hash, name, ngx_http_affiliate_recall_name(call, name));
    aff_siphash_update(&hash, body, NGX_HTTP_AFFILIATE_RECALL_HEX);
    aff_store_le64(mac, aff_siphash_final(&hash));
    aff_hex(mac, sizeof(mac), hex);
}
