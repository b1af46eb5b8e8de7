/*
 * Payouts: takes batches that were approved for a provider, hands each over once, and asks what
 * became of it until that is known. The order is what matters:
 *
 *   1. a batch is this daemon's for a while; accounts are looked at, verdicts committed in pieces;
 *   2. it is committed that the batch goes out now;
 *   3. it goes out;
 *   4. what the provider said is committed.
 *
 * A daemon that dies between 2 and 4 leaves a batch that is only asked about from then on. One that
 * dies before has sent nothing that moves money.
 */

#include "worker/payout/provider.h"
#include "worker/role.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define PAYOUTS_CHECKED_MAX 20    /* accounts looked at, a commit */
#define PAYOUTS_SEEN_MS     10000 /* that a daemon is there, is said that often */
#define PAYOUTS_COUNT_MS    2000
#define PAYOUTS_LEASE       12 /* times npi.timeout: more than the requests of one step take */

struct payouts {
    struct role *role;
    const struct payout_provider_kind *kind;
    struct payout_provider *provider;
    PGconn *pg;
    int64_t next_seen_ms;
    int64_t next_count_ms;
};

/* A batch that was taken. */
struct payouts_hand {
    char id[24];
    char taken[64];
    bool query;
    PGresult *row;
    json_t *texts; /* of the items */
    struct payout_batch batch;
};

static const char *
payouts_mode(const struct payouts *payouts)
{
    return payouts->role->config->npi.mode == CONFIG_NPI_LIVE ? "true" : "false";
}

static void
payouts_lease(const struct payouts *payouts, char text[32])
{
    snprintf(text, 32, "%lld ms", PAYOUTS_LEASE * (long long) payouts->role->config->npi.timeout);
}

static bool
payouts_turn(void *context)
{
    struct role *role = context;

    role_progress(role);
    return role_stops();
}

/* --- a batch out of its row --- */

static void
payouts_release(struct payouts_hand *hand)
{
    free(hand->batch.items);
    json_decref(hand->texts);
    PQclear(hand->row);
    *hand = (struct payouts_hand){0};
}

static bool
payouts_item(const json_t *said, struct payout_item *item)
{
    *item = (struct payout_item){
        .instruction = json_string_value(json_object_get(said, "instruction")),
        .bank = json_string_value(json_object_get(said, "bank")),
        .branch = json_string_value(json_object_get(said, "branch")),
        .account = json_string_value(json_object_get(said, "account")),
        .holder = json_string_value(json_object_get(said, "holder")),
        .amount_minor = json_integer_value(json_object_get(said, "amount_minor")),
        .checked = json_is_true(json_object_get(said, "checked")),
        .verdict = PAYOUT_UNKNOWN,
    };

    return item->instruction != NULL && strlen(item->instruction) < PAYOUT_INSTRUCTION_MAX &&
           item->bank != NULL && item->account != NULL && item->holder != NULL &&
           item->amount_minor > 0;
}

static bool
payouts_read(struct payouts *payouts, struct payouts_hand *hand)
{
    const PGresult *row = hand->row;
    const char *items = PQgetvalue(row, 0, 6);
    struct payout_batch *batch = &hand->batch;

    snprintf(hand->id, sizeof(hand->id), "%s", PQgetvalue(row, 0, 0));
    snprintf(hand->taken, sizeof(hand->taken), "%s", PQgetvalue(row, 0, 7));
    hand->query = strcmp(PQgetvalue(row, 0, 4), "query") == 0;
    hand->texts = json_loads(items, 0, NULL);
    batch->reference = PQgetvalue(row, 0, 1);
    batch->currency = PQgetvalue(row, 0, 2);
    batch->decimals = atoi(PQgetvalue(row, 0, 3));
    batch->sent = (size_t) atoi(PQgetvalue(row, 0, 5));
    batch->count = json_array_size(hand->texts);
    batch->items = calloc(batch->count + 1, sizeof(*batch->items));
    if (hand->texts == NULL || batch->items == NULL) {
        return role_failed(payouts->role, "out of memory for batch %s", batch->reference);
    }

    for (size_t i = 0; i < batch->count; i++) {
        if (!payouts_item(json_array_get(hand->texts, i), &batch->items[i])) {
            return role_failed(
                payouts->role, "batch %s: item %zu is incomplete", batch->reference, i);
        }
    }

    return true;
}

/* --- the database --- */

/* One text of one row into `out`, "" for null. */
static bool
payouts_ask(struct payouts *payouts, const char *doing, const char *sql, int count,
    const char *const *values, char *out, size_t size)
{
    struct pg_error error;
    PGresult *row = pg_query(payouts->pg, sql, count, values, 0, &error);

    if (row == NULL) {
        return role_failed_pg(payouts->role, doing, &error);
    }

    snprintf(out, size, "%s", PQntuples(row) == 1 ? PQgetvalue(row, 0, 0) : "");
    PQclear(row);
    role_count(payouts->role, COUNTER_TRANSACTIONS, 1);
    return true;
}

/* Verdicts on items from `first` on as JSON; free() it, NULL without memory. */
static char *
payouts_verdicts(const struct payout_batch *batch, size_t first, size_t end)
{
    static const char *const names[] = {
        [PAYOUT_ACCEPTED] = "accepted",
        [PAYOUT_PENDING] = "pending",
        [PAYOUT_SETTLED] = "settled",
        [PAYOUT_REJECTED] = "rejected",
        [PAYOUT_UNKNOWN] = "unknown",
    };
    json_t *list = json_array();
    char *text;

    for (size_t i = first; i < end; i++) {
        const struct payout_item *item = &batch->items[i];

        json_array_append_new(
            list, json_pack("{ss ss ss ss}", "instruction", item->instruction, "verdict",
                      names[item->verdict], "detail", item->detail, "reference", item->reference));
    }

    text = json_array_size(list) == end - first ? json_dumps(list, JSON_COMPACT) : NULL;
    json_decref(list);
    return text;
}

static bool
payouts_done(struct payouts *payouts, const struct payouts_hand *hand, enum payout_outcome outcome,
    const char *detail)
{
    static const char *const names[] = {
        [PAYOUT_SUBMITTED] = "submitted",
        [PAYOUT_REFUSED] = "refused",
        [PAYOUT_IN_DOUBT] = "unknown",
        [PAYOUT_HELD] = "later",
        [PAYOUT_AWAY] = "later",
    };
    bool said = outcome == PAYOUT_SUBMITTED || outcome == PAYOUT_IN_DOUBT;
    char *items = payouts_verdicts(&hand->batch, 0, said ? hand->batch.count : 0);
    char pause[32], state[32];
    const char *values[] = {hand->id, names[outcome], detail, items, hand->taken, pause};
    struct pg_error error;
    bool ok;

    if (items == NULL) {
        return role_failed(payouts->role, "out of memory for batch %s", hand->batch.reference);
    }

    snprintf(pause, sizeof(pause), "%lld ms", (long long) payouts->role->config->npi.pause);
    ok = !pg_fault(AFF_FAULT("payouts.answered"), &error) ||
         role_failed_pg(payouts->role, "noting a batch", &error);
    ok = ok && payouts_ask(payouts, "noting a batch",
                   "select affiliate.payout_submit_done($1::bigint, $2, $3, $4::jsonb, "
                   "$5::timestamptz, $6::interval)",
                   6, values, state, sizeof(state));
    free(items);
    if (ok && strcmp(state, "unknown") == 0) {
        log_warning("batch %s: nobody knows what became of it: %s; it is asked about, and not "
                    "sent again",
            hand->batch.reference, detail);
    } else if (ok && outcome == PAYOUT_REFUSED) {
        log_warning("batch %s was refused: %s", hand->batch.reference, detail);
    } else if (ok && outcome == PAYOUT_HELD) {
        log_warning("batch %s does not go out: %s", hand->batch.reference, detail);
    }

    return ok;
}

/* --- steps --- */

/* Commits what was found of items from `first` on. */
static bool
payouts_checked(struct payouts *payouts, struct payouts_hand *hand, size_t first, size_t end)
{
    char *items = payouts_verdicts(&hand->batch, first, end);
    char lease[32];
    const char *values[] = {hand->id, items, hand->taken, lease};
    bool ok;

    payouts_lease(payouts, lease);
    ok = items != NULL && payouts_ask(payouts, "noting accounts",
                              "select affiliate.payout_submit_checked($1::bigint, $2::jsonb, "
                              "$3::timestamptz, $4::interval)",
                              4, values, hand->taken, sizeof(hand->taken));
    free(items);
    return ok;
}

static bool payouts_seen(struct payouts *payouts);

/* Has every account looked at that was not, so many at a time. `*outcome` is not SUBMITTED where
 * that came to an end. */
static bool
payouts_validate(
    struct payouts *payouts, struct payouts_hand *hand, enum payout_outcome *outcome, char *detail)
{
    struct payout_batch *batch = &hand->batch;
    size_t first = 0;

    while (first < batch->count && hand->taken[0] != '\0' && *outcome == PAYOUT_SUBMITTED) {
        int64_t until_ms = clock_monotonic_ms() + 2 * payouts->role->config->npi.timeout;
        size_t end = first;

        if (role_stops()) {
            *outcome = PAYOUT_AWAY;
            snprintf(detail, PAYOUT_DETAIL_MAX, "affiliated was stopped");
            return true;
        }

        while (end < batch->count && end - first < PAYOUTS_CHECKED_MAX &&
               *outcome == PAYOUT_SUBMITTED && clock_monotonic_ms() < until_ms) {
            struct payout_item *item = &batch->items[end];

            item->verdict = PAYOUT_ACCEPTED;
            if (!item->checked) {
                *outcome = payouts->kind->validate(payouts->provider, item, detail);
            }

            end += *outcome == PAYOUT_SUBMITTED;
        }

        if (!payouts_checked(payouts, hand, first, end) || !payouts_seen(payouts)) {
            return false;
        }

        first = end;
    }

    return true;
}

/* Leaves the items out whose account was not found: they have failed. */
static void
payouts_keep_accepted(struct payout_batch *batch)
{
    size_t kept = 0;

    for (size_t i = 0; i < batch->count; i++) {
        if (batch->items[i].verdict == PAYOUT_ACCEPTED) {
            if (kept != i) {
                batch->items[kept] = batch->items[i];
            }

            kept++;
        }
    }

    batch->count = kept;
}

/* From here on it is on its way. */
static bool
payouts_begin(struct payouts *payouts, struct payouts_hand *hand)
{
    char lease[32];
    const char *values[] = {hand->id, hand->taken, lease};
    struct pg_error error;

    payouts_lease(payouts, lease);
    if (!payouts_ask(payouts, "noting a batch",
            "select affiliate.payout_submit_begin($1::bigint, $2::timestamptz, $3::interval)", 3,
            values, hand->taken, sizeof(hand->taken))) {
        return false;
    }

    return !pg_fault(AFF_FAULT("payouts.begun"), &error) ||
           role_failed_pg(payouts->role, "handing a batch over", &error);
}

static bool
payouts_submit(
    struct payouts *payouts, struct payouts_hand *hand, enum payout_outcome *outcome, char *detail)
{
    struct pg_error error;

    *outcome = payouts->kind->fits(payouts->provider, &hand->batch, detail);
    if (!payouts_validate(payouts, hand, outcome, detail)) {
        return false;
    }

    if (hand->taken[0] == '\0' || *outcome != PAYOUT_SUBMITTED) {
        return true;
    }

    payouts_keep_accepted(&hand->batch);
    /* With fewer items it may be another call, with other limits. */
    *outcome = payouts->kind->fits(payouts->provider, &hand->batch, detail);
    if (*outcome != PAYOUT_SUBMITTED) {
        return true;
    }

    if (!payouts_begin(payouts, hand)) {
        return false;
    }

    if (hand->taken[0] == '\0') {
        return true;
    }

    *outcome = payouts->kind->submit(payouts->provider, &hand->batch, detail);
    role_count(payouts->role, COUNTER_SUBMITTED, 1);
    return !pg_fault(AFF_FAULT("payouts.submitted"), &error) ||
           role_failed_pg(payouts->role, "handing a batch over", &error);
}

static bool
payouts_work(struct payouts *payouts, struct payouts_hand *hand)
{
    char detail[PAYOUT_DETAIL_MAX] = "";
    enum payout_outcome outcome = PAYOUT_SUBMITTED;

    if (!payouts_read(payouts, hand)) {
        return false;
    }

    if (hand->query) {
        outcome = payouts->kind->query(payouts->provider, &hand->batch, detail);
        role_count(payouts->role, COUNTER_QUERIED, 1);
    } else if (!payouts_submit(payouts, hand, &outcome, detail)) {
        return false;
    }

    /* It is somebody else's, or over. */
    if (hand->taken[0] == '\0') {
        return true;
    }

    if (!payouts_done(payouts, hand, outcome, detail)) {
        return false;
    }

    if (outcome == PAYOUT_AWAY && !role_stops()) {
        return role_failed(payouts->role, "%s", detail);
    }

    return true;
}

/* The next batch that is due; `*taken` is false if there is none. */
static bool
payouts_next(struct payouts *payouts, bool *taken)
{
    struct payouts_hand hand = {0};
    char lease[32];
    const char *values[] = {payouts->kind->name, payouts_mode(payouts), lease};
    struct pg_error error;
    bool ok = true;

    payouts_lease(payouts, lease);
    hand.row = pg_query(payouts->pg,
        "select * from affiliate.payout_submit_take($1, $2::boolean, $3::interval)", 3, values, 0,
        &error);
    if (hand.row == NULL) {
        return role_failed_pg(payouts->role, "taking a batch", &error);
    }

    *taken = PQntuples(hand.row) == 1;
    if (*taken) {
        if (pg_fault(AFF_FAULT("payouts.taken"), &error)) {
            ok = role_failed_pg(payouts->role, "taking a batch", &error);
        } else {
            ok = payouts_work(payouts, &hand);
        }
    }

    payouts_release(&hand);
    return ok;
}

/* --- a life --- */

/* Says that this daemon is connected: the API lets batches be made for the provider as long as one
 * is. */
static bool
payouts_seen(struct payouts *payouts)
{
    const struct config *config = payouts->role->config;
    char lasts[32], nothing[8];
    int64_t lasts_ms;
    const char *values[] = {payouts->kind->name, payouts_mode(payouts), lasts};

    if (clock_monotonic_ms() < payouts->next_seen_ms) {
        return true;
    }

    lasts_ms = 3 * (PAYOUTS_SEEN_MS + config->npi.interval) + PAYOUTS_LEASE * config->npi.timeout;
    snprintf(lasts, sizeof(lasts), "%lld ms", (long long) lasts_ms);
    payouts->next_seen_ms = clock_monotonic_ms() + PAYOUTS_SEEN_MS;
    return payouts_ask(payouts, "saying that a provider is there",
        "select affiliate.payout_provider_seen($1, $2::boolean, $3::interval)", 3, values, nothing,
        sizeof(nothing));
}

static bool
payouts_count(struct payouts *payouts)
{
    struct pg_error error;
    PGresult *row;

    if (clock_monotonic_ms() < payouts->next_count_ms) {
        return true;
    }

    row = pg_query(payouts->pg, "select waiting, oldest from affiliate.payout_submit_counts()", 0,
        NULL, 0, &error);
    if (row == NULL) {
        return role_failed_pg(payouts->role, "counting batches", &error);
    }

    role_gauge(payouts->role, GAUGE_BATCHES, strtoull(PQgetvalue(row, 0, 0), NULL, 10));
    role_gauge(payouts->role, GAUGE_UNKNOWN_S, strtoull(PQgetvalue(row, 0, 1), NULL, 10));
    PQclear(row);
    payouts->next_count_ms = clock_monotonic_ms() + PAYOUTS_COUNT_MS;
    return true;
}

static bool
payouts_prepare(struct payouts *payouts)
{
    struct role *role = payouts->role;
    char message[CONFIG_ERROR_MAX];
    struct pg_error error;

    payouts->provider = payouts->kind->open(role->config, payouts_turn, role, message);
    if (payouts->provider == NULL) {
        return role_failed(role, "%s", message);
    }

    payouts->pg = pg_connect(role->config, role->name, &error);
    return payouts->pg != NULL || role_failed_pg(role, "connecting", &error);
}

static bool
payouts_live(struct payouts *payouts)
{
    struct role *role = payouts->role;
    bool taken = false;

    if (!payouts_prepare(payouts)) {
        return false;
    }

    while (!role_should_end(role)) {
        if (!payouts_seen(payouts) || !payouts_next(payouts, &taken)) {
            return false;
        }

        role_up(role);
        payouts->next_count_ms = taken ? payouts->next_count_ms : 0;
        if (!payouts_count(payouts)) {
            return false;
        }

        if (!taken) {
            role_wait(role, role->config->npi.interval, -1);
        }
    }

    return true;
}

static bool
payouts_serve(struct role *role)
{
    struct payouts payouts = {.role = role, .kind = &npi_provider};
    bool ok = true;

    if (role->config->npi.enabled) {
        ok = payouts_live(&payouts);
        payouts.kind->close(payouts.provider);
        PQfinish(payouts.pg);
        return ok;
    }

    role_up(role);
    while (!role_should_end(role)) {
        role_wait(role, role->config->npi.interval, -1);
    }

    return ok;
}

const struct role_kind payouts_role = {.name = "payouts",
    .serve = payouts_serve,
    .counters = 1ULL << COUNTER_TRANSACTIONS | 1ULL << COUNTER_SUBMITTED | 1ULL << COUNTER_QUERIED |
                1ULL << COUNTER_FAILURES | 1ULL << GAUGE_BATCHES | 1ULL << GAUGE_UNKNOWN_S};
