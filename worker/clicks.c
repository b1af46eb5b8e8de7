/*
 * Clicks: binary COPY into the leaf partition of the UTC day inside each click's id.
 *
 * Nearly all clicks of a load are of one day. That day's COPY is open while the load is walked, so
 * that PostgreSQL works while we encode; rows of other days are kept and copied after it.
 *
 * What reports add up is added up here, too, and goes to the rollups last of all: that locks their
 * rows until COMMIT.
 */

#include "worker/click_counts.h"
#include "worker/rows.h"
#include "worker/stream.h"

#include <stdlib.h>
#include <sys/random.h>

#define DAY_MS       86400000ULL
#define CLICK_FIELDS 14

#define LEAVES_TRIES    20 /* partitions that another role or daemon is making */
#define LEAVES_PAUSE_MS 100

#define PGSQL_AF_INET  2 /* utils/inet.h: AF_INET and AF_INET + 1, on the wire */
#define PGSQL_AF_INET6 3

struct leaf {
    uint64_t day; /* since 1970-01-01 */
    char relation[128];
    struct copy_buffer rows; /* waiting for the open COPY to end */
};

struct clicks {
    struct leaf *leaves; /* ordered by day */
    size_t count;
    struct copy_buffer rows; /* of the open COPY */
    struct leaf *open;
    struct click_counts counts; /* of the transaction */
    struct aff_click alone;     /* a record that is stored by itself: counted once it is */
    bool alone_stored;
};

static void
clicks_forget_leaves(struct clicks *clicks)
{
    for (size_t i = 0; i < clicks->count; i++) {
        copy_free(&clicks->leaves[i].rows);
    }

    free(clicks->leaves);
    clicks->leaves = NULL;
    clicks->count = 0;
    clicks->open = NULL;
}

static struct leaf *
clicks_find_leaf(struct clicks *clicks, uint64_t day)
{
    size_t low = 0, high = clicks->count;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (clicks->leaves[middle].day < day) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }

    return low < clicks->count && clicks->leaves[low].day == day ? &clicks->leaves[low] : NULL;
}

static bool
clicks_load_leaves(struct stream *stream, struct pg_error *error)
{
    struct clicks *clicks = stream->data;
    PGresult *result = pg_query(stream->pg,
        "select day - date '1970-01-01', relation from affiliate.click_partitions() order by day",
        0, NULL, 0, error);
    int rows = PQntuples(result);

    if (result == NULL) {
        return false;
    }

    clicks_forget_leaves(clicks);
    clicks->leaves = calloc((size_t) rows + 1, sizeof(*clicks->leaves));
    for (int i = 0; clicks->leaves != NULL && i < rows; i++) {
        clicks->leaves[i].day = (uint64_t) atoll(PQgetvalue(result, i, 0));
        snprintf(clicks->leaves[i].relation, sizeof(clicks->leaves[i].relation), "%s",
            PQgetvalue(result, i, 1));
        clicks->count++;
    }

    PQclear(result);
    if (clicks->leaves == NULL) {
        *error = (struct pg_error){.class = PG_CLASS_RETRY, .message = "out of memory"};
        return false;
    }

    return true;
}

static bool
clicks_has_near_days(struct clicks *clicks)
{
    uint64_t today = (uint64_t) clock_unix_ms() / DAY_MS;

    return clicks_find_leaf(clicks, today) != NULL && clicks_find_leaf(clicks, today + 1) != NULL;
}

/* Makes what is missing of the partitions, unless somebody else does at this moment, and knows what
 * is there then. */
static bool
clicks_make_leaves(struct stream *stream, struct pg_error *error)
{
    char ahead[16];
    const char *values[] = {ahead};
    PGresult *result;

    snprintf(ahead, sizeof(ahead), "%lld", (long long) stream->role->config->partitions.ahead);
    result = pg_query(stream->pg, "select * from affiliate.maintain_partitions($1::integer, 0)", 1,
        values, 0, error);
    PQclear(result);
    return result != NULL && clicks_load_leaves(stream, error);
}

/*
 * Knows the partitions. Where today or tomorrow has none it makes them, because clicks may come
 * before the role that looks after that, and does not go on without: their clicks would all be dead
 * letters.
 */
static bool
clicks_prepare(struct stream *stream, struct pg_error *error)
{
    if (!clicks_load_leaves(stream, error)) {
        return false;
    }

    for (unsigned i = 0; i < LEAVES_TRIES && !clicks_has_near_days(stream->data); i++) {
        role_wait(stream->role, i == 0 ? 0 : LEAVES_PAUSE_MS, -1);
        if (!clicks_make_leaves(stream, error)) {
            return false;
        }
    }

    if (!clicks_has_near_days(stream->data)) {
        /* Somebody who makes them does not get on, or the clock of one of us is wrong. */
        *error = (struct pg_error){.class = PG_CLASS_RETRY,
            .message = "today and tomorrow have no partitions for clicks yet"};
        return false;
    }

    return true;
}

static uint8_t *
clicks_put_prefix(uint8_t *p, const struct aff_click *click)
{
    bool four = click->address_family == 4;
    uint8_t address[20] = {
        four ? PGSQL_AF_INET : PGSQL_AF_INET6, four ? 24 : 48, 1 /* cidr */, four ? 4 : 16};

    if (click->address_family != 4 && click->address_family != 6) {
        return copy_put_null(p);
    }

    memcpy(address + 4, click->prefix, four ? 3 : 6);
    return copy_put_bytes(p, address, four ? 8 : 20);
}

static uint8_t *
clicks_put_sub_ids(uint8_t *p, const struct aff_click *click)
{
    uint8_t *begin = p;
    size_t any = 0;

    for (unsigned i = 0; i < AFF_SUB_IDS; i++) {
        any += click->sub_ids[i].len;
    }

    if (any == 0) {
        return copy_put_null(p);
    }

    p = copy_array_begin(p, COPY_OID_TEXT, AFF_SUB_IDS, true);
    for (unsigned i = 0; i < AFF_SUB_IDS; i++) {
        p = copy_put_optional(p, click->sub_ids[i]);
    }

    copy_array_end(begin, p);
    return p;
}

uint8_t *
clicks_put_row(uint8_t *p, const struct aff_click *click)
{
    p = copy_raw16(p, CLICK_FIELDS);
    p = copy_put_bytes(p, click->id, AFF_UUID_BYTES);
    p = copy_put_int8(p, click->merchant_id);
    p = copy_put_int8(p, click->link_id);
    p = copy_put_int8(p, click->campaign_id);
    p = copy_put_int8(p, click->affiliate_id);
    p = copy_put_bool(p, click->livemode);
    p = copy_put_int2(p, click->verdict);
    p = copy_put_int4(p, click->reasons);
    p = clicks_put_prefix(p, click);
    p = copy_put_int8(p, click->visitor);
    p = clicks_put_sub_ids(p, click);
    p = copy_put_optional(p, click->signals);
    p = copy_put_optional(p, click->user_agent);
    return copy_put_optional(p, click->referrer);
}

static bool
clicks_open(struct stream *stream, struct leaf *leaf, struct pg_error *error)
{
    struct clicks *clicks = stream->data;
    char sql[384];

    snprintf(sql, sizeof(sql), "copy %s (" CLICK_ROW_COLUMNS ") from stdin (format binary)",
        leaf->relation);
    clicks->open = leaf;
    return copy_begin(stream->pg, sql, error) && !pg_fault(AFF_FAULT("clicks.opened"), error);
}

/* One record: into the open COPY, beside it, or to the dead letters. */
static bool
clicks_store_record(struct stream *stream, const struct entry *entry, int64_t record, bool apart,
    const struct aff_frame *frame, struct pg_error *error)
{
    struct clicks *clicks = stream->data;
    struct copy_buffer *rows;
    struct aff_click click;
    struct leaf *leaf;
    uint64_t day;
    uint8_t *p;

    if (frame->type != AFF_FRAME_CLICK ||
        !aff_click_decode(frame->version, frame->payload, &click)) {
        stream_bury(
            stream, entry, record, "malformed_record", "not a click", stream_frame_bytes(frame));
        return true;
    }

    day = aff_uuid_ms(click.id) / DAY_MS;
    leaf = clicks->open != NULL && clicks->open->day == day ? clicks->open
                                                            : clicks_find_leaf(clicks, day);
    if (leaf == NULL) {
        stream_bury(stream, entry, record, "no_partition", "no partition for its day",
            stream_frame_bytes(frame));
        return true;
    }

    if (clicks->open == NULL && !clicks_open(stream, leaf, error)) {
        return false;
    }

    rows = leaf == clicks->open ? &clicks->rows : &leaf->rows;
    p = copy_room(rows, CLICK_ROW_MAX);
    if (p == NULL || (!apart && !click_counts_add(&clicks->counts, &click))) {
        *error = (struct pg_error){.class = PG_CLASS_RETRY, .message = "out of memory"};
        return false;
    }

    rows->len += (size_t) (clicks_put_row(p, &click) - p);
    stream->stored++;
    clicks->alone = click;
    clicks->alone_stored = true;

    if (leaf == clicks->open && rows->len >= COPY_CHUNK - CLICK_ROW_MAX) {
        role_progress(stream->role);
        return copy_send(stream->pg, rows, error);
    }

    return true;
}

/* Ends the open COPY and copies the days that had to wait. */
static bool
clicks_flush(struct stream *stream, struct pg_error *error)
{
    struct clicks *clicks = stream->data;

    if (clicks->open == NULL) {
        return true;
    }

    if (!copy_send(stream->pg, &clicks->rows, error) || pg_fault(AFF_FAULT("clicks.sent"), error) ||
        !copy_end(stream->pg, error)) {
        return false;
    }

    for (size_t i = 0; i < clicks->count; i++) {
        struct leaf *leaf = &clicks->leaves[i];

        if (leaf->rows.len != 0 &&
            (!clicks_open(stream, leaf, error) || !copy_send(stream->pg, &leaf->rows, error) ||
                !copy_end(stream->pg, error))) {
            return false;
        }
    }

    return !pg_fault(AFF_FAULT("clicks.copied"), error);
}

static bool
clicks_count_alone(struct stream *stream, struct pg_error *error)
{
    struct clicks *clicks = stream->data;

    if (clicks->alone_stored && !click_counts_add(&clicks->counts, &clicks->alone)) {
        *error = (struct pg_error){.class = PG_CLASS_RETRY, .message = "out of memory"};
        return false;
    }

    return true;
}

static bool
clicks_store(struct stream *stream, const struct entry *entries, size_t count, int64_t only,
    struct pg_error *error)
{
    struct clicks *clicks = stream->data;

    /* A transaction that failed may have left rows behind. */
    clicks->alone_stored = false;
    clicks->open = NULL;
    clicks->rows.len = 0;
    for (size_t i = 0; i < clicks->count; i++) {
        clicks->leaves[i].rows.len = 0;
    }

    for (size_t i = 0; i < count; i++) {
        struct walk walk = {.quiet = only >= 0};
        struct aff_frame frame;

        if (entries[i].state != ENTRY_ACCEPTED) {
            continue;
        }

        while ((only < 0 || walk.record < only || !walk.begun) &&
               stream_walk(stream, &entries[i], &walk, &frame)) {
            if ((only < 0 || walk.record == only) &&
                !clicks_store_record(stream, &entries[i], walk.record, only >= 0, &frame, error)) {
                return false;
            }
        }
    }

    return clicks_flush(stream, error) && (only < 0 || clicks_count_alone(stream, error));
}

static void
clicks_begin(struct stream *stream)
{
    struct clicks *clicks = stream->data;

    click_counts_clear(&clicks->counts);
}

static bool
clicks_finish(struct stream *stream, struct pg_error *error)
{
    struct clicks *clicks = stream->data;

    return click_counts_send(&clicks->counts, stream->pg, error) &&
           !pg_fault(AFF_FAULT("clicks.counted"), error);
}

static const struct stream_kind clicks_kind = {.channel = AFF_CHANNEL_CLICKS,
    .name = "clicks",
    .prepare = clicks_prepare,
    .store = clicks_store,
    .begin = clicks_begin,
    .finish = clicks_finish};

static bool
clicks_serve(struct role *role)
{
    struct clicks clicks = {0};
    bool ok;

    if (getrandom(clicks.counts.key, sizeof(clicks.counts.key), 0) !=
        (ssize_t) sizeof(clicks.counts.key)) {
        return role_failed(role, "no random bytes");
    }

    ok = stream_serve(role, &clicks_kind, role->config->clicks.batch_bytes,
        role->config->clicks.batch_delay, &clicks);
    clicks_forget_leaves(&clicks);
    click_counts_free(&clicks.counts);
    copy_free(&clicks.rows);
    return ok;
}

static int64_t
clicks_lanes(const struct config *config)
{
    return config->clicks.threads;
}

const struct role_kind clicks_role = {
    .name = "clicks", .serve = clicks_serve, .counters = STREAM_COUNTERS, .lanes = clicks_lanes};
