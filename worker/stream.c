/*
 * The loop, and why kill -9 between any two instructions loses nothing and applies nothing twice:
 *
 * Read: XREADGROUP. Delivered entries stay pending under our stable consumer name; a new life reads
 * those first.
 *
 * Verify: MAC, lengths. What no key of ours made goes to a dead letter as a whole and is
 * acknowledged, but gets no seal: its name proves nothing, and a real batch of that name must not
 * count as stored.
 *
 * Apply: BEGIN; inbox rows; COPY; dead letters; COMMIT. The inbox row and the effect commit
 * together or not at all. Killed before: pending entries come again and nothing has happened.
 * Killed after, or COMMIT's outcome unknown: they come again and the inbox knows them.
 *
 * Settle: SETRANGE of the seal for the producer, then XACK, in one pipeline. Killed in between: the
 * entry is pending still, is found in the inbox, and both are done again. The seal comes first, so
 * that a Redis that loses the end of its log never has an acknowledged entry without it. It is made
 * with the master key that made the batch, which the producer has for certain.
 *
 * Redis lost: the group is made anew from id 0; producers send again what has no seal; the inbox
 * absorbs repeats. PostgreSQL failed over and lost commits that were acknowledged: the identity
 * (system and timeline) that is kept in Redis differs, and the replay window of the stream goes
 * through the inbox again before anything else. Trimming therefore drops only what is acknowledged
 * *and* older than that window.
 *
 * Poison: SQLSTATE 22, 23, 54. The load is applied entry by entry, the culprit record by record
 * under savepoints, and the record that still fails becomes a dead letter. All else ends this life;
 * the next one tries the same again.
 *
 * Several threads may work on the same streams, each a consumer of its own; whose batch is whose
 * makes no difference, because the inbox decides. Their first also looks after the streams: replay,
 * trimming, claims, gauges.
 *
 * Memory: two loads of batch_bytes for each thread, and a read may exceed that by READ_BYTES; only
 * where small batches are followed by large ones, once, by READ_COUNT of the large.
 */

#include "worker/stream.h"

#include "protocol/bytes.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define READ_COUNT          16              /* entries of a stream a read, at most */
#define READ_BYTES          (1024 * 1024UL) /* a read, if its entries are like those before them */
#define READ_BLOCK_MS       500             /* below redis.timeout's minimum */
#define LOAD_ENTRIES_MAX    4096
#define ENTRY_OVERHEAD      512 /* what hiredis needs around one */
#define GAUGE_INTERVAL_MS   2000
#define TRIM_INTERVAL_MS    10000
#define TRIM_ROUNDS_MAX     64
#define CROWDED_PART        4 /* Redis is crowded with less than a quarter of maxmemory free */
#define LARGE_PART          8 /* a stream is large with an eighth of it */
#define CROWDED_INTERVAL_MS 1000
#define WARNING_INTERVAL_MS 60000
#define PREPARE_INTERVAL_MS 60000
#define TURN_INTERVAL_MS    10
#define CLAIM_ROUNDS_MAX    64
#define ACK_TTL_S           "604800"
#define XACK_IDS            256

static const char stream_inbox_sql[] =
    "select affiliate.inbox_accept($1::smallint, $2::bigint[], $3::bigint[], "
    "$4::integer[], $5::integer[])";
static const char stream_dead_sql[] = "select affiliate.dead_letter_add($1::smallint, $2::bigint, "
                                      "$3::bigint, $4::integer, $5::integer, $6, $7, $8)";

/* A growing text, for array literals. */
struct text {
    char *data;
    size_t len, size;
};

static bool text_add(struct text *text, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static bool
text_add(struct text *text, const char *format, ...)
{
    va_list args;
    int n;

    if (text->size - text->len < 64) {
        size_t size = text->size == 0 ? 4096 : text->size * 2;
        char *data = realloc(text->data, size);

        if (data == NULL) {
            return false;
        }

        text->data = data;
        text->size = size;
    }

    va_start(args, format);
    n = vsnprintf(text->data + text->len, text->size - text->len, format, args);
    va_end(args);
    text->len += (size_t) n;
    return true;
}

static bool
stream_no_memory(struct pg_error *error)
{
    *error = (struct pg_error){.class = PG_CLASS_RETRY};
    snprintf(error->message, sizeof(error->message), "out of memory");
    return false;
}

/* Makes room for one more element in an array that doubles. */
static bool
stream_grow(void **array, size_t *size, size_t count, size_t element)
{
    size_t larger = *size == 0 ? 64 : *size * 2;
    void *data;

    if (count < *size) {
        return true;
    }

    data = realloc(*array, larger * element);
    if (data == NULL) {
        return false;
    }

    *array = data;
    *size = larger;
    return true;
}

void
stream_bury(struct stream *stream, const struct entry *entry, int64_t record, const char *reason,
    const char *detail, struct aff_slice payload)
{
    struct dead_letter *dead;

    if (!stream_grow(
            (void **) &stream->dead, &stream->dead_size, stream->dead_count, sizeof(*dead))) {
        stream->dead_failed = true;
        return;
    }

    dead = &stream->dead[stream->dead_count++];
    *dead = (struct dead_letter){
        .entry = entry, .record = record, .reason = reason, .payload = payload};
    snprintf(dead->detail, sizeof(dead->detail), "%s", detail);
}

bool
stream_walk(
    struct stream *stream, const struct entry *entry, struct walk *walk, struct aff_frame *frame)
{
    struct aff_slice rest = entry->batch.payload;
    enum aff_frame_result result;

    if (!walk->begun) {
        walk->begun = true;
        walk->record = -1;
        walk->seed = aff_frame_seed(entry->batch.spool_id, entry->batch.segment);
    }

    rest.data += walk->offset;
    rest.len -= walk->offset;
    result = rest.len == 0 ? AFF_FRAME_END : aff_frame_read(rest, walk->seed, frame);
    walk->record++;

    if (result == AFF_FRAME_OK) {
        walk->offset += frame->length;
        return true;
    }

    if (!walk->quiet && (rest.len != 0 || walk->record != (int64_t) entry->batch.records)) {
        stream_bury(stream, entry, walk->record, "corrupt_frame",
            rest.len != 0 ? "this frame and what follows can't be read"
                          : "fewer records than the batch says",
            rest);
    }

    walk->offset = entry->batch.payload.len;
    return false;
}

/* --- loads --- */

static void
load_clear(struct load *load)
{
    for (size_t i = 0; i < load->replies_count; i++) {
        freeReplyObject(load->replies[i]);
    }

    load->replies_count = 0;
    load->count = 0;
    load->bytes = 0;
}

static void
load_free(struct load *load)
{
    load_clear(load);
    free(load->replies);
    free(load->entries);
    *load = (struct load){0};
}

/* The entry's one field, or an empty slice. */
static struct aff_slice
stream_field(const redisReply *fields)
{
    for (size_t i = 0; i + 1 < fields->elements; i += 2) {
        if (fields->element[i]->type == REDIS_REPLY_STRING &&
            fields->element[i + 1]->type == REDIS_REPLY_STRING &&
            strcmp(fields->element[i]->str, AFF_STREAM_FIELD) == 0) {
            return aff_slice(fields->element[i + 1]->str, (size_t) fields->element[i + 1]->len);
        }
    }

    return aff_slice("", 0);
}

static void
stream_verify(struct stream *stream, struct entry *entry)
{
    switch (aff_batch_read(entry->data, &stream->ring, &entry->batch)) {
    case AFF_BATCH_OK:
        entry->state = ENTRY_NEW;
        if (entry->batch.channel != stream->kind->channel) {
            entry->state = ENTRY_JUNK;
            entry->problem = "wrong_channel";
        }
        break;
    case AFF_BATCH_MALFORMED:
        entry->state = ENTRY_JUNK;
        entry->problem = "malformed_batch";
        break;
    case AFF_BATCH_FORGED:
        entry->state = ENTRY_JUNK;
        entry->problem = "forged_batch";
        break;
    }

    if (entry->state == ENTRY_JUNK) {
        role_count(stream->role, COUNTER_FORGED, 1);
    }
}

/* Adds [id, fields] pairs of one stream. Sets `last` to the id of the last one. */
static bool
load_add(struct stream *stream, struct load *load, unsigned index, const redisReply *entries,
    const char **last)
{
    for (size_t i = 0; i < entries->elements; i++) {
        const redisReply *pair = entries->element[i];
        struct entry *entry;

        if (pair->type != REDIS_REPLY_ARRAY || pair->elements != 2 ||
            !redis_is_id(pair->element[0])) {
            continue;
        }

        if (!stream_grow((void **) &load->entries, &load->size, load->count, sizeof(*entry))) {
            return false;
        }

        entry = &load->entries[load->count++];
        *entry = (struct entry){.stream = index, .id = pair->element[0]->str};
        *last = entry->id;
        if (pair->element[1]->type != REDIS_REPLY_ARRAY) {
            entry->state = ENTRY_GONE;
            role_count(stream->role, COUNTER_LOST, 1);
            log_error(
                "entry %s of %s was deleted before it was committed; its producer sends it again",
                entry->id, stream->keys[index]);
            continue;
        }

        entry->data = stream_field(pair->element[1]);
        load->bytes += entry->data.len + ENTRY_OVERHEAD;
        role_count(stream->role, COUNTER_BYTES, entry->data.len);
        stream_verify(stream, entry);
    }

    return true;
}

/* Takes over a reply that the load's entries point into. */
static bool
load_own(struct load *load, redisReply *reply)
{
    if (!stream_grow((void **) &load->replies, &load->replies_size, load->replies_count,
            sizeof(redisReply *))) {
        freeReplyObject(reply);
        return false;
    }

    load->replies[load->replies_count++] = reply;
    return true;
}

static bool
load_full(const struct stream *stream, const struct load *load)
{
    return (int64_t) load->bytes >= stream->batch_bytes || load->count >= LOAD_ENTRIES_MAX;
}

/* --- reading --- */

static bool
stream_make_groups(struct stream *stream)
{
    for (unsigned i = 0; i < stream->streams; i++) {
        redisReply *reply = redis_command(
            &stream->redis, "XGROUP CREATE %s " STREAM_GROUP " 0 MKSTREAM", stream->keys[i]);

        if (reply != NULL) {
            freeReplyObject(reply);
            log_info("%s: made the consumer group", stream->keys[i]);
        } else if (strncmp(stream->redis.error, "BUSYGROUP", 9) != 0 &&
                   strncmp(stream->redis.error, "OOM ", 4) != 0) {
            /* In a full Redis it is there, or the first read says that it is not. */
            return role_failed_redis(stream->role, "XGROUP CREATE", &stream->redis);
        }
    }

    return true;
}

/* From the entries behind the first `known` ones: how many of each stream the next
 * read asks for. */
static void
stream_learn(struct stream *stream, const struct load *load, size_t known)
{
    size_t largest = 0;

    for (size_t i = known; i < load->count; i++) {
        if (load->entries[i].data.len > largest) {
            largest = load->entries[i].data.len;
        }
    }

    if (largest != 0) {
        size_t fit = READ_BYTES / (largest * stream->streams);
        size_t most = REDIS_ENTRIES_MAX / stream->streams;

        most = most > READ_COUNT ? READ_COUNT : most;
        stream->read_count = (unsigned) (fit < 1 ? 1 : fit > most ? most : fit);
    }
}

/* What one XREADGROUP brought goes into the load. `*got` is the number of entries. */
static bool
stream_take(struct stream *stream, struct load *load, redisReply *reply, size_t *got)
{
    size_t before = load->count;

    *got = 0;
    if (reply->type != REDIS_REPLY_ARRAY) {
        freeReplyObject(reply);
        return true;
    }

    if (!load_own(load, reply)) {
        return role_failed(stream->role, "out of memory");
    }

    for (size_t s = 0; s < reply->elements; s++) {
        const redisReply *pair = reply->element[s];
        const char *last = NULL;
        unsigned index = 0;

        if (pair->type != REDIS_REPLY_ARRAY || pair->elements != 2 ||
            pair->element[0]->type != REDIS_REPLY_STRING) {
            continue;
        }

        while (index < stream->streams && strcmp(stream->keys[index], pair->element[0]->str) != 0) {
            index++;
        }

        if (index == stream->streams) {
            continue;
        }

        if (!load_add(stream, load, index, pair->element[1], &last)) {
            return role_failed(stream->role, "out of memory");
        }

        if (stream->cursors[index][0] != '\0') {
            /* Own pending entries: go on behind the last one; an empty page is their end. */
            snprintf(stream->cursors[index], sizeof(stream->cursors[index]), "%s",
                last == NULL ? "" : last);
        }
    }

    stream_learn(stream, load, before);
    *got = load->count - before;
    return true;
}

/* True while some stream's own pending entries have not all been read. */
static bool
stream_in_history(const struct stream *stream)
{
    for (unsigned i = 0; i < stream->streams; i++) {
        if (stream->cursors[i][0] != '\0') {
            return true;
        }
    }

    return false;
}

static bool
stream_read(struct stream *stream, struct load *load, int64_t block_ms, size_t *got)
{
    const char *argv[10 + 2 * AFF_STREAMS_MAX];
    char block[24], count[24];
    int argc = 0;
    redisReply *reply;

    snprintf(count, sizeof(count), "%u", stream->read_count);
    argv[argc++] = "XREADGROUP";
    argv[argc++] = "GROUP";
    argv[argc++] = STREAM_GROUP;
    argv[argc++] = stream->consumer;
    argv[argc++] = "COUNT";
    argv[argc++] = count;
    if (block_ms > 0) {
        snprintf(block, sizeof(block), "%lld", (long long) block_ms);
        argv[argc++] = "BLOCK";
        argv[argc++] = block;
    }

    argv[argc++] = "STREAMS";
    for (unsigned i = 0; i < stream->streams; i++) {
        argv[argc++] = stream->keys[i];
    }
    for (unsigned i = 0; i < stream->streams; i++) {
        argv[argc++] = stream->cursors[i][0] != '\0' ? stream->cursors[i] : ">";
    }

    *got = 0;
    reply = redis_command_argv(&stream->redis, argc, argv, NULL);
    if (reply == NULL) {
        if (stream->redis.context != NULL &&
            (strncmp(stream->redis.error, "NOGROUP", 7) == 0 ||
                strncmp(stream->redis.error, "UNBLOCKED", 9) == 0)) {
            log_warning("Redis lost its streams or groups; beginning with empty ones, producers "
                        "send again");
            return stream_make_groups(stream);
        }

        return role_failed_redis(stream->role, "XREADGROUP", &stream->redis);
    }

    if (AFF_FAULT("stream.read")) {
        freeReplyObject(reply);
        return role_failed(stream->role, "an injected fault");
    }

    return stream_take(stream, load, reply, got);
}

/*
 * Fills the load. With `wait` it waits for the first entry, and then up to batch_delay for company;
 * without, it takes what is there.
 */
static bool
stream_gather(struct stream *stream, struct load *load, bool wait)
{
    int64_t begun = load->count == 0 ? 0 : clock_monotonic_ms();

    while (!load_full(stream, load)) {
        int64_t block = 0;
        bool history = stream_in_history(stream);
        unsigned asked = stream->read_count;
        size_t got;

        if (wait && !history) {
            int64_t left =
                begun == 0 ? READ_BLOCK_MS : begun + stream->batch_delay_ms - clock_monotonic_ms();

            block = left < 0 ? 0 : left < READ_BLOCK_MS ? left : READ_BLOCK_MS;
        }

        if (!stream_read(stream, load, block, &got)) {
            return false;
        }

        if (load->count != 0 && begun == 0) {
            begun = clock_monotonic_ms();
        }

        /* A full read means that more is waiting; the end of the history, that new entries may be.
         */
        if (got < asked && !history && (!wait || load->count == 0 || block == 0)) {
            break;
        }
    }

    return true;
}

/* --- applying --- */

static bool
stream_accept(struct stream *stream, struct entry *entries, size_t count, struct pg_error *error)
{
    struct text spools = {0}, segments = {0}, sequences = {0}, records = {0};
    char channel[8];
    size_t *positions = malloc((count + 1) * sizeof(*positions));
    size_t fresh = 0;
    bool ok = positions != NULL;
    PGresult *result;

    for (size_t i = 0; ok && i < count; i++) {
        const struct aff_batch *batch = &entries[i].batch;
        char separator = fresh == 0 ? '{' : ',';

        if (entries[i].state != ENTRY_NEW) {
            continue;
        }

        ok = text_add(&spools, "%c%lld", separator, (long long) batch->spool_id) &&
             text_add(&segments, "%c%lld", separator, (long long) batch->segment) &&
             text_add(&sequences, "%c%d", separator, (int) batch->sequence) &&
             text_add(&records, "%c%d", separator, (int) batch->records);
        positions[fresh++] = i;
    }

    ok = ok && (fresh == 0 || (text_add(&spools, "}") && text_add(&segments, "}") &&
                                  text_add(&sequences, "}") && text_add(&records, "}")));
    if (!ok) {
        stream_no_memory(error);
    } else if (fresh != 0) {
        const char *values[] = {channel, spools.data, segments.data, sequences.data, records.data};

        snprintf(channel, sizeof(channel), "%d", (int) stream->kind->channel);
        result = pg_query(stream->pg, stream_inbox_sql, 5, values, 0, error);
        ok = result != NULL;

        for (size_t i = 0; i < fresh; i++) {
            entries[positions[i]].state = ENTRY_REPEATED;
        }

        for (int i = 0; ok && i < PQntuples(result); i++) {
            long position = atol(PQgetvalue(result, i, 0));

            if (position >= 1 && (size_t) position <= fresh) {
                entries[positions[position - 1]].state = ENTRY_ACCEPTED;
            }
        }

        PQclear(result);
    }

    free(spools.data);
    free(segments.data);
    free(sequences.data);
    free(records.data);
    free(positions);
    return ok;
}

static bool
stream_write_dead(struct stream *stream, struct pg_error *error)
{
    for (size_t i = 0; i < stream->dead_count; i++) {
        const struct dead_letter *dead = &stream->dead[i];
        const struct aff_batch *batch = &dead->entry->batch;
        char channel[8], spool[24], segment[24], sequence[16], record[24];
        const char *values[8] = {channel, spool, segment, sequence, record, dead->reason,
            dead->detail, (const char *) dead->payload.data};
        int lengths[8] = {[7] = (int) dead->payload.len};
        int formats[8] = {[7] = 1};
        bool known = dead->entry->state != ENTRY_JUNK;
        PGresult *result;

        snprintf(channel, sizeof(channel), "%d", (int) stream->kind->channel);
        snprintf(spool, sizeof(spool), "%lld", known ? (long long) batch->spool_id : 0);
        snprintf(segment, sizeof(segment), "%lld", known ? (long long) batch->segment : 0);
        snprintf(sequence, sizeof(sequence), "%d", known ? (int) batch->sequence : 0);
        snprintf(record, sizeof(record), "%lld", (long long) dead->record);
        if (dead->record < 0) {
            values[4] = NULL;
        }

        result = PQexecParams(stream->pg, stream_dead_sql, 8,
            (const Oid[8]){[5] = COPY_OID_TEXT, [6] = COPY_OID_TEXT, [7] = 17 /* bytea */}, values,
            lengths, formats, 0);
        if (PQresultStatus(result) != PGRES_TUPLES_OK) {
            pg_error_of(stream->pg, result, error);
            PQclear(result);
            return false;
        }

        PQclear(result);
    }

    return true;
}

static void
stream_bury_junk(struct stream *stream, const struct entry *entries, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char detail[STREAM_DETAIL_MAX];

        /* Names the entry: if it comes again, this is how PostgreSQL knows it. */
        if (entries[i].state == ENTRY_JUNK) {
            snprintf(detail, sizeof(detail), "entry %.40s of %s", entries[i].id,
                stream->keys[entries[i].stream]);
            stream_bury(stream, &entries[i], -1, entries[i].problem, detail, entries[i].data);
        }
    }
}

/* COMMIT, while the next load is being read: PostgreSQL waits for its disk, we for Redis. */
static bool
stream_commit(struct stream *stream, bool read_ahead, struct pg_error *error)
{
    PGresult *result;
    bool ok, read = true;

    if (!PQsendQuery(stream->pg, "commit")) {
        pg_error_of(stream->pg, NULL, error);
        return false;
    }

    if (read_ahead) {
        read = stream_gather(stream, &stream->next, false);
    }

    result = PQgetResult(stream->pg);
    /* A failed transaction answers COMMIT with ROLLBACK, not with an error. */
    ok = PQresultStatus(result) == PGRES_COMMAND_OK && strcmp(PQcmdStatus(result), "COMMIT") == 0;
    if (!ok) {
        pg_error_of(stream->pg, result, error);
    }

    PQclear(result);
    while ((result = PQgetResult(stream->pg)) != NULL) {
        PQclear(result);
        if (PQstatus(stream->pg) == CONNECTION_BAD) {
            break;
        }
    }

    if (ok && !read) {
        /* Committed, but Redis is gone: this life ends, and the inbox will know these. */
        *error = (struct pg_error){.class = PG_CLASS_RETRY};
        snprintf(error->message, sizeof(error->message), "committed; then Redis failed: %.300s",
            stream->redis.error);
        return false;
    }

    return ok;
}

/* What PostgreSQL said, cut to fit. Never within a character: it would refuse the dead letter,
 * too. */
static void
stream_refusal(const struct pg_error *error, char detail[STREAM_DETAIL_MAX])
{
    size_t len;

    snprintf(detail, STREAM_DETAIL_MAX, "%s %.80s", error->sqlstate, error->message);
    len = strlen(detail);
    while (len > 0 && !copy_text_valid(aff_slice(detail, len))) {
        detail[--len] = '\0';
    }
}

/* Takes one batch apart: each record under its own savepoint, those that fail become dead letters.
 */
static bool
stream_store_apart(struct stream *stream, const struct entry *entry, struct pg_error *error)
{
    struct walk walk = {0};
    struct aff_frame frame;
    char detail[STREAM_DETAIL_MAX] = "";
    unsigned refused = 0;

    while (stream_walk(stream, entry, &walk, &frame)) {
        size_t dead = stream->dead_count;
        uint64_t stored = stream->stored;

        if (!pg_command(stream->pg, "savepoint record", error)) {
            return false;
        }

        if (stream->kind->store(stream, entry, 1, walk.record, error)) {
            if (!pg_command(stream->pg, "release savepoint record", error)) {
                return false;
            }

            continue;
        }

        if (error->class != PG_CLASS_POISON) {
            return false;
        }

        stream_refusal(error, detail);
        stream->dead_count = dead;
        stream->stored = stored;
        if (!pg_command(
                stream->pg, "rollback to savepoint record; release savepoint record", error)) {
            return false;
        }

        stream_bury(stream, entry, walk.record, "refused", detail, stream_frame_bytes(&frame));
        role_progress(stream->role);
        refused++;
    }

    if (refused > 0) {
        log_warning(
            "%u of %u records of a batch were refused and are dead letters; the last because of %s",
            refused, entry->batch.records, detail);
    }

    return true;
}

/* One transaction. `apart`: there is one entry, and its records go one by one. */
static bool
stream_attempt(struct stream *stream, struct entry *entries, size_t count, bool apart,
    bool read_ahead, struct pg_error *error)
{
    bool ok;

    stream->dead_count = 0;
    stream->stored = 0;
    for (size_t i = 0; i < count; i++) {
        if (entries[i].state == ENTRY_ACCEPTED || entries[i].state == ENTRY_REPEATED) {
            entries[i].state = ENTRY_NEW;
        }
    }

    if (stream->kind->begin != NULL) {
        stream->kind->begin(stream);
    }

    stream->begun_ms = clock_monotonic_ms();
    ok = pg_command(stream->pg, "begin", error) && !pg_fault(AFF_FAULT("stream.begun"), error) &&
         stream_accept(stream, entries, count, error) &&
         !pg_fault(AFF_FAULT("stream.accepted"), error);
    stream->accepted_ms = clock_monotonic_ms();
    if (ok && !apart) {
        ok = stream->kind->store(stream, entries, count, -1, error);
    } else if (ok && entries[0].state == ENTRY_ACCEPTED) {
        ok = stream_store_apart(stream, &entries[0], error);
    }

    ok = ok && (stream->kind->finish == NULL || stream->kind->finish(stream, error));

    stream_bury_junk(stream, entries, count);
    if (ok && stream->dead_failed) {
        return stream_no_memory(error);
    }

    stream->stored_ms = clock_monotonic_ms();
    return ok && !pg_fault(AFF_FAULT("stream.stored"), error) && stream_write_dead(stream, error) &&
           !pg_fault(AFF_FAULT("stream.buried"), error) &&
           stream_commit(stream, read_ahead, error) &&
           !pg_fault(AFF_FAULT("stream.committed"), error);
}

static void
stream_tally(struct stream *stream, const struct entry *entries, size_t count)
{
    log_debug("%zu entries, %llu records: inbox %lld ms, store %lld ms, commit %lld ms", count,
        (unsigned long long) stream->stored, (long long) (stream->accepted_ms - stream->begun_ms),
        (long long) (stream->stored_ms - stream->accepted_ms),
        (long long) (clock_monotonic_ms() - stream->stored_ms));

    role_count(stream->role, COUNTER_TRANSACTIONS, 1);
    role_count(stream->role, COUNTER_RECORDS, stream->stored);
    role_count(stream->role, COUNTER_DEAD_LETTERS, stream->dead_count);
    for (size_t i = 0; i < count; i++) {
        role_count(stream->role, COUNTER_REPEATED, entries[i].state == ENTRY_REPEATED);
    }

    role_progress(stream->role);
}

/* Applies a load; poison is isolated. */
static bool
stream_apply(struct stream *stream, struct load *load, bool read_ahead)
{
    struct pg_error error;

    if (stream_attempt(stream, load->entries, load->count, false, read_ahead, &error)) {
        stream_tally(stream, load->entries, load->count);
        return true;
    }

    if (error.class != PG_CLASS_POISON) {
        return role_failed_pg(stream->role, "storing", &error);
    }

    for (size_t i = 0; i < load->count; i++) {
        struct entry *entry = &load->entries[i];
        /* For the first, the load's transaction is still to be ended; each of the others ended its
         * own. */
        bool ok = i != 0 || pg_command(stream->pg, "rollback", &error);

        ok = ok && stream_attempt(stream, entry, 1, false, false, &error);
        if (!ok && error.class == PG_CLASS_POISON) {
            ok = pg_command(stream->pg, "rollback", &error) &&
                 stream_attempt(stream, entry, 1, true, false, &error);
        }

        if (!ok) {
            return role_failed_pg(stream->role, "storing a batch by itself", &error);
        }

        stream_tally(stream, entry, 1);
    }

    return true;
}

/* --- settling --- */

static bool
stream_append_acks(struct stream *stream, const struct load *load)
{
    uint64_t spool = 0, segment = 0;
    bool any = false;

    for (size_t i = 0; i < load->count; i++) {
        const struct entry *entry = &load->entries[i];
        uint8_t seal[AFF_ACK_BYTES];
        char key[64];

        if (entry->state != ENTRY_ACCEPTED && entry->state != ENTRY_REPEATED) {
            continue;
        }

        aff_store_le64(seal, aff_ack_seal(&entry->batch, &stream->ring, entry->batch.key));
        snprintf(key, sizeof(key), "aff:acked:%016llx:%llu",
            (unsigned long long) entry->batch.spool_id, (unsigned long long) entry->batch.segment);
        if (!redis_append(&stream->redis, "SETRANGE %s %llu %b", key,
                (unsigned long long) entry->batch.sequence * AFF_ACK_BYTES, seal, sizeof(seal))) {
            return false;
        }

        if (!any || spool != entry->batch.spool_id || segment != entry->batch.segment) {
            any = true;
            spool = entry->batch.spool_id;
            segment = entry->batch.segment;
            if (!redis_append(&stream->redis, "EXPIRE %s " ACK_TTL_S, key)) {
                return false;
            }
        }
    }

    return true;
}

static bool
stream_append_xacks(struct stream *stream, const struct load *load, unsigned index)
{
    const char *argv[3 + XACK_IDS] = {"XACK", stream->keys[index], STREAM_GROUP};
    int argc = 3;

    for (size_t i = 0; i < load->count; i++) {
        if (load->entries[i].stream == index) {
            argv[argc++] = load->entries[i].id;
        }

        if (argc > 3 && (argc == 3 + XACK_IDS || i + 1 == load->count)) {
            if (!redis_append_argv(&stream->redis, argc, argv, NULL)) {
                return false;
            }

            argc = 3;
        }
    }

    return true;
}

static bool
stream_settle(struct stream *stream, struct load *load)
{
    bool ok = stream_append_acks(stream, load);

    /* In a build with fault points the seals travel alone, so that there is a step between. */
    ok = ok && (!AFF_FAULTS || redis_collect(&stream->redis)) && !AFF_FAULT("stream.acknowledged");

    for (unsigned i = 0; ok && i < stream->streams; i++) {
        ok = stream_append_xacks(stream, load, i);
    }

    ok = ok && redis_collect(&stream->redis) && !AFF_FAULT("stream.settled");
    if (!ok) {
        return role_failed_redis(stream->role, "acknowledging", &stream->redis);
    }

    role_count(stream->role, COUNTER_ENTRIES, load->count);
    return true;
}

static bool
stream_process(struct stream *stream, bool read_ahead)
{
    bool ok =
        stream_apply(stream, &stream->load, read_ahead) && stream_settle(stream, &stream->load);

    load_clear(&stream->load);
    return ok;
}

/* --- upkeep --- */

static long long
stream_group_number(const redisReply *group, const char *field, const char **text)
{
    for (size_t i = 0; i + 1 < group->elements; i += 2) {
        if (group->element[i]->type == REDIS_REPLY_STRING &&
            strcmp(group->element[i]->str, field) == 0) {
            *text = group->element[i + 1]->type == REDIS_REPLY_STRING ? group->element[i + 1]->str
                                                                      : NULL;
            return group->element[i + 1]->type == REDIS_REPLY_INTEGER
                       ? group->element[i + 1]->integer
                       : 0;
        }
    }

    *text = NULL;
    return 0;
}

/* Where our group stands in one stream. */
struct group_state {
    char last_delivered[REDIS_ID_MAX];
    char oldest_pending[REDIS_ID_MAX]; /* empty if none is pending */
    uint64_t pending;
    uint64_t lag;
};

static bool
stream_group_state(struct stream *stream, unsigned index, struct group_state *state)
{
    redisReply *groups = redis_command(&stream->redis, "XINFO GROUPS %s", stream->keys[index]);
    redisReply *pending;
    const char *text;

    *state = (struct group_state){.last_delivered = "0-0"};
    if (groups == NULL) {
        return false;
    }

    for (size_t i = 0; i < groups->elements; i++) {
        stream_group_number(groups->element[i], "name", &text);
        if (text == NULL || strcmp(text, STREAM_GROUP) != 0) {
            continue;
        }

        state->lag = (uint64_t) stream_group_number(groups->element[i], "lag", &text);
        stream_group_number(groups->element[i], "last-delivered-id", &text);
        snprintf(state->last_delivered, sizeof(state->last_delivered), "%s",
            text == NULL ? "0-0" : text);
    }
    freeReplyObject(groups);

    pending = redis_command(&stream->redis, "XPENDING %s " STREAM_GROUP, stream->keys[index]);
    if (pending == NULL) {
        return false;
    }

    if (pending->elements >= 2 && pending->element[0]->type == REDIS_REPLY_INTEGER) {
        state->pending = (uint64_t) pending->element[0]->integer;
        if (redis_is_id(pending->element[1])) {
            snprintf(state->oldest_pending, sizeof(state->oldest_pending), "%s",
                pending->element[1]->str);
        }
    }
    freeReplyObject(pending);
    return true;
}

static bool
stream_one_entry(const redisReply *reply)
{
    return reply->elements == 1 && reply->element[0]->elements == 2 &&
           redis_is_id(reply->element[0]->element[0]);
}

/* Unix ms of the oldest entry that is not committed; 0 if there is none, negative on an error. */
static int64_t
stream_oldest_ms(struct stream *stream, unsigned index, const struct group_state *state)
{
    redisReply *reply;
    int64_t oldest = 0;

    if (state->oldest_pending[0] != '\0') {
        return redis_id_ms(state->oldest_pending);
    }

    reply = redis_command(
        &stream->redis, "XRANGE %s (%s + COUNT 1", stream->keys[index], state->last_delivered);
    if (reply == NULL) {
        return -1;
    }

    if (stream_one_entry(reply)) {
        oldest = redis_id_ms(reply->element[0]->element[0]->str);
    }

    freeReplyObject(reply);
    return oldest;
}

static bool
stream_gauges(struct stream *stream)
{
    int64_t now = redis_time_ms(&stream->redis);
    uint64_t length = 0, lag = 0, pending = 0;
    int64_t age = 0;

    for (unsigned i = 0; i < stream->streams; i++) {
        struct group_state state;
        redisReply *reply;
        int64_t oldest;

        if (now < 0 || !stream_group_state(stream, i, &state) ||
            (oldest = stream_oldest_ms(stream, i, &state)) < 0 ||
            (reply = redis_command(&stream->redis, "XLEN %s", stream->keys[i])) == NULL) {
            return false;
        }

        length += (uint64_t) reply->integer;
        lag += state.lag;
        pending += state.pending;
        if (oldest > 0 && now - oldest > age) {
            age = now - oldest;
        }

        freeReplyObject(reply);
    }

    role_gauge(stream->role, GAUGE_LENGTH, length);
    role_gauge(stream->role, GAUGE_LAG, lag);
    role_gauge(stream->role, GAUGE_PENDING, pending);
    role_gauge(stream->role, GAUGE_OLDEST_MS, (uint64_t) age);
    return true;
}

static bool
stream_due(int64_t *next, int64_t interval)
{
    int64_t now = clock_monotonic_ms();

    if (now < *next) {
        return false;
    }

    *next = now + interval;
    return true;
}

/*
 * A stream that is large in a Redis that is nearly full: what is kept there for a replay must not
 * take the room of what comes. Negative on an error.
 */
static int
stream_is_crowded(struct stream *stream, unsigned index, uint64_t *used, uint64_t *most)
{
    char value[32];
    redisReply *reply;
    bool large;

    if (!redis_info(&stream->redis, "memory", "maxmemory", value, sizeof(value))) {
        return -1;
    }

    *most = strtoull(value, NULL, 10);

    if (!redis_info(&stream->redis, "memory", "used_memory", value, sizeof(value))) {
        return -1;
    }

    *used = strtoull(value, NULL, 10);

    if (*most == 0 || *used < *most - *most / CROWDED_PART) {
        return 0;
    }

    reply = redis_command(&stream->redis, "MEMORY USAGE %s", stream->keys[index]);
    if (reply == NULL) {
        /* Not allowed to ask: then it may be the one. */
        return stream->redis.context == NULL ? -1 : 1;
    }

    large = (uint64_t) reply->integer > *most / LARGE_PART;
    freeReplyObject(reply);
    return large;
}

/* Unix ms from which on acknowledged entries are kept; negative on an error. */
static int64_t
stream_kept_from(struct stream *stream, unsigned index, const struct group_state *state,
    int64_t now, bool *crowded)
{
    int64_t from = now - stream->role->config->run.replay_window;
    uint64_t used = 0, most = 0;
    int answer = stream_is_crowded(stream, index, &used, &most);
    redisReply *reply;
    int64_t middle = 0;

    *crowded = answer > 0;
    if (answer <= 0) {
        return answer < 0 ? -1 : from;
    }

    /* The older half goes, and half of the rest the next time. */
    reply = redis_command(&stream->redis, "XRANGE %s - + COUNT 1", stream->keys[index]);
    if (reply == NULL) {
        return -1;
    }

    if (stream_one_entry(reply)) {
        middle = redis_id_ms(reply->element[0]->element[0]->str);
        middle += (redis_id_ms(state->last_delivered) - middle) / 2;
    }

    freeReplyObject(reply);

    if (middle <= from) {
        return from;
    }

    if (stream_due(&stream->next_warning_ms, WARNING_INTERVAL_MS)) {
        log_warning("Redis uses %llu of %llu MiB: of %s the last %lld s are kept for a replay, not "
                    "%lld; raise maxmemory or lower run.replay_window",
            (unsigned long long) used >> 20, (unsigned long long) most >> 20, stream->keys[index],
            (long long) (now - middle) / 1000,
            (long long) stream->role->config->run.replay_window / 1000);
    }

    return middle;
}

/* One stream, up to `limit`. Redis drops so many at a time, and is asked again. */
static bool
stream_trim_to(struct stream *stream, unsigned index, const char *limit)
{
    for (unsigned round = 0; round < TRIM_ROUNDS_MAX; round++) {
        redisReply *reply =
            redis_command(&stream->redis, "XTRIM %s MINID ~ %s", stream->keys[index], limit);
        long long trimmed;

        if (reply == NULL) {
            return false;
        }

        trimmed = reply->integer;
        role_count(stream->role, COUNTER_TRIMMED, (uint64_t) trimmed);
        freeReplyObject(reply);

        if (trimmed == 0) {
            break;
        }
    }

    return true;
}

/*
 * Drops what is acknowledged and older than the replay window. The group's position is read first:
 * what is not pending afterwards and not behind it was acknowledged.
 */
static bool
stream_trim(struct stream *stream)
{
    int64_t now = redis_time_ms(&stream->redis);

    for (unsigned i = 0; i < stream->streams; i++) {
        struct group_state state;
        char window[48];
        const char *limit = window;
        bool crowded;
        int64_t from;

        if (now < 0 || !stream_group_state(stream, i, &state) ||
            (from = stream_kept_from(stream, i, &state, now, &crowded)) < 0) {
            return false;
        }

        snprintf(window, sizeof(window), "%lld-0", (long long) from);
        if (redis_id_compare(state.last_delivered, limit) < 0) {
            limit = state.last_delivered;
        }

        if (state.oldest_pending[0] != '\0' && redis_id_compare(state.oldest_pending, limit) < 0) {
            limit = state.oldest_pending;
        }

        if (!stream_trim_to(stream, i, limit)) {
            return false;
        }

        if (AFF_FAULT("stream.trimmed")) {
            return false;
        }

        if (crowded) {
            stream->next_trim_ms = clock_monotonic_ms() + CROWDED_INTERVAL_MS;
        }
    }

    return true;
}

/* Makes entries ours that others took long ago; they are then read like our own pending ones. */
static bool
stream_claim(struct stream *stream)
{
    for (unsigned i = 0; i < stream->streams; i++) {
        char cursor[REDIS_ID_MAX] = "0-0";

        for (unsigned round = 0; round < CLAIM_ROUNDS_MAX; round++) {
            redisReply *reply = redis_command(&stream->redis,
                "XAUTOCLAIM %s " STREAM_GROUP " %s %lld %s COUNT 100 JUSTID", stream->keys[i],
                stream->consumer, (long long) stream->role->config->run.claim_idle, cursor);

            if (reply == NULL) {
                return false;
            }

            if (reply->elements >= 2 && reply->element[1]->elements > 0) {
                role_count(stream->role, COUNTER_CLAIMED, reply->element[1]->elements);
                snprintf(stream->cursors[i], sizeof(stream->cursors[i]), "0-0");
            }

            if (reply->elements >= 3 && reply->element[2]->elements > 0) {
                role_count(stream->role, COUNTER_LOST, reply->element[2]->elements);
                log_error("%zu pending entries of %s were deleted before they were committed; "
                          "their producers send "
                          "them again",
                    reply->element[2]->elements, stream->keys[i]);
            }

            snprintf(cursor, sizeof(cursor), "%s",
                reply->elements >= 1 && redis_is_id(reply->element[0]) ? reply->element[0]->str
                                                                       : "0-0");
            freeReplyObject(reply);
            if (AFF_FAULT("stream.claimed")) {
                return false;
            }

            if (strcmp(cursor, "0-0") == 0) {
                break;
            }
        }
    }

    return true;
}

static bool
stream_upkeep(struct stream *stream)
{
    struct pg_error error;

    if (stream_due(&stream->next_prepare_ms, PREPARE_INTERVAL_MS) &&
        !stream->kind->prepare(stream, &error)) {
        return role_failed_pg(stream->role, "preparing", &error);
    }

    if (stream->kind->turn != NULL && stream_due(&stream->next_turn_ms, TURN_INTERVAL_MS) &&
        !stream->kind->turn(stream, &error)) {
        return role_failed_pg(stream->role, "resolving", &error);
    }

    if (stream->role->lane != 0) {
        return true;
    }

    /* NOGROUP in the rest: Redis was emptied under us; the next read makes the group anew. */
    if ((stream_due(&stream->next_gauge_ms, GAUGE_INTERVAL_MS) && !stream_gauges(stream)) ||
        (stream_due(&stream->next_trim_ms, TRIM_INTERVAL_MS) && !stream_trim(stream)) ||
        (stream_due(&stream->next_claim_ms, stream->role->config->run.claim_idle / 4) &&
            !stream_claim(stream))) {
        if (stream->redis.context == NULL ||
            (strncmp(stream->redis.error, "NOGROUP", 7) != 0 &&
                strncmp(stream->redis.error, "ERR no such key", 15) != 0)) {
            return role_failed_redis(stream->role, "looking after the streams", &stream->redis);
        }
    }

    return true;
}

/* --- replay --- */

static bool
stream_replay_one(struct stream *stream, unsigned index)
{
    struct group_state state;
    int64_t now = redis_time_ms(&stream->redis);
    uint64_t entries = 0;
    char from[56];

    if (now < 0 || !stream_group_state(stream, index, &state)) {
        return role_failed_redis(stream->role, "replaying", &stream->redis);
    }

    snprintf(
        from, sizeof(from), "%lld-0", (long long) (now - stream->role->config->run.replay_window));

    while (!role_should_end(stream->role)) {
        const char *last = NULL;
        size_t known = stream->load.count;
        unsigned asked = stream->read_count;
        redisReply *reply = redis_command(&stream->redis, "XRANGE %s %s %s COUNT %u",
            stream->keys[index], from, state.last_delivered, asked);
        size_t got = reply == NULL ? 0 : reply->elements;

        if (reply == NULL) {
            return role_failed_redis(stream->role, "replaying", &stream->redis);
        }

        if (!load_own(&stream->load, reply) ||
            !load_add(stream, &stream->load, index, reply, &last)) {
            return role_failed(stream->role, "out of memory");
        }

        stream_learn(stream, &stream->load, known);
        entries += got;
        if (last != NULL) {
            snprintf(from, sizeof(from), "(%s", last);
        }

        if (stream->load.count != 0 && (got < asked || load_full(stream, &stream->load)) &&
            !stream_process(stream, false)) {
            return false;
        }

        if (got < asked) {
            role_count(stream->role, COUNTER_REPLAYED, entries);
            if (entries != 0) {
                log_info("%s: replayed %llu entries of the last %lld s", stream->keys[index],
                    (unsigned long long) entries,
                    (long long) stream->role->config->run.replay_window / 1000);
            }

            return true;
        }
    }

    return role_failed(stream->role, "stopped while replaying");
}

/* Where Redis remembers another PostgreSQL than this one, or none, the window goes through the
 * inbox again. */
static bool
stream_replay(struct stream *stream)
{
    if (stream->role->lane != 0) {
        return true;
    }

    for (unsigned i = 0; i < stream->streams; i++) {
        redisReply *reply =
            redis_command(&stream->redis, "GET aff:postgres:%s:%u", stream->kind->name, i);
        bool same;

        if (reply == NULL) {
            return role_failed_redis(stream->role, "GET", &stream->redis);
        }

        same = reply->type == REDIS_REPLY_STRING && strcmp(reply->str, stream->identity) == 0;
        if (!same && reply->type == REDIS_REPLY_STRING) {
            log_warning("PostgreSQL was %s and is %s: a failover or restore; replaying %s",
                reply->str, stream->identity, stream->keys[i]);
        }

        freeReplyObject(reply);
        if (same) {
            continue;
        }

        if (!stream_replay_one(stream, i) || AFF_FAULT("stream.replayed")) {
            return false;
        }

        reply = redis_command(
            &stream->redis, "SET aff:postgres:%s:%u %s", stream->kind->name, i, stream->identity);
        if (reply == NULL) {
            return role_failed_redis(stream->role, "SET", &stream->redis);
        }

        freeReplyObject(reply);
    }

    return true;
}

/* --- a life --- */

static bool
stream_connect(struct stream *stream)
{
    struct role *role = stream->role;
    struct pg_error error;
    char message[CONFIG_ERROR_MAX];

    if (!config_read_keys(role->config, &stream->ring, message)) {
        return role_failed(role, "master keys: %s", message);
    }

    if (!redis_connect(&stream->redis, role->config)) {
        return role_failed_redis(role, "connecting", &stream->redis);
    }

    role_progress(role);
    stream->pg = pg_connect(role->config, role->name, &error);
    if (stream->pg == NULL) {
        return role_failed_pg(role, "connecting", &error);
    }

    role_progress(role);
    stream->next_prepare_ms = clock_monotonic_ms() + PREPARE_INTERVAL_MS;
    if (!pg_identity(stream->pg, stream->identity, &error) ||
        !stream->kind->prepare(stream, &error)) {
        return role_failed_pg(role, "preparing", &error);
    }

    return true;
}

static bool
stream_live(struct stream *stream)
{
    /* Upkeep first: in a full Redis nothing can be settled before something was trimmed. */
    if (!stream_connect(stream) || !stream_make_groups(stream) || !stream_upkeep(stream) ||
        !stream_replay(stream)) {
        return role_should_end(stream->role) && stream->pg != NULL &&
               PQstatus(stream->pg) == CONNECTION_OK;
    }

    while (!role_should_end(stream->role)) {
        struct load swap = stream->load;

        /* What was read ahead is next; the old load's memory is used again. */
        stream->load = stream->next;
        stream->next = swap;
        if (!stream_gather(stream, &stream->load, true) ||
            (stream->load.count != 0 && !stream_process(stream, true)) || !stream_upkeep(stream)) {
            return false;
        }

        if (stream->load.count == 0 && !pg_alive(stream->pg)) {
            return role_failed(stream->role, "PostgreSQL closed the connection");
        }

        role_up(stream->role);
    }

    /* What was read ahead stays pending; the next life reads it first. */
    return true;
}

bool
stream_serve(struct role *role, const struct stream_kind *kind, int64_t batch_bytes,
    int64_t batch_delay_ms, void *data)
{
    struct stream stream = {.role = role,
        .kind = kind,
        .streams = (unsigned) role->config->redis.streams,
        .batch_bytes = batch_bytes,
        .batch_delay_ms = batch_delay_ms,
        .read_count = 1,
        .data = data};
    bool ok = false;

    if (role->lane == 0) {
        snprintf(stream.consumer, sizeof(stream.consumer), "%s", role->config->run.consumer);
    } else {
        snprintf(stream.consumer, sizeof(stream.consumer), "%s:%u", role->config->run.consumer,
            role->lane + 1);
    }

    stream.keys = calloc(stream.streams, sizeof(*stream.keys));
    stream.cursors = calloc(stream.streams, sizeof(*stream.cursors));

    if (stream.keys == NULL || stream.cursors == NULL) {
        role_failed(role, "out of memory");
    } else {
        for (unsigned i = 0; i < stream.streams; i++) {
            snprintf(stream.keys[i], sizeof(stream.keys[i]), "aff:%s:%u", kind->name, i);
            snprintf(stream.cursors[i], sizeof(stream.cursors[i]), "0-0");
        }

        ok = stream_live(&stream);
    }

    load_free(&stream.load);
    load_free(&stream.next);
    redis_close(&stream.redis);
    PQfinish(stream.pg);
    aff_keyring_wipe(&stream.ring);
    free(stream.dead);
    free(stream.keys);
    free(stream.cursors);
    return ok;
}
