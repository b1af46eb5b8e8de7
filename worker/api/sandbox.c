/*
 * What a merchant's program gets wrong: the checks of the conversion location, made of a call that
 * is only described, and the search for what it signed instead. The secret is derived here and goes
 * nowhere; SQL says whether who asks may, before anything of it is told.
 */

#include "worker/api/exchange.h"

#include "protocol/event.h"
#include "protocol/explain.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <stdlib.h>
#include <time.h>

#define SANDBOX_BODY_MAX   65536
#define SANDBOX_PATH_MAX   2000
#define SANDBOX_HEADER_MAX 1024
#define SANDBOX_JSON_DEPTH 8

/* A call as it was described. Texts are the fields'. */
struct described {
    struct aff_signed_request request;
    struct aff_slice body, key, signature;
    bool livemode;
    uint64_t merchant_id;
    const struct aff_master_key *master; /* NULL: the key is none of the merchant's that works */
};

static bool
sandbox_invalid(struct exchange *x, const char *field, const char *rule)
{
    char pointer[REQUEST_NAME_MAX + 2];

    snprintf(pointer, sizeof(pointer), "/%s", field);
    return answer_problem(x, 422, "invalid_field",
        json_pack("{s:[{s:s, s:s}]}", "errors", "pointer", pointer, "detail", rule), "%s: %s",
        field, rule);
}

/* A text of the request, or `otherwise` where there is none; it stays the request's. */
static bool
sandbox_text(struct exchange *x, const char *field, size_t max, const char *otherwise,
    struct aff_slice *text)
{
    json_t *value = json_object_get(x->fields, field);

    *text = aff_slice_of(otherwise == NULL ? "" : otherwise);
    if (value == NULL || json_is_null(value)) {
        return otherwise != NULL || sandbox_invalid(x, field, "is required");
    }

    if (!json_is_string(value) || json_string_length(value) > max) {
        return sandbox_invalid(x, field, "must be a text, and not too long");
    }

    *text = aff_slice(json_string_value(value), json_string_length(value));
    return true;
}

/* What is known of the key: of this merchant, not revoked, its master key there. */
static bool
sandbox_key(struct exchange *x, struct aff_slice key, struct described *call)
{
    char id[AFF_API_KEY_ID_MAX + 1];
    const char *values[] = {id};
    const char *merchant = json_string_value(json_object_get(x->fields, "merchant"));
    const char *master;
    json_t *record;
    bool livemode;

    call->merchant_id = merchant == NULL ? 0 : strtoull(merchant, NULL, 10);
    if (!aff_api_key_valid(key, &livemode)) {
        return true;
    }

    snprintf(id, sizeof(id), "%.*s", (int) key.len, (const char *) key.data);
    record = call_value(x, "select affiliate.key_record($1)", 1, values, true);
    if (record == NULL) {
        return false;
    }

    master = json_string_value(json_object_get(record, "master_id"));
    if (master != NULL && !json_is_true(json_object_get(record, "revoked")) &&
        (uint64_t) json_integer_value(json_object_get(record, "merchant")) == call->merchant_id) {
        call->livemode = json_is_true(json_object_get(record, "livemode"));
        call->master = aff_keyring_find(&x->lane->ring, aff_slice_of(master));
    }

    json_decref(record);
    return true;
}

static bool
sandbox_call(struct exchange *x, struct described *call)
{
    struct aff_signed_request *request = &call->request;

    if (!sandbox_text(x, "body", SANDBOX_BODY_MAX, NULL, &call->body) ||
        !sandbox_text(x, "method", 16, "POST", &request->method) ||
        !sandbox_text(x, "path", SANDBOX_PATH_MAX, "/v1/conversions", &request->path_with_query) ||
        !sandbox_text(x, "timestamp", SANDBOX_HEADER_MAX, "", &request->timestamp) ||
        !sandbox_text(
            x, "idempotency_key", AFF_IDEMPOTENCY_KEY_MAX, "", &request->idempotency_key) ||
        !sandbox_text(x, "signature", SANDBOX_HEADER_MAX, "", &call->signature) ||
        !sandbox_text(x, "key", AFF_API_KEY_ID_MAX, "", &call->key)) {
        return false;
    }

    request->body = &call->body;
    request->body_pieces = 1;
    return true;
}

/* The key's secret; true if there is one. The caller cleanses it. */
static bool
sandbox_secret(const struct described *call, char secret[AFF_API_KEY_SECRET_CHARS + 1])
{
    return call->master != NULL && aff_api_key_secret(call->master, call->key, secret);
}

/* Whether the signature is the call's, and if not, the mistake that made it, if that is known. */
static bool
sandbox_signature(const struct described *call, const char **mistake)
{
    char secret[AFF_API_KEY_SECRET_CHARS + 1] = "";
    uint8_t given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES], expected[AFF_SIGNATURE_BYTES];
    struct aff_slice text = aff_slice(secret, AFF_API_KEY_SECRET_CHARS);
    unsigned count = aff_signature_parse(call->signature, given);
    bool right;

    *mistake = NULL;
    if (!sandbox_secret(call, secret)) {
        return false;
    }

    right = aff_sign(text, &call->request, expected) && aff_signature_match(expected, given, count);
    if (!right) {
        *mistake = aff_explain_signature(text, call->key, &call->request, call->signature);
    }

    OPENSSL_cleanse(secret, sizeof(secret));
    OPENSSL_cleanse(expected, sizeof(expected));
    return right;
}

/* --- signature_check ------------------------------------------------------------------------- */

static json_t *
sandbox_part(struct aff_slice part)
{
    return text_utf8(part) && part.data != NULL
               ? json_stringn((const char *) part.data, part.len < 200 ? part.len : 200)
               : json_null();
}

/* The lines of what was signed beside those of the call; the body as no more than where it differs.
 */
static json_t *
sandbox_lines(struct aff_slice text, const struct described *call)
{
    struct aff_explained_line lines[AFF_EXPLAIN_LINES];
    json_t *list = json_array();

    aff_explain_text(text, &call->request, lines);
    for (unsigned i = 0; i < AFF_EXPLAIN_LINES; i++) {
        json_t *line = json_pack("{s:s, s:b, s:s?}", "line", aff_explain_line_name(i), "same",
            lines[i].same, "hint", lines[i].hint);

        json_object_set_new(
            line, "at", lines[i].same ? json_null() : json_integer((json_int_t) lines[i].at));
        json_object_set_new(line, "signed",
            i == AFF_EXPLAIN_BODY ? json_null() : sandbox_part(lines[i].signed_part));
        json_object_set_new(line, "expected",
            i == AFF_EXPLAIN_BODY ? json_null() : sandbox_part(lines[i].expected_part));
        json_array_append_new(list, line);
    }

    return list;
}

bool
sandbox_signature_check(struct exchange *x)
{
    struct described call = {.master = NULL};
    struct aff_slice text;
    const char *mistake = NULL;
    bool valid = false;
    json_t *result;

    if (!sandbox_call(x, &call) ||
        !sandbox_text(x, "string_to_sign", SANDBOX_BODY_MAX + 4096, "", &text) ||
        !sandbox_key(x, call.key, &call)) {
        return false;
    }

    if (call.signature.len > 0) {
        valid = sandbox_signature(&call, &mistake);
    }

    result = json_pack("{s:o, s:s?, s:o}", "valid",
        call.signature.len > 0 ? json_boolean(valid) : json_null(), "mistake", mistake, "lines",
        text.len > 0 ? sandbox_lines(text, &call) : json_array());
    return json_object_set_new(x->fields, "_result", result) == 0 ||
           answer_unavailable(x, "There is no memory left.");
}

/* --- dry_run_create -------------------------------------------------------------------------- */

static void
sandbox_verdict(json_t *checks, const char *check, bool passed, const char *detail)
{
    json_array_append_new(
        checks, json_pack("{s:s, s:s, s:s?}", "check", check, "verdict",
                    passed ? "passed" : "failed", "detail", passed ? NULL : detail));
}

/* Key, clock, signature, in the order of the conversion location. All that a call without a
 * signature leaves out. */
static bool
sandbox_check_signed(const struct described *call, json_t *checks)
{
    int64_t now = (int64_t) time(NULL), seconds;
    const char *mistake;
    bool clock;

    if (call->signature.len == 0) {
        return true;
    }

    sandbox_verdict(checks, "key", call->master != NULL, "The API key is not known, or revoked.");
    if (call->master == NULL) {
        return false;
    }

    clock = aff_timestamp_parse(call->request.timestamp, &seconds) &&
            seconds >= now - AFF_TIMESTAMP_SKEW_S && seconds <= now + AFF_TIMESTAMP_SKEW_S;
    sandbox_verdict(
        checks, "clock", clock, "The timestamp is not within 300 seconds of the server's time.");
    if (!sandbox_signature(call, &mistake)) {
        sandbox_verdict(checks, "signature", false,
            mistake == NULL ? "No signature given is the call's." : mistake);
        return false;
    }

    sandbox_verdict(checks, "signature", true, NULL);
    return clock;
}

static json_t *
sandbox_errors(const struct aff_event_errors *errors)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < errors->count; i++) {
        json_array_append_new(list, json_pack("{s:s, s:s}", "pointer", errors->error[i].pointer,
                                        "detail", errors->error[i].detail));
    }

    return list;
}

static json_t *
sandbox_string(struct aff_slice text)
{
    return text.len == 0 ? json_null() : json_stringn((const char *) text.data, text.len);
}

static void
sandbox_set_items(json_t *event, const struct aff_conversion *c)
{
    json_t *sku = json_array(), *category = json_array();
    json_t *quantity = json_array(), *amount = json_array();

    for (unsigned i = 0; i < c->items_count; i++) {
        json_array_append_new(sku, sandbox_string(c->items[i].sku));
        json_array_append_new(category, sandbox_string(c->items[i].category));
        json_array_append_new(quantity, json_integer(c->items[i].quantity));
        json_array_append_new(amount, json_integer(c->items[i].amount_minor));
    }

    json_object_set_new(event, "item_sku", sku);
    json_object_set_new(event, "item_category", category);
    json_object_set_new(event, "item_quantity", quantity);
    json_object_set_new(event, "item_amount", amount);
}

/* The event as affiliate.dry_run() wants it: the fields of the stage of conversions. */
static json_t *
sandbox_event(const struct described *call, const struct aff_conversion *c)
{
    uint8_t hash[SHA256_DIGEST_LENGTH];
    char body_hash[2 + 2 * AFF_BODY_HASH_BYTES + 1] = "\\x";
    char click_id[2 * AFF_UUID_BYTES + 1];
    char occurred_at[40];
    struct aff_slice key = call->request.idempotency_key;
    struct tm tm;
    time_t seconds = (time_t) (c->occurred_ms / 1000);
    json_t *event;

    SHA256(call->body.data, call->body.len, hash);
    text_hex(aff_slice(hash, AFF_BODY_HASH_BYTES), body_hash + 2);
    text_hex(aff_slice(c->click_id, AFF_UUID_BYTES), click_id);
    gmtime_r(&seconds, &tm);
    strftime(occurred_at, sizeof(occurred_at), "%Y-%m-%dT%H:%M:%SZ", &tm);

    event = json_pack("{s:s, s:s, s:i, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:s?}", "click_id",
        click_id, "body_hash", body_hash, "status", (int) c->status, "customer", (int) c->customer,
        "order_id", sandbox_string(c->order_id), "idempotency_key",
        sandbox_string(key.len > 0 ? key : aff_slice_of(body_hash)), "refund_id",
        sandbox_string(c->refund_id), "reason", sandbox_string(c->reason), "currency",
        sandbox_string(aff_slice_of(c->currency)), "amount_minor",
        c->has_amount ? json_integer(c->amount_minor) : json_null(), "occurred_at",
        c->occurred_ms == 0 ? NULL : occurred_at);
    if (event != NULL && c->items_count > 0) {
        sandbox_set_items(event, c);
    }

    return event;
}

/* Fields and click, as the conversion location reads them, but for the limits of its own. */
static json_t *
sandbox_check_fields(
    struct exchange *x, const struct described *call, const json_t *json, json_t *checks)
{
    struct aff_conversion *c = calloc(1, sizeof(*c));
    struct aff_event_errors *errors = calloc(1, sizeof(*errors));
    const struct aff_event_rules rules = {.keyring = &x->lane->ring,
        .merchant_id = call->merchant_id,
        .livemode = call->livemode,
        .items = true,
        .now_ms = (uint64_t) time(NULL) * 1000,
        .click_ttl_ms = UINT64_MAX};
    enum aff_event_result result;
    json_t *event = NULL;

    if (c != NULL && errors != NULL) {
        result = aff_event_read(json, &rules, "", c, errors);
        sandbox_verdict(checks, "fields", result != AFF_EVENT_INVALID, "Fields are not valid.");
        if (result != AFF_EVENT_INVALID) {
            sandbox_verdict(
                checks, "click_id", result == AFF_EVENT_OK, "The click_id can't be accepted.");
        }
        if (result == AFF_EVENT_OK) {
            event = sandbox_event(call, c);
        } else {
            json_object_set_new(json_array_get(checks, json_array_size(checks) - 1), "errors",
                sandbox_errors(errors));
        }
    }

    free(c);
    free(errors);
    return event;
}

/* The event, if all of it passed. */
static json_t *
sandbox_check_body(struct exchange *x, const struct described *call, json_t *checks)
{
    json_error_t error;
    json_t *json = NULL, *event;
    char detail[128];

    if (!aff_json_deep(call->body.data, call->body.len, SANDBOX_JSON_DEPTH)) {
        json = json_loadb((const char *) call->body.data, call->body.len,
            JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
        snprintf(detail, sizeof(detail), "The JSON is malformed at line %d, column %d.", error.line,
            error.column);
    } else {
        snprintf(detail, sizeof(detail), "The JSON is nested too deeply.");
    }

    sandbox_verdict(checks, "json", json != NULL, detail);
    if (json == NULL) {
        return NULL;
    }

    event = sandbox_check_fields(x, call, json, checks);
    json_decref(json);
    return event;
}

/* The mode: the described key's; else the one that the request is made in. */
static bool
sandbox_mode(struct exchange *x, struct described *call)
{
    if (x->credential.kind == CREDENTIAL_KEY) {
        (void) aff_api_key_valid(aff_slice_of(x->credential.key), &call->livemode);
        return true;
    }

    if (call->master == NULL) {
        call->livemode = !json_is_false(json_object_get(x->fields, "livemode"));
        return true;
    }

    return json_object_set_new(x->fields, "livemode", json_boolean(call->livemode)) == 0;
}

bool
sandbox_dry_run(struct exchange *x)
{
    struct described call = {.master = NULL};
    json_t *checks = json_array(), *event = NULL;
    bool ok = sandbox_call(x, &call) && sandbox_key(x, call.key, &call) && sandbox_mode(x, &call);

    if (!ok) {
        json_decref(checks);
        return x->status != 0 ? false : answer_unavailable(x, "There is no memory left.");
    }

    if (sandbox_check_signed(&call, checks)) {
        event = sandbox_check_body(x, &call, checks);
    }

    ok = json_object_set_new(x->fields, "_checks", checks) == 0 &&
         (event == NULL || json_object_set_new(x->fields, "_event", event) == 0);
    return ok || answer_unavailable(x, "There is no memory left.");
}
