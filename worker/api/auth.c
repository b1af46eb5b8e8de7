/*
 * Who calls. A key's signature is verified here, as the conversion location does it, with the same
 * codes; a session's token is only hashed, and SQL knows whether it is one.
 */

#include "worker/api/exchange.h"

#include "protocol/conversion.h"
#include "protocol/signature.h"

#include <openssl/crypto.h>

#include <time.h>

#define AUTH_SIGNATURE_MAX 1024

/* As they stood in the request. */
struct auth_headers {
    struct aff_slice key, timestamp, signature, cookie, csrf;
};

bool
exchange_header(struct exchange *x, const char *name, struct aff_slice *value)
{
    if (scgi_find(&x->lane->head, name, value) > 1) {
        return answer_problem(x, 400, "duplicate_header", NULL, "The header %s is given twice.",
            strncmp(name, "HTTP_", 5) == 0 ? name + 5 : name);
    }

    return true;
}

static bool
auth_malformed(struct exchange *x, const char *name, const char *rule)
{
    return answer_problem(x, 400, "malformed_header",
        json_pack("{s:[{s:s, s:s}]}", "errors", "header", name, "detail", rule),
        "The header %s %s.", name, rule);
}

static bool
auth_idempotency(struct exchange *x)
{
    struct aff_slice value;

    if (!exchange_header(x, "HTTP_IDEMPOTENCY_KEY", &value)) {
        return false;
    }

    if (value.len > AFF_IDEMPOTENCY_KEY_MAX) {
        return auth_malformed(x, "Idempotency-Key", "is too long");
    }

    for (size_t i = 0; i < value.len; i++) {
        if (value.data[i] <= 0x20 || value.data[i] >= 0x7f) {
            return auth_malformed(x, "Idempotency-Key", "must be visible ASCII characters");
        }
    }

    x->idempotency_key = value;
    return true;
}

/* All three of a signed call, in form; the module's own limits. */
static bool
auth_signed(struct exchange *x, const struct auth_headers *headers)
{
    static const char *const names[] = {
        "Affiliate-Key", "Affiliate-Timestamp", "Affiliate-Signature"};
    const struct aff_slice *const values[] = {
        &headers->key, &headers->timestamp, &headers->signature};
    uint8_t given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES];
    int64_t seconds;

    for (unsigned i = 0; i < 3; i++) {
        if (values[i]->len == 0) {
            return answer_problem(x, 400, "missing_header",
                json_pack("{s:[{s:s, s:s}]}", "errors", "header", names[i], "detail", "is missing"),
                "The header %s is missing.", names[i]);
        }
    }

    if (!aff_timestamp_parse(headers->timestamp, &seconds)) {
        return auth_malformed(x, "Affiliate-Timestamp", "must be unix seconds");
    }

    if (headers->signature.len > AUTH_SIGNATURE_MAX ||
        aff_signature_parse(headers->signature, given) == 0) {
        return auth_malformed(x, "Affiliate-Signature",
            "must be v1=<64 hex digits>, up to 4 of them with commas between");
    }

    return true;
}

static void
auth_session(struct exchange *x, struct aff_slice token, struct aff_slice csrf)
{
    struct credential *credential = &x->credential;

    credential->kind = CREDENTIAL_SESSION;
    memcpy(credential->token, token.data, EXCHANGE_TOKEN);
    credential->token[EXCHANGE_TOKEN] = '\0';
    text_sha256(token, credential->session);
    if (csrf.len > 0) {
        text_sha256(csrf, credential->csrf);
    }
}

bool
auth_identify(struct exchange *x)
{
    struct auth_headers headers;
    struct aff_slice token = {0};
    uint8_t bytes[32];
    bool livemode, session, signature;

    if (!exchange_header(x, "HTTP_AFFILIATE_KEY", &headers.key) ||
        !exchange_header(x, "HTTP_AFFILIATE_TIMESTAMP", &headers.timestamp) ||
        !exchange_header(x, "HTTP_AFFILIATE_SIGNATURE", &headers.signature) ||
        !exchange_header(x, "HTTP_COOKIE", &headers.cookie) ||
        !exchange_header(x, "HTTP_X_CSRF_TOKEN", &headers.csrf) || !auth_idempotency(x)) {
        return false;
    }

    /* A cookie that can't be ours is nobody's. */
    session = request_cookie(headers.cookie, EXCHANGE_COOKIE, &token) &&
              text_from_base64(token, true, bytes, sizeof(bytes));
    OPENSSL_cleanse(bytes, sizeof(bytes));
    signature = headers.key.len > 0 || headers.timestamp.len > 0 || headers.signature.len > 0;

    if (session && signature) {
        return answer_problem(x, 400, "malformed_header", NULL,
            "A call is signed with a key or made in a session, not both.");
    }

    if (session) {
        auth_session(x, token, headers.csrf);
    }

    if (!signature) {
        return true;
    }

    if (!auth_signed(x, &headers)) {
        return false;
    }

    if (!aff_api_key_valid(headers.key, &livemode)) {
        return answer_problem(x, 401, "unknown_key", NULL, "The API key is not known.");
    }

    x->credential.kind = CREDENTIAL_KEY;
    memcpy(x->credential.key, headers.key.data, AFF_API_KEY_ID_CHARS);
    return true;
}

static bool
auth_clock_skew(struct exchange *x, int64_t now)
{
    return answer_problem(x, 401, "clock_skew",
        json_pack("{s:I, s:i}", "server_time", (json_int_t) now, "tolerance", AFF_TIMESTAMP_SKEW_S),
        "The timestamp, in unix seconds, is too far from the server's time.");
}

/* With a test key, tells what the server signed; never the signature, and the body as its length
 * and hash only. */
static bool
auth_bad_signature(struct exchange *x, const struct aff_signed_request *request, bool livemode)
{
    char hash[TEXT_SHA256_CHARS + 1];
    struct buffer text;
    struct aff_slice whole;
    json_t *more = NULL;

    if (livemode) {
        return answer_problem(x, 401, "bad_signature", NULL, "No signature given is the call's.");
    }

    buffer_open(&text, SCGI_INPUT_MAX, NULL);
    buffer_puts(&text, "v1\n");
    buffer_put(&text, request->timestamp.data, request->timestamp.len);
    buffer_puts(&text, "\n");
    buffer_put(&text, request->method.data, request->method.len);
    buffer_puts(&text, "\n");
    buffer_put(&text, request->path_with_query.data, request->path_with_query.len);
    buffer_puts(&text, "\n");
    buffer_put(&text, request->idempotency_key.data, request->idempotency_key.len);
    buffer_puts(&text, "\n");
    text_sha256(x->body, hash);
    if (buffer_whole(&text, &whole) && text_utf8(whole)) {
        more = json_pack("{s:s%, s:I, s:s}", "string_to_sign", (const char *) whole.data, whole.len,
            "body_length", (json_int_t) x->body.len, "body_sha256", hash);
    }

    buffer_close(&text);
    return answer_problem(x, 401, "bad_signature", more,
        "No signature given is the call's. The server signed string_to_sign followed by the body.");
}

static bool
auth_verify(struct exchange *x, const struct aff_master_key *master, bool livemode)
{
    uint8_t given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES], expected[AFF_SIGNATURE_BYTES];
    char secret[AFF_API_KEY_SECRET_CHARS + 1];
    struct aff_signed_request request = {.method = x->method,
        .path_with_query = x->target,
        .idempotency_key = x->idempotency_key,
        .body = &x->body,
        .body_pieces = 1};
    struct aff_slice signature;
    int64_t seconds = 0, now = (int64_t) time(NULL);
    bool ok;

    (void) scgi_find(&x->lane->head, "HTTP_AFFILIATE_TIMESTAMP", &request.timestamp);
    (void) scgi_find(&x->lane->head, "HTTP_AFFILIATE_SIGNATURE", &signature);
    if (!aff_timestamp_parse(request.timestamp, &seconds) || seconds < now - AFF_TIMESTAMP_SKEW_S ||
        seconds > now + AFF_TIMESTAMP_SKEW_S) {
        return auth_clock_skew(x, now);
    }

    ok = aff_api_key_secret(master, aff_slice_of(x->credential.key), secret) &&
         aff_sign(aff_slice(secret, AFF_API_KEY_SECRET_CHARS), &request, expected);
    OPENSSL_cleanse(secret, sizeof(secret));
    if (!ok) {
        return answer_unavailable(x, "The signature can't be verified just now.");
    }

    return aff_signature_match(expected, given, aff_signature_parse(signature, given)) ||
           auth_bad_signature(x, &request, livemode);
}

bool
auth_key(struct exchange *x)
{
    const char *values[] = {x->credential.key};
    const struct aff_master_key *master;
    const char *master_id;
    json_t *record;
    bool livemode = false, ok;

    (void) aff_api_key_valid(aff_slice_of(x->credential.key), &livemode);
    record = call_value(x, "select affiliate.key_record($1)", 1, values, true);
    if (record == NULL) {
        return false;
    }

    /* A master key that was taken out of the file takes its secrets along. */
    master_id = json_string_value(json_object_get(record, "master_id"));
    master = master_id == NULL || json_is_true(json_object_get(record, "revoked")) ||
                     json_is_true(json_object_get(record, "livemode")) != livemode
                 ? NULL
                 : aff_keyring_find(&x->lane->ring, aff_slice_of(master_id));
    ok = master == NULL ? answer_problem(x, 401, "unknown_key", NULL, "The API key is not known.")
                        : auth_verify(x, master, livemode);
    json_decref(record);
    return ok;
}

/* What a request's cost is taken from: its credential, or its address. */
static struct aff_slice
auth_payer(const struct exchange *x)
{
    return x->credential.kind == CREDENTIAL_KEY       ? aff_slice_of(x->credential.key)
           : x->credential.kind == CREDENTIAL_SESSION ? aff_slice_of(x->credential.session)
                                                      : x->address;
}

bool
rate_limit(
    struct exchange *x, const char *name, int64_t quota, int64_t window_s, struct aff_slice who)
{
    struct rate_policy policy = {.name = name, .quota = quota, .window_s = window_s};
    struct rate_state state;
    bool taken = rate_take(&policy, who, 1, exchange_now_us(), &state);

    /* Of several the one that is nearest to its end is told. */
    if (quota > 0 && (x->policy.name == NULL || !taken || state.left < x->rate.left)) {
        x->policy = policy;
        x->rate = state;
    }

    return taken || answer_problem(x, 429, "rate_limited",
                        json_pack("{s:I}", "retry_after", (json_int_t) state.retry_s),
                        "This is too fast: %lld in %lld s are allowed.", (long long) quota,
                        (long long) window_s);
}

bool
rate_charge(struct exchange *x)
{
    return x->credential.kind == CREDENTIAL_NONE
               ? rate_limit(x, "address", x->config->api.rate_address, 60, x->address)
               : rate_limit(x, "credential", x->config->api.rate, 60, auth_payer(x));
}

/* Keys and sessions that are none cost their address, so that nobody tries them at leisure. */
static struct rate_policy
rate_failures(const struct exchange *x)
{
    return (struct rate_policy){"refused", x->config->api.rate_address, 60};
}

/* A credential that was good lately is in an empty bucket of its own: others behind the same
 * address do it no harm. */
static const struct rate_policy rate_good = {"good", 1, 3600};

void
rate_known(struct aff_slice who)
{
    struct rate_state state;

    (void) rate_take(&rate_good, who, 1, exchange_now_us(), &state);
}

bool
rate_guard(struct exchange *x)
{
    struct rate_policy policy = rate_failures(x);
    struct rate_state state;

    return !rate_take(&rate_good, auth_payer(x), 0, exchange_now_us(), &state) ||
           rate_take(&policy, x->address, 0, exchange_now_us(), &state) ||
           answer_problem(x, 429, "rate_limited",
               json_pack("{s:I}", "retry_after", (json_int_t) state.retry_s),
               "Too many calls from this address were refused.");
}

void
rate_learn(const struct exchange *x)
{
    struct rate_policy policy = rate_failures(x);
    struct rate_state state;

    if (x->credential.kind != CREDENTIAL_NONE && x->status != 401) {
        rate_known(auth_payer(x));
    } else if (x->status == 401) {
        (void) rate_take(&policy, x->address, 1, exchange_now_us(), &state);
    }
}
