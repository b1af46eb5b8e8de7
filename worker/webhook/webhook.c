/*
 * Webhooks: takes deliveries that are due, calls their endpoints, many at once, and says in the
 * database what became of each. A delivery is its daemon's own for a while; one that dies before
 * it has said so leaves it to be made once more, under the same id.
 */

#include "worker/role.h"
#include "worker/webhook/call.h"
#include "worker/webhook/macros.h"
#include "worker/webhook/sign.h"

#include "worker/api/seal.h"
#include "worker/site/address.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WEBHOOKS_AT_ONCE   128
#define WEBHOOKS_COUNT_MS  2000
#define WEBHOOKS_FORGET_MS 3600000
#define WEBHOOKS_POLL_MS   200

struct slot {
    struct call call; /* the first: its handle knows the slot by it */
    bool busy;
    char delivery[24];
    char taken[48];
};

struct webhooks {
    struct role *role;
    struct aff_keyring ring;
    PGconn *pg;
    CURLM *multi;
    struct slot slots[WEBHOOKS_AT_ONCE];
    unsigned busy;
    json_t *said; /* what became of deliveries, and is not in the database yet */
    int64_t next_take_ms, next_count_ms, next_forget_ms;
};

enum column {
    COLUMN_DELIVERY,
    COLUMN_TAKEN,
    COLUMN_KIND,
    COLUMN_LIVEMODE,
    COLUMN_URL,
    COLUMN_OWNER,
    COLUMN_SECRET,
    COLUMN_PREVIOUS,
    COLUMN_EVENT,
    COLUMN_BODY,
    COLUMN_MACROS,
};

static pthread_once_t webhooks_once = PTHREAD_ONCE_INIT;

static void
webhooks_global(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* --- a delivery as a call --- */

/* Adds " v1,…" of a sealed secret to `header`; false if it can't be opened. */
static bool
webhook_add_signature(const struct webhooks *hooks, const PGresult *rows, int row,
    enum column secret, int64_t timestamp_s, char *header, size_t size)
{
    uint8_t plain[SEAL_PLAIN_MAX];
    char text[SIGN_CHARS + 1];
    size_t len = 0, at = strlen(header);
    bool ok = seal_open(&hooks->ring, SIGN_SEAL_PURPOSE,
                  strtoll(PQgetvalue(rows, row, COLUMN_OWNER), NULL, 10),
                  aff_slice_of(PQgetvalue(rows, row, secret)), plain, &len) &&
              len == SIGN_SECRET_BYTES &&
              sign_webhook(plain, PQgetvalue(rows, row, COLUMN_EVENT), timestamp_s,
                  aff_slice_of(PQgetvalue(rows, row, COLUMN_BODY)), text);

    OPENSSL_cleanse(plain, sizeof(plain));
    if (ok) {
        snprintf(header + at, size - at, " %s", text);
    }

    return ok;
}

/* Keeps what became of the slot's delivery, to be told to the database; takes `said`. */
static bool
webhook_note(struct webhooks *hooks, const struct slot *slot, json_t *said)
{
    bool ok = said != NULL &&
              json_object_set_new(said, "delivery", json_integer(atoll(slot->delivery))) == 0 &&
              json_object_set_new(said, "taken", json_string(slot->taken)) == 0 &&
              json_array_append(hooks->said, said) == 0;

    json_decref(said);
    return ok || role_failed(hooks->role, "out of memory");
}

/* It can't be called, whatever the reason is: that is a try that failed, and nobody else's
 * trouble. */
static bool
webhook_uncallable(struct webhooks *hooks, const struct slot *slot, const char *error)
{
    return webhook_note(hooks, slot,
        json_pack("{s:b, s:b, s:i, s:i, s:s}", "ok", 0, "gone", 0, "latency_ms", 0, "retry_after",
            0, "error", error));
}

/* A webhook as Standard Webhooks says. NULL, or why there is none. */
static const char *
webhook_post(struct webhooks *hooks, struct slot *slot, const PGresult *rows, int row)
{
    int64_t now_s = (int64_t) time(NULL);
    char id[96], timestamp[64], signature[64 + 2 * SIGN_CHARS] = "webhook-signature:";
    struct call_request request = {
        .url = PQgetvalue(rows, row, COLUMN_URL),
        .body = PQgetvalue(rows, row, COLUMN_BODY),
        .headers = {"content-type: application/json", id, timestamp, signature},
        .header_count = 4,
        .https_only = PQgetvalue(rows, row, COLUMN_LIVEMODE)[0] == 't',
    };

    snprintf(id, sizeof(id), "webhook-id: %.64s", PQgetvalue(rows, row, COLUMN_EVENT));
    snprintf(timestamp, sizeof(timestamp), "webhook-timestamp: %lld", (long long) now_s);
    if (!webhook_add_signature(
            hooks, rows, row, COLUMN_SECRET, now_s, signature, sizeof(signature)) ||
        (!PQgetisnull(rows, row, COLUMN_PREVIOUS) &&
            !webhook_add_signature(
                hooks, rows, row, COLUMN_PREVIOUS, now_s, signature, sizeof(signature)))) {
        return "the secret can't be opened: the master key that sealed it is not there any more";
    }

    return call_prepare(&slot->call, hooks->role->config, &request) ? NULL
                                                                    : "libcurl can't be set up";
}

static const char *
webhook_get(struct webhooks *hooks, struct slot *slot, const PGresult *rows, int row)
{
    json_t *macros = json_loads(PQgetvalue(rows, row, COLUMN_MACROS), 0, NULL);
    struct call_request request = {
        .https_only = PQgetvalue(rows, row, COLUMN_LIVEMODE)[0] == 't',
    };
    const char *problem = NULL;
    struct buffer url;
    struct aff_slice whole;

    buffer_open(&url, MACROS_URL_MAX, NULL);
    macros_expand(PQgetvalue(rows, row, COLUMN_URL), macros, &url);
    if (url.failed || !buffer_whole(&url, &whole)) {
        problem = "with its values the URL is too long";
    } else {
        request.url = (const char *) whole.data;
        if (!call_prepare(&slot->call, hooks->role->config, &request)) {
            problem = "libcurl can't be set up";
        }
    }

    buffer_close(&url);
    json_decref(macros);
    return problem;
}

static bool
webhook_begin(struct webhooks *hooks, const PGresult *rows, int row)
{
    bool post = strcmp(PQgetvalue(rows, row, COLUMN_KIND), "webhook") == 0;
    struct slot *slot = hooks->slots;
    const char *problem;

    while (slot->busy) {
        slot++;
    }

    snprintf(slot->delivery, sizeof(slot->delivery), "%s", PQgetvalue(rows, row, COLUMN_DELIVERY));
    snprintf(slot->taken, sizeof(slot->taken), "%s", PQgetvalue(rows, row, COLUMN_TAKEN));
    problem = (post ? webhook_post : webhook_get)(hooks, slot, rows, row);
    if (problem != NULL) {
        return webhook_uncallable(hooks, slot, problem);
    }

    if (curl_multi_add_handle(hooks->multi, slot->call.curl) != CURLM_OK) {
        return role_failed(hooks->role, "libcurl can't be set up");
    }

    slot->busy = true;
    hooks->busy++;
    return true;
}

/* --- the database --- */

/* Takes what is due and there is room for. */
static bool
webhooks_take(struct webhooks *hooks)
{
    struct role *role = hooks->role;
    char max[16], lease[32];
    const char *values[] = {max, lease};
    struct pg_error error;
    PGresult *rows;
    bool ok = true;

    if (hooks->busy == WEBHOOKS_AT_ONCE || clock_monotonic_ms() < hooks->next_take_ms) {
        return true;
    }

    snprintf(max, sizeof(max), "%u", WEBHOOKS_AT_ONCE - hooks->busy);
    snprintf(lease, sizeof(lease), "%lld ms", 3 * (long long) role->config->webhooks.timeout);
    rows = pg_query(hooks->pg, "select * from affiliate.webhook_take($1::integer, $2::interval)", 2,
        values, 0, &error);
    if (rows == NULL) {
        return role_failed_pg(role, "taking deliveries", &error);
    }

    for (int row = 0; ok && row < PQntuples(rows); row++) {
        ok = webhook_begin(hooks, rows, row);
    }

    role_count(role, COUNTER_TRANSACTIONS, PQntuples(rows) > 0);
    hooks->next_take_ms = clock_monotonic_ms() + role->config->webhooks.interval;
    PQclear(rows);
    return ok;
}

static void
webhooks_count_said(struct webhooks *hooks)
{
    size_t index;
    json_t *said;

    json_array_foreach(hooks->said, index, said)
    {
        role_count(hooks->role,
            json_is_true(json_object_get(said, "ok")) ? COUNTER_DELIVERED : COUNTER_NOT_DELIVERED,
            1);
    }
}

/* Says what became of those that have ended. */
static bool
webhooks_tell(struct webhooks *hooks)
{
    struct role *role = hooks->role;
    char *text;
    const char *values[1];
    struct pg_error error;
    PGresult *result;

    if (json_array_size(hooks->said) == 0) {
        return true;
    }

    if (pg_fault(AFF_FAULT("webhooks.called"), &error)) {
        return role_failed_pg(role, "noting deliveries", &error);
    }

    values[0] = text = json_dumps(hooks->said, JSON_COMPACT);
    if (text == NULL) {
        return role_failed(role, "out of memory");
    }

    result = pg_query(hooks->pg, "select affiliate.webhook_done($1::jsonb)", 1, values, 0, &error);
    free(text);
    if (result == NULL) {
        return role_failed_pg(role, "noting deliveries", &error);
    }

    role_count(role, COUNTER_TRANSACTIONS, 1);
    role_count(role, COUNTER_GIVEN_UP, strtoull(PQgetvalue(result, 0, 0), NULL, 10));
    PQclear(result);
    webhooks_count_said(hooks);
    json_array_clear(hooks->said);
    /* Their endpoints may have more. */
    hooks->next_take_ms = 0;
    return true;
}

static bool
webhooks_count(struct webhooks *hooks)
{
    struct pg_error error;
    PGresult *row;

    if (clock_monotonic_ms() < hooks->next_count_ms) {
        return true;
    }

    row = pg_query(
        hooks->pg, "select waiting, oldest from affiliate.webhook_counts()", 0, NULL, 0, &error);
    if (row == NULL) {
        return role_failed_pg(hooks->role, "counting deliveries", &error);
    }

    role_gauge(hooks->role, GAUGE_DUE, strtoull(PQgetvalue(row, 0, 0), NULL, 10));
    role_gauge(hooks->role, GAUGE_DUE_S, strtoull(PQgetvalue(row, 0, 1), NULL, 10));
    PQclear(row);
    hooks->next_count_ms = clock_monotonic_ms() + WEBHOOKS_COUNT_MS;
    return true;
}

static bool
webhooks_forget(struct webhooks *hooks)
{
    char keep[32];
    const char *values[] = {keep};
    struct pg_error error;
    PGresult *row;

    if (clock_monotonic_ms() < hooks->next_forget_ms) {
        return true;
    }

    snprintf(keep, sizeof(keep), "%lld ms", (long long) hooks->role->config->webhooks.keep);
    row =
        pg_query(hooks->pg, "select affiliate.webhook_forget($1::interval)", 1, values, 0, &error);
    if (row == NULL) {
        return role_failed_pg(hooks->role, "forgetting old events", &error);
    }

    /* Many are taken in pieces. */
    hooks->next_forget_ms =
        clock_monotonic_ms() +
        (atoll(PQgetvalue(row, 0, 0)) > 0 ? WEBHOOKS_COUNT_MS : WEBHOOKS_FORGET_MS);
    PQclear(row);
    return true;
}

/* --- calling --- */

static bool
webhook_end(struct webhooks *hooks, struct slot *slot, CURLcode code)
{
    json_t *said = call_judge(&slot->call, code);

    curl_multi_remove_handle(hooks->multi, slot->call.curl);
    slot->busy = false;
    hooks->busy--;
    return webhook_note(hooks, slot, said);
}

/* Moves all calls on, and gathers those that have ended. */
static bool
webhooks_call(struct webhooks *hooks)
{
    CURLMsg *message;
    int running, left;

    if (curl_multi_perform(hooks->multi, &running) != CURLM_OK) {
        return role_failed(hooks->role, "libcurl does not work");
    }

    while ((message = curl_multi_info_read(hooks->multi, &left)) != NULL) {
        char *private = NULL;

        if (message->msg == CURLMSG_DONE &&
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &private) == CURLE_OK &&
            !webhook_end(hooks, (struct slot *) (void *) private, message->data.result)) {
            return false;
        }
    }

    return true;
}

/* Waits until a call moves, or there is a new event. */
static bool
webhooks_wait(struct webhooks *hooks)
{
    PGnotify *notify;

    if (hooks->busy == 0) {
        role_wait(hooks->role, hooks->role->config->webhooks.interval, PQsocket(hooks->pg));
    } else {
        struct curl_waitfd fd = {.fd = PQsocket(hooks->pg), .events = CURL_WAIT_POLLIN};

        curl_multi_poll(hooks->multi, &fd, 1, WEBHOOKS_POLL_MS, NULL);
    }

    if (!PQconsumeInput(hooks->pg)) {
        return role_failed(hooks->role, "PostgreSQL closed the connection");
    }

    while ((notify = PQnotifies(hooks->pg)) != NULL) {
        PQfreemem(notify);
        hooks->next_take_ms = 0;
    }

    return true;
}

/* Before a life ends, calls that are under way are waited for: who is called twice for nothing is
 * not amused. */
static bool
webhooks_drain(struct webhooks *hooks)
{
    while (hooks->busy > 0) {
        role_progress(hooks->role);
        if (!webhooks_call(hooks) || !webhooks_tell(hooks) || !webhooks_wait(hooks)) {
            return false;
        }
    }

    return webhooks_tell(hooks);
}

/* --- a life --- */

static bool
webhooks_prepare(struct webhooks *hooks)
{
    struct role *role = hooks->role;
    const char *to = role->config->webhooks.connect_to;
    char message[CONFIG_ERROR_MAX];
    struct sockaddr_storage address;
    socklen_t len;
    struct pg_error error;

    pthread_once(&webhooks_once, webhooks_global);
    if (to[0] != '\0') {
        if (!address_parse(to, &address, &len)) {
            return role_failed(role, "webhooks.connect_to is not like 192.0.2.1:443");
        }

        log_warning("webhooks.connect_to is set: every endpoint is called there; it is for tests");
    }

    if (!config_read_keys(role->config, &hooks->ring, message)) {
        return role_failed(role, "master keys: %s", message);
    }

    hooks->multi = curl_multi_init();
    hooks->said = json_array();
    if (hooks->multi == NULL || hooks->said == NULL ||
        curl_multi_setopt(hooks->multi, CURLMOPT_MAXCONNECTS, (long) WEBHOOKS_AT_ONCE) !=
            CURLM_OK) {
        return role_failed(role, "libcurl can't be set up");
    }

    hooks->pg = pg_connect(role->config, role->name, &error);
    if (hooks->pg == NULL) {
        return role_failed_pg(role, "connecting", &error);
    }

    return pg_command(hooks->pg, "listen affiliate_webhook", &error) ||
           role_failed_pg(role, "preparing", &error);
}

static bool
webhooks_live(struct webhooks *hooks)
{
    if (!webhooks_prepare(hooks)) {
        return false;
    }

    while (!role_should_end(hooks->role)) {
        if (!webhooks_count(hooks) || !webhooks_forget(hooks) || !webhooks_take(hooks)) {
            return false;
        }

        role_up(hooks->role);
        if (!webhooks_call(hooks) || !webhooks_tell(hooks)) {
            return false;
        }

        /* With more to take and room for it, there is nothing to wait for. */
        if ((hooks->next_take_ms != 0 || hooks->busy == WEBHOOKS_AT_ONCE) &&
            !webhooks_wait(hooks)) {
            return false;
        }
    }

    return webhooks_drain(hooks);
}

static bool
webhooks_serve(struct role *role)
{
    struct webhooks *hooks = calloc(1, sizeof(*hooks));
    bool ok;

    if (hooks == NULL) {
        return role_failed(role, "out of memory");
    }

    hooks->role = role;
    ok = webhooks_live(hooks);
    for (unsigned i = 0; i < WEBHOOKS_AT_ONCE; i++) {
        if (hooks->slots[i].busy) {
            curl_multi_remove_handle(hooks->multi, hooks->slots[i].call.curl);
        }

        call_free(&hooks->slots[i].call);
    }

    curl_multi_cleanup(hooks->multi);
    json_decref(hooks->said);
    PQfinish(hooks->pg);
    aff_keyring_wipe(&hooks->ring);
    free(hooks);
    return ok;
}

const struct role_kind webhooks_role = {.name = "webhooks",
    .serve = webhooks_serve,
    .counters = 1ULL << COUNTER_TRANSACTIONS | 1ULL << COUNTER_DELIVERED |
                1ULL << COUNTER_NOT_DELIVERED | 1ULL << COUNTER_GIVEN_UP |
                1ULL << COUNTER_FAILURES | 1ULL << GAUGE_DUE | 1ULL << GAUGE_DUE_S};
