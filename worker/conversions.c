/*
 * Conversions: COPY into the session's stage, then one call of affiliate.apply_conversions(), which
 * decides everything. Refused calls come among them: they are kept until that is done, and go the
 * same way to affiliate.apply_calls(). Between transactions, events that waited for their click are
 * looked at again.
 */

#include "worker/rows.h"
#include "worker/stream.h"

#include <stdlib.h>

#define CONVERSION_FIELDS 25
#define REFUSAL_FIELDS    24
#define PG_EPOCH_MS       946684800000LL /* 2000-01-01 in unix milliseconds */
#define CONVERSION_MS_MAX (1LL << 48)    /* what a UUIDv7 can hold; later times are no times */

struct conversions {
    struct copy_buffer rows;
    struct copy_buffer refusals; /* rows of the transaction, which its bytes bound */
    bool open;
    int64_t next_resolve_ms;
};

static const char conversions_copy_sql[] =
    "copy pg_temp.conversion_stage (" CONVERSION_ROW_COLUMNS ") from stdin (format binary)";
static const char refusals_copy_sql[] =
    "copy pg_temp.call_stage (" REFUSAL_ROW_COLUMNS ") from stdin (format binary)";

static bool
conversions_prepare(struct stream *stream, struct pg_error *error)
{
    return pg_command(
        stream->pg, "select affiliate.conversion_stage(), affiliate.call_stage()", error);
}

/* Names and ids are stored as they came or not at all: changing one would make it another's. */
const char *
conversions_problem(const struct aff_conversion *conversion)
{
    const struct {
        const char *problem;
        struct aff_slice text;
    } texts[] = {
        {"key_id is not UTF-8", conversion->key_id},
        {"idempotency_key is not UTF-8", conversion->idempotency_key},
        {"order_id is not UTF-8", conversion->order_id},
        {"refund_id is not UTF-8", conversion->refund_id},
        {"reason is not UTF-8", conversion->reason},
    };

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (!copy_text_valid(texts[i].text)) {
            return texts[i].problem;
        }
    }

    for (unsigned i = 0; i < conversion->items_count; i++) {
        if (!copy_text_valid(conversion->items[i].sku) ||
            !copy_text_valid(conversion->items[i].category)) {
            return "an item is not UTF-8";
        }
    }

    if (conversion->received_ms > CONVERSION_MS_MAX ||
        conversion->occurred_ms > CONVERSION_MS_MAX) {
        return "a time is out of range";
    }

    return NULL;
}

static uint8_t *
conversions_put_time(uint8_t *p, uint64_t unix_ms)
{
    return copy_put_int8(p, (uint64_t) (((int64_t) unix_ms - PG_EPOCH_MS) * 1000));
}

static uint8_t *
conversions_put_items(uint8_t *p, const struct aff_conversion *conversion)
{
    unsigned count = conversion->items_count;
    const struct aff_item *items = conversion->items;
    uint8_t *begin;

    if (count == 0) {
        for (unsigned i = 0; i < 4; i++) {
            p = copy_put_null(p);
        }

        return p;
    }

    begin = p;
    p = copy_array_begin(p, COPY_OID_TEXT, count, true);
    for (unsigned i = 0; i < count; i++) {
        p = copy_put_optional(p, items[i].sku);
    }
    copy_array_end(begin, p);

    begin = p;
    p = copy_array_begin(p, COPY_OID_TEXT, count, true);
    for (unsigned i = 0; i < count; i++) {
        p = copy_put_optional(p, items[i].category);
    }
    copy_array_end(begin, p);

    begin = p;
    p = copy_array_begin(p, COPY_OID_INT4, count, false);
    for (unsigned i = 0; i < count; i++) {
        p = copy_put_int4(p, items[i].quantity);
    }
    copy_array_end(begin, p);

    begin = p;
    p = copy_array_begin(p, COPY_OID_INT8, count, false);
    for (unsigned i = 0; i < count; i++) {
        p = copy_put_int8(p, (uint64_t) items[i].amount_minor);
    }
    copy_array_end(begin, p);

    return p;
}

uint8_t *
conversions_put_row(uint8_t *p, const struct aff_batch *batch, int64_t record,
    const struct aff_conversion *conversion)
{
    p = copy_raw16(p, CONVERSION_FIELDS);
    p = copy_put_int8(p, batch->spool_id);
    p = copy_put_int8(p, batch->segment);
    p = copy_put_int4(p, batch->sequence);
    p = copy_put_int4(p, (uint32_t) record);
    p = copy_put_int8(p, conversion->merchant_id);
    p = copy_put_bool(p, conversion->livemode);
    p = copy_put_int2(p, conversion->source);
    p = copy_put_int2(p, conversion->position);
    p = copy_put_sanitized(p, conversion->key_id);
    p = copy_put_sanitized(p, conversion->idempotency_key);
    p = copy_put_bytes(p, conversion->body_hash, AFF_BODY_HASH_BYTES);
    p = conversions_put_time(p, conversion->received_ms);
    p = conversion->occurred_ms == 0 ? copy_put_null(p)
                                     : conversions_put_time(p, conversion->occurred_ms);
    p = copy_put_bytes(p, conversion->click_id, AFF_UUID_BYTES);
    p = copy_put_sanitized(p, conversion->order_id);
    p = copy_put_int2(p, conversion->status);
    p = copy_put_int2(p, conversion->customer);
    p = conversion->has_amount ? copy_put_int8(p, (uint64_t) conversion->amount_minor)
                               : copy_put_null(p);
    p = copy_put_optional(p, aff_slice_of(conversion->currency));
    p = copy_put_optional(p, conversion->refund_id);
    p = copy_put_optional(p, conversion->reason);
    return conversions_put_items(p, conversion);
}

static uint8_t *
refusals_put_errors(uint8_t *p, const struct aff_refusal *refusal)
{
    uint8_t *begin;

    if (refusal->errors_count == 0) {
        return copy_put_null(copy_put_null(p));
    }

    begin = p;
    p = copy_array_begin(p, COPY_OID_TEXT, refusal->errors_count, false);
    for (unsigned i = 0; i < refusal->errors_count; i++) {
        p = copy_put_sanitized(p, refusal->errors[i].pointer);
    }
    copy_array_end(begin, p);

    begin = p;
    p = copy_array_begin(p, COPY_OID_TEXT, refusal->errors_count, false);
    for (unsigned i = 0; i < refusal->errors_count; i++) {
        p = copy_put_sanitized(p, refusal->errors[i].rule);
    }
    copy_array_end(begin, p);

    return p;
}

uint8_t *
refusals_put_row(
    uint8_t *p, const struct aff_batch *batch, int64_t record, const struct aff_refusal *refusal)
{
    p = copy_raw16(p, REFUSAL_FIELDS);
    p = copy_put_int8(p, batch->spool_id);
    p = copy_put_int8(p, batch->segment);
    p = copy_put_int4(p, batch->sequence);
    p = copy_put_int4(p, (uint32_t) record);
    p = copy_put_int8(p, refusal->merchant_id);
    p = copy_put_bool(p, refusal->livemode);
    p = copy_put_bool(p, refusal->authentic);
    p = copy_put_int2(p, refusal->source);
    p = copy_put_int2(p, refusal->status);
    p = copy_put_int4(p, refusal->position);
    p = conversions_put_time(p, refusal->refused_ms);
    p = copy_put_int8(p, refusal->body_bytes);
    p = copy_put_bytes(p, refusal->body_hash, AFF_REFUSAL_HASH_BYTES);
    p = copy_put_sanitized(p, refusal->key_id);
    p = copy_put_optional(p, refusal->code);
    p = copy_put_optional(p, refusal->detail);
    p = copy_put_optional(p, refusal->idempotency_key);
    p = copy_put_optional(p, refusal->order_id);
    p = copy_put_optional(p, refusal->timestamp);
    p = copy_put_optional(p, refusal->target);
    p = copy_put_optional(p, refusal->request_id);
    p = copy_put_optional(p, refusal->excerpt);
    return refusals_put_errors(p, refusal);
}

static bool
refusals_store_record(struct stream *stream, const struct entry *entry, int64_t record,
    const struct aff_frame *frame, struct pg_error *error)
{
    struct conversions *conversions = stream->data;
    struct aff_refusal refusal;
    uint8_t *p;

    if (!aff_refusal_decode(frame->version, frame->payload, &refusal) ||
        refusal.refused_ms > CONVERSION_MS_MAX) {
        stream_bury(stream, entry, record, "malformed_record", "not a refused call",
            stream_frame_bytes(frame));
        return true;
    }

    p = copy_room(&conversions->refusals, REFUSAL_ROW_MAX);
    if (p == NULL) {
        *error = (struct pg_error){.class = PG_CLASS_RETRY, .message = "out of memory"};
        return false;
    }

    conversions->refusals.len +=
        (size_t) (refusals_put_row(p, &entry->batch, record, &refusal) - p);
    stream->stored++;
    return true;
}

static bool
refusals_apply(struct stream *stream, struct pg_error *error)
{
    struct conversions *conversions = stream->data;

    return conversions->refusals.len == 0 ||
           (copy_begin(stream->pg, refusals_copy_sql, error) &&
               copy_send(stream->pg, &conversions->refusals, error) &&
               copy_end(stream->pg, error) &&
               pg_command(stream->pg, "select affiliate.apply_calls()", error));
}

static bool
conversions_store_record(struct stream *stream, const struct entry *entry, int64_t record,
    const struct aff_frame *frame, struct pg_error *error)
{
    struct conversions *conversions = stream->data;
    struct aff_conversion conversion;
    const char *problem;
    uint8_t *p;

    if (frame->type == AFF_FRAME_REFUSAL) {
        return refusals_store_record(stream, entry, record, frame, error);
    }

    if (frame->type != AFF_FRAME_CONVERSION ||
        !aff_conversion_decode(frame->version, frame->payload, &conversion)) {
        problem = "not a conversion";
    } else {
        problem = conversions_problem(&conversion);
    }

    if (problem != NULL) {
        stream_bury(stream, entry, record, "malformed_record", problem, stream_frame_bytes(frame));
        return true;
    }

    if (!conversions->open) {
        conversions->open = true;
        if (!copy_begin(stream->pg, conversions_copy_sql, error)) {
            return false;
        }
    }

    p = copy_room(&conversions->rows, CONVERSION_ROW_MAX);
    if (p == NULL) {
        *error = (struct pg_error){.class = PG_CLASS_RETRY, .message = "out of memory"};
        return false;
    }

    conversions->rows.len +=
        (size_t) (conversions_put_row(p, &entry->batch, record, &conversion) - p);
    stream->stored++;
    return conversions->rows.len < COPY_CHUNK / 2 ||
           copy_send(stream->pg, &conversions->rows, error);
}

static bool
conversions_apply(struct stream *stream, struct pg_error *error)
{
    static const struct {
        const char *column;
        enum counter counter;
    } columns[] = {
        {"applied", COUNTER_APPLIED},
        {"waiting", COUNTER_PARKED},
        {"duplicates", COUNTER_DUPLICATES},
        {"dead", COUNTER_DEAD_LETTERS},
        {"accepted", COUNTER_ACCEPTED},
        {"review", COUNTER_REVIEW},
        {"rejected", COUNTER_REJECTED},
    };
    PGresult *result = pg_query(stream->pg,
        "select a.*, affiliate.note_key_use() from affiliate.apply_conversions() a", 0, NULL, 0,
        error);

    if (result == NULL) {
        return false;
    }

    for (size_t i = 0; i < sizeof(columns) / sizeof(columns[0]); i++) {
        int column = PQfnumber(result, columns[i].column);

        if (column >= 0 && PQntuples(result) == 1) {
            role_count(stream->role, columns[i].counter,
                strtoull(PQgetvalue(result, 0, column), NULL, 10));
        }
    }

    PQclear(result);
    return true;
}

static bool
conversions_store(struct stream *stream, const struct entry *entries, size_t count, int64_t only,
    struct pg_error *error)
{
    struct conversions *conversions = stream->data;

    conversions->open = false;
    conversions->rows.len = 0;
    conversions->refusals.len = 0;

    for (size_t i = 0; i < count; i++) {
        struct walk walk = {.quiet = only >= 0};
        struct aff_frame frame;

        if (entries[i].state != ENTRY_ACCEPTED) {
            continue;
        }

        while ((only < 0 || walk.record < only || !walk.begun) &&
               stream_walk(stream, &entries[i], &walk, &frame)) {
            if ((only < 0 || walk.record == only) &&
                !conversions_store_record(stream, &entries[i], walk.record, &frame, error)) {
                return false;
            }
        }
    }

    if (!conversions->open) {
        return refusals_apply(stream, error);
    }

    if (!copy_send(stream->pg, &conversions->rows, error) || !copy_end(stream->pg, error) ||
        pg_fault(AFF_FAULT("conversions.staged"), error) || !conversions_apply(stream, error) ||
        pg_fault(AFF_FAULT("conversions.applied"), error) || !refusals_apply(stream, error)) {
        return false;
    }

    /* Record by record, the next one must not find this one on the stage. */
    return only < 0 || pg_command(stream->pg, "delete from pg_temp.conversion_stage", error);
}

static bool
conversions_turn(struct stream *stream, struct pg_error *error)
{
    struct conversions *conversions = stream->data;
    const struct config *config = stream->role->config;
    char batch[24];
    const char *values[] = {batch};
    PGresult *result;
    int64_t resolved;

    if (clock_monotonic_ms() < conversions->next_resolve_ms) {
        return true;
    }

    snprintf(batch, sizeof(batch), "%lld", (long long) config->conversions.resolve_batch);
    result =
        pg_query(stream->pg, "select affiliate.resolve_waiting($1::integer)", 1, values, 0, error);
    if (result == NULL) {
        return false;
    }

    resolved = atoll(PQgetvalue(result, 0, 0));
    PQclear(result);
    if (pg_fault(AFF_FAULT("conversions.resolved"), error)) {
        return false;
    }

    role_count(stream->role, COUNTER_RESOLVED, (uint64_t) resolved);

    /* A full one means that there may be more: go on after the next load. */
    conversions->next_resolve_ms = clock_monotonic_ms();
    if (resolved < config->conversions.resolve_batch) {
        conversions->next_resolve_ms += config->conversions.resolve_interval;
    }

    return true;
}

static const struct stream_kind conversions_kind = {.channel = AFF_CHANNEL_CONVERSIONS,
    .name = "conversions",
    .prepare = conversions_prepare,
    .store = conversions_store,
    .turn = conversions_turn};

static bool
conversions_serve(struct role *role)
{
    struct conversions conversions = {0};
    bool ok = stream_serve(role, &conversions_kind, role->config->conversions.batch_bytes,
        role->config->conversions.batch_delay, &conversions);

    copy_free(&conversions.rows);
    copy_free(&conversions.refusals);
    return ok;
}

const struct role_kind conversions_role = {.name = "conversions",
    .serve = conversions_serve,
    .counters = STREAM_COUNTERS | 1ULL << COUNTER_APPLIED | 1ULL << COUNTER_DUPLICATES |
                1ULL << COUNTER_ACCEPTED | 1ULL << COUNTER_REVIEW | 1ULL << COUNTER_REJECTED |
                1ULL << COUNTER_PARKED | 1ULL << COUNTER_RESOLVED};
