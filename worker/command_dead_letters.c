/*
 * `dead-letters`: what could not be applied, and applying it once what stood against it was put
 * right.
 *
 * A dead letter is replayed at most once, and ends in the same books as if it had been applied in
 * its time:
 *
 *   - what the database refused, which is kept as JSON: by affiliate.dead_letter_replay();
 *   - a record that could not be stored or read, which is kept as its frame, and the rest of a
 *     damaged batch: here, as the daemon would, under the name of its batch;
 *   - a whole batch, of no key or in the wrong stream: it goes back to its stream, where the inbox
 *     takes it once.
 *
 * Each is one transaction that locks the dead letter, applies the record and marks it. A batch is
 * put into its stream before that commits: killed in between, it goes there once more, which the
 * inbox absorbs.
 */

#include "worker/control.h"
#include "worker/dump.h"
#include "worker/redis.h"
#include "worker/rows.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define DAY_MS           86400000ULL
#define COPY_OID_BYTEA   17
#define DEAD_LETTER_TEXT 256
#define CLICK_DAYS_AHEAD 1 /* a click from later than tomorrow is none */

struct letter {
    const char *id;
    char reason[64];
    int channel;
    uint64_t spool_id;
    uint64_t segment;
    uint32_t sequence;
    int64_t record; /* -1: the batch as a whole */
    struct aff_slice payload;
    PGresult *result; /* owns the payload */
};

struct replay {
    const struct config *config;
    PGconn *conn;
    struct copy_buffer rows;
    unsigned staged; /* conversions on the stage */
    struct pg_error error;
    char why[DEAD_LETTER_TEXT]; /* set where it was no error of PostgreSQL */
};

static bool replay_refuse(struct replay *replay, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static bool
replay_refuse(struct replay *replay, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(replay->why, sizeof(replay->why), format, args);
    va_end(args);
    return false;
}

static const char replay_lock_sql[] =
    "select reason, channel, spool_id, segment, sequence, coalesce(record, -1), replayed_at is not "
    "null, "
    "coalesce(payload, '') from affiliate.dead_letter where dead_letter_id = $1::bigint for update";

/* Every column comes in binary, for the payload's sake. */
static uint64_t
replay_number(const PGresult *result, int column)
{
    const uint8_t *p = (const uint8_t *) PQgetvalue(result, 0, column);
    uint64_t value = 0;
    int len = PQgetlength(result, 0, column);

    for (int i = 0; i < len; i++) {
        value = value << 8 | p[i];
    }

    return value;
}

static bool
replay_lock(struct replay *replay, struct letter *letter)
{
    const char *values[] = {letter->id};

    letter->result = pg_query(replay->conn, replay_lock_sql, 1, values, 1, &replay->error);
    if (letter->result == NULL) {
        return false;
    }

    if (PQntuples(letter->result) == 0) {
        return replay_refuse(replay, "there is none with this id");
    }

    snprintf(letter->reason, sizeof(letter->reason), "%.*s", PQgetlength(letter->result, 0, 0),
        PQgetvalue(letter->result, 0, 0));
    letter->channel = (int) replay_number(letter->result, 1);
    letter->spool_id = replay_number(letter->result, 2);
    letter->segment = replay_number(letter->result, 3);
    letter->sequence = (uint32_t) replay_number(letter->result, 4);
    letter->record = (int32_t) replay_number(letter->result, 5);
    letter->payload =
        aff_slice(PQgetvalue(letter->result, 0, 7), (size_t) PQgetlength(letter->result, 0, 7));

    return replay_number(letter->result, 6) == 0 || replay_refuse(replay, "was replayed before");
}

/* --- clicks --- */

static bool
replay_click_is_there(struct replay *replay, const struct aff_click *click, bool *there)
{
    uint64_t merchant = htobe64(click->merchant_id);
    const char *values[] = {(const char *) click->id, (const char *) &merchant};
    PGresult *result =
        PQexecParams(replay->conn, "select from affiliate.click where id = $1 and merchant_id = $2",
            2, (const Oid[2]){2950 /* uuid */, COPY_OID_INT8}, values,
            (const int[2]){AFF_UUID_BYTES, 8}, (const int[2]){1, 1}, 0);
    bool ok = PQresultStatus(result) == PGRES_TUPLES_OK;

    if (ok) {
        *there = PQntuples(result) != 0;
    } else {
        pg_error_of(replay->conn, result, &replay->error);
    }

    PQclear(result);
    return ok;
}

/* Its day has a partition, or gets one if clicks of that day are still kept. */
static bool
replay_click_day(struct replay *replay, const struct aff_click *click)
{
    static const char sql[] =
        "select case "
        "when exists (select from affiliate.click_partitions() p where p.day = d.day) then 'there' "
        "when d.day > d.today + $3::integer then 'ahead' "
        "when $2::integer > 0 and d.day < d.today - $2::integer then 'old' "
        "else affiliate.create_click_partition(d.day) end "
        "from (select date '1970-01-01' + $1::integer as day, (now() at time zone 'UTC')::date as "
        "today) d";
    char day[24], retention[24], ahead[24];
    const char *values[] = {day, retention, ahead};
    PGresult *result;
    const char *answer;
    bool ok = true;

    snprintf(day, sizeof(day), "%" PRIu64, (uint64_t) (aff_uuid_ms(click->id) / DAY_MS));
    snprintf(retention, sizeof(retention), "%" PRId64, replay->config->partitions.retention);
    snprintf(ahead, sizeof(ahead), "%d", CLICK_DAYS_AHEAD);
    result = pg_query(replay->conn, sql, 3, values, 0, &replay->error);
    if (result == NULL) {
        return false;
    }

    answer = PQgetvalue(result, 0, 0);
    if (strcmp(answer, "old") == 0) {
        ok = replay_refuse(replay, "its click is older than partitions.retention");
    } else if (strcmp(answer, "ahead") == 0) {
        ok = replay_refuse(replay, "its click is of a day that has not come");
    }

    PQclear(result);
    return ok;
}

static bool
replay_click(struct replay *replay, uint8_t version, struct aff_slice payload)
{
    struct aff_click click;
    bool there = false;
    uint8_t *p;

    if (!aff_click_decode(version, payload, &click)) {
        return replay_refuse(replay, "is not a click that this program can read");
    }

    if (!replay_click_is_there(replay, &click, &there)) {
        return false;
    }

    if (there) {
        return true;
    }

    p = copy_room(&replay->rows, CLICK_ROW_MAX);
    if (p == NULL) {
        return replay_refuse(replay, "out of memory");
    }

    replay->rows.len += (size_t) (clicks_put_row(p, &click) - p);
    return replay_click_day(replay, &click) &&
           copy_begin(replay->conn,
               "copy affiliate.click (" CLICK_ROW_COLUMNS ") from stdin (format binary)",
               &replay->error) &&
           copy_send(replay->conn, &replay->rows, &replay->error) &&
           copy_end(replay->conn, &replay->error);
}

/* --- conversions --- */

static bool
replay_conversion(struct replay *replay, const struct letter *letter, int64_t record,
    uint8_t version, struct aff_slice payload)
{
    struct aff_batch batch = {
        .spool_id = letter->spool_id, .segment = letter->segment, .sequence = letter->sequence};
    struct aff_conversion conversion;
    const char *problem;
    uint8_t *p;

    if (!aff_conversion_decode(version, payload, &conversion)) {
        return replay_refuse(replay, "is not a conversion that this program can read");
    }

    problem = conversions_problem(&conversion);
    if (problem != NULL) {
        return replay_refuse(replay, "still: %s", problem);
    }

    p = copy_room(&replay->rows, CONVERSION_ROW_MAX);
    if (p == NULL) {
        return replay_refuse(replay, "out of memory");
    }

    replay->rows.len += (size_t) (conversions_put_row(p, &batch, record, &conversion) - p);
    replay->staged++;
    return true;
}

/* From the stage to the books; what would be a dead letter again is refused here. */
static bool
replay_apply(struct replay *replay)
{
    PGresult *result;
    bool ok;

    if (replay->staged == 0) {
        return true;
    }

    ok =
        pg_command(replay->conn, "select affiliate.conversion_stage()", &replay->error) &&
        copy_begin(replay->conn,
            "copy pg_temp.conversion_stage (" CONVERSION_ROW_COLUMNS ") from stdin (format binary)",
            &replay->error) &&
        copy_send(replay->conn, &replay->rows, &replay->error) &&
        copy_end(replay->conn, &replay->error);
    if (!ok) {
        return false;
    }

    result = pg_query(
        replay->conn, "select dead from affiliate.apply_conversions()", 0, NULL, 0, &replay->error);
    if (result == NULL) {
        return false;
    }

    ok = PQntuples(result) == 1 && strcmp(PQgetvalue(result, 0, 0), "0") == 0;
    PQclear(result);
    if (ok) {
        return true;
    }

    result = pg_query(replay->conn,
        "select reason || coalesce(': ' || detail, '') from affiliate.dead_letter where at = now() "
        "limit 1",
        0, NULL, 0, &replay->error);
    if (result != NULL) {
        replay_refuse(
            replay, "still %.200s", PQntuples(result) == 1 ? PQgetvalue(result, 0, 0) : "dead");
    }

    PQclear(result);
    return false;
}

/* --- records and batches --- */

static bool
replay_record(struct replay *replay, const struct letter *letter, int64_t record, uint8_t version,
    struct aff_slice payload)
{
    return letter->channel == AFF_CHANNEL_CLICKS
               ? replay_click(replay, version, payload)
               : replay_conversion(replay, letter, record, version, payload);
}

/* The frame of one record, or the rest of a batch behind one that could not be read: all of it, or
 * nothing. */
static bool
replay_frames(struct replay *replay, const struct letter *letter)
{
    uint32_t seed = aff_frame_seed(letter->spool_id, letter->segment);
    uint8_t type = letter->channel == AFF_CHANNEL_CLICKS ? AFF_FRAME_CLICK : AFF_FRAME_CONVERSION;
    struct aff_slice rest = letter->payload;
    int64_t record = letter->record < 0 ? 0 : letter->record;
    struct aff_frame frame;

    if (rest.len == 0) {
        return replay_refuse(replay, "has no bytes that could be applied");
    }

    while (rest.len != 0) {
        if (aff_frame_read(rest, seed, &frame) != AFF_FRAME_OK) {
            return replay_refuse(
                replay, "its bytes are damaged: see what is left of them in the spool's file");
        }

        if (frame.type != type) {
            return replay_refuse(replay, "is of type %u, which this program does not know here",
                (unsigned) frame.type);
        }

        if (!replay_record(replay, letter, record, frame.version, frame.payload)) {
            return false;
        }

        record++;
        rest.data += frame.length;
        rest.len -= frame.length;
    }

    return replay_apply(replay);
}

/* A whole stream entry: back to the stream of its channel, if a key of ours made it. */
static bool
replay_batch(struct replay *replay, const struct letter *letter)
{
    static const char *const names[] = {
        [AFF_CHANNEL_CLICKS] = "clicks", [AFF_CHANNEL_CONVERSIONS] = "conversions"};
    struct aff_keyring ring = {0};
    struct redis redis = {0};
    struct aff_batch batch;
    enum aff_batch_result result;
    char error[CONFIG_ERROR_MAX], key[64];
    redisReply *reply;

    if (!config_read_keys(replay->config, &ring, error)) {
        return replay_refuse(replay, "master keys: %.200s", error);
    }

    result = aff_batch_read(letter->payload, &ring, &batch);
    aff_keyring_wipe(&ring);
    if (result != AFF_BATCH_OK) {
        return replay_refuse(replay, "%s",
            result == AFF_BATCH_FORGED ? "still no master key made this batch"
                                       : "its bytes are no batch");
    }

    if (!redis_connect(&redis, replay->config)) {
        return replay_refuse(replay, "Redis: %.200s", redis.error);
    }

    snprintf(key, sizeof(key), "aff:%s:%" PRIu64, names[batch.channel],
        batch.spool_id % (uint64_t) replay->config->redis.streams);
    reply = redis_command(&redis, "XADD %s * " AFF_STREAM_FIELD " %b", key, letter->payload.data,
        letter->payload.len);
    if (reply == NULL) {
        replay_refuse(replay, "Redis: %.200s", redis.error);
    } else {
        freeReplyObject(reply);
    }

    redis_close(&redis);
    return reply != NULL;
}

static bool
replay_sql(struct replay *replay, const struct letter *letter)
{
    char command[64];
    const char *values[] = {command};
    PGresult *result;

    snprintf(command, sizeof(command), "{\"dead_letter\": \"%s\"}", letter->id);
    result = pg_query(replay->conn, "select affiliate.dead_letter_replay($1::jsonb)", 1, values, 0,
        &replay->error);
    PQclear(result);
    return result != NULL;
}

static bool
replay_mark(struct replay *replay, const struct letter *letter)
{
    const char *values[] = {letter->id};
    PGresult *result = pg_query(replay->conn, "select affiliate.dead_letter_replayed($1::bigint)",
        1, values, 0, &replay->error);

    PQclear(result);
    return result != NULL;
}

/* By reason, how. */
static bool
replay_dispatch(struct replay *replay, const struct letter *letter)
{
    static const char *const by_sql[] = {
        "unknown_merchant", "invalid_record", "idempotency_conflict"};
    static const char *const batches[] = {"forged_batch", "wrong_channel", "malformed_batch"};

    for (size_t i = 0; i < sizeof(by_sql) / sizeof(by_sql[0]); i++) {
        if (strcmp(letter->reason, by_sql[i]) == 0) {
            return replay_sql(replay, letter);
        }
    }

    for (size_t i = 0; i < sizeof(batches) / sizeof(batches[0]); i++) {
        if (strcmp(letter->reason, batches[i]) == 0) {
            return replay_batch(replay, letter) && replay_mark(replay, letter);
        }
    }

    if (letter->channel != AFF_CHANNEL_CLICKS && letter->channel != AFF_CHANNEL_CONVERSIONS) {
        return replay_refuse(replay, "is of a channel that this program does not know");
    }

    return replay_frames(replay, letter) && replay_mark(replay, letter);
}

/* One dead letter, one transaction. */
static bool
replay_one(struct replay *replay, const char *id)
{
    struct letter letter = {.id = id};
    struct pg_error ignored;
    bool ok;

    replay->why[0] = '\0';
    replay->rows.len = 0;
    replay->staged = 0;
    ok = pg_command(replay->conn, "begin", &replay->error) && replay_lock(replay, &letter) &&
         replay_dispatch(replay, &letter) && pg_command(replay->conn, "commit", &replay->error);

    if (!ok) {
        fprintf(stderr, "affiliated: dead letter %s: %s\n", id,
            replay->why[0] != '\0' ? replay->why : replay->error.message);
        pg_command(replay->conn, "rollback", &ignored);
    }

    PQclear(letter.result);
    return ok;
}

static void
replay_print(struct replay *replay, json_t *rows, const char *id)
{
    const char *values[] = {id};
    PGresult *result = pg_query(replay->conn,
        "select affiliate.dead_letter_json(d) from affiliate.dead_letter d where d.dead_letter_id "
        "= $1::bigint",
        1, values, 0, &replay->error);

    if (result != NULL && PQntuples(result) == 1) {
        json_array_append_new(rows, json_loads(PQgetvalue(result, 0, 0), 0, NULL));
    }

    PQclear(result);
}

static bool
replay_id_valid(const char *id)
{
    size_t len = strlen(id);

    return len >= 1 && len <= 18 && strspn(id, "0123456789") == len && id[0] != '0';
}

/* Those named, or all of a reason that are open now. What fails is told and does not keep the
 * others back. */
static bool
replay_all(struct replay *replay, const struct control_args *args, const char *reason, json_t *rows)
{
    bool ok = true;
    PGresult *result;

    for (unsigned i = 0; i < args->operands; i++) {
        if (replay_one(replay, args->operand[i])) {
            replay_print(replay, rows, args->operand[i]);
        } else {
            ok = false;
        }
    }

    if (reason == NULL) {
        return ok;
    }

    result = pg_query(replay->conn,
        "select dead_letter_id from affiliate.dead_letter where reason = $1 and replayed_at is "
        "null order by 1",
        1, &reason, 0, &replay->error);
    if (result == NULL) {
        control_failed(&replay->error);
        return false;
    }

    for (int i = 0; i < PQntuples(result) && PQstatus(replay->conn) == CONNECTION_OK; i++) {
        if (replay_one(replay, PQgetvalue(result, i, 0))) {
            replay_print(replay, rows, PQgetvalue(result, i, 0));
        } else {
            ok = false;
        }
    }

    PQclear(result);
    return ok && PQstatus(replay->conn) == CONNECTION_OK;
}

/* `--dead-letter ID`, which the other verbs know, is one more operand; so args->operand has room
 * for it. */
static bool
replay_options(struct control_args *args, char **reason, char **named)
{
    *reason = NULL;
    *named = NULL;
    if (!control_take(args, "reason", reason) || !control_take(args, "dead_letter", named)) {
        return false;
    }

    if (*named != NULL) {
        args->operand[args->operands++] = *named;
    }

    if (json_object_size(args->fields) != 0) {
        fprintf(stderr, "affiliated: %s: is not a field of this command\n",
            json_object_iter_key(json_object_iter(args->fields)));
        return false;
    }

    for (unsigned i = 0; i < args->operands; i++) {
        if (!replay_id_valid(args->operand[i])) {
            fprintf(stderr, "affiliated: dead_letter: must be an id, a whole number from 1\n");
            return false;
        }
    }

    if ((args->operands == 0) == (*reason == NULL)) {
        fprintf(stderr,
            "affiliated dead-letters replay: takes ids, or --reason REASON for all of them\n");
        return false;
    }

    return true;
}

static int
replay_command(struct config *config, struct control_args *args)
{
    struct replay replay = {.config = config};
    char *reason, *named;
    json_t *rows = json_array();
    int code = COMMAND_USAGE;

    if (replay_options(args, &reason, &named)) {
        code = COMMAND_FAILED;
        replay.conn = control_connect(config, "replay");
        if (replay.conn != NULL && replay_all(&replay, args, reason, rows)) {
            code = COMMAND_OK;
        }

        control_print(rows, "dead_letter", true, args->json);
        if (control_flush() != COMMAND_OK) {
            code = COMMAND_FAILED;
        }
    }

    json_decref(rows);
    copy_free(&replay.rows);
    PQfinish(replay.conn);
    free(reason);
    free(named);
    return code;
}

/* --- list, show --- */

/* What a frame holds; of one that this program can't read, at least what it says of itself. */
static json_t *
dead_letters_decode_frame(const json_t *row, struct aff_slice bytes)
{
    const char *spool = json_string_value(json_object_get(row, "spool_id"));
    uint64_t segment = (uint64_t) json_integer_value(json_object_get(row, "segment"));
    struct aff_frame frame;
    json_t *decoded;

    if (spool == NULL || aff_frame_read(bytes, aff_frame_seed(strtoull(spool, NULL, 16), segment),
                             &frame) != AFF_FRAME_OK) {
        return NULL;
    }

    decoded = dump_record(frame.type, frame.version, frame.payload);
    if (decoded == NULL) {
        decoded = json_pack("{s:i, s:i, s:s}", "type", (int) frame.type, "version",
            (int) frame.version, "error", "not a record that this program can read");
    }

    return decoded;
}

/* What the payload says: JSON that the database kept, or a frame. */
static json_t *
dead_letters_decode(const json_t *row)
{
    const char *hex = json_string_value(json_object_get(row, "payload"));
    size_t len = hex == NULL ? 0 : strlen(hex) / 2;
    uint8_t *bytes = malloc(len + 1);
    json_t *decoded = NULL;

    if (bytes == NULL || len == 0) {
        free(bytes);
        return NULL;
    }

    for (size_t i = 0; i < len; i++) {
        const char pair[] = {hex[2 * i], hex[2 * i + 1], '\0'};

        bytes[i] = (uint8_t) strtoul(pair, NULL, 16);
    }

    decoded = dead_letters_decode_frame(row, aff_slice(bytes, len));
    if (decoded == NULL) {
        decoded = json_loadb((const char *) bytes, len, JSON_REJECT_DUPLICATES, NULL);
    }

    free(bytes);
    return decoded;
}

static int
dead_letters_call(struct config *config, const char *verb, struct control_args *args)
{
    bool list = strcmp(verb, "list") == 0;
    PGconn *conn = control_connect(config, "control");
    json_t *rows = NULL;
    int code = COMMAND_FAILED;

    if (conn != NULL) {
        rows =
            control_call(conn, list ? "dead_letter_list" : "dead_letter_show", args->fields, &code);
    }

    if (rows != NULL) {
        json_t *decoded = list ? NULL : dead_letters_decode(json_array_get(rows, 0));

        if (decoded != NULL) {
            json_object_set_new(json_array_get(rows, 0), "decoded", decoded);
        }

        control_print(rows, "dead_letter", list, args->json);
        code = control_flush();
    }

    json_decref(rows);
    PQfinish(conn);
    return code;
}

int
dead_letters_command(struct config *config, int argc, char **argv)
{
    const char *verb = argc < 2 ? "" : argv[1];
    struct control_args args;
    int code = COMMAND_USAGE;

    if (strcmp(verb, "list") != 0 && strcmp(verb, "show") != 0 && strcmp(verb, "replay") != 0) {
        fprintf(stderr, "affiliated dead-letters: say what to do: list show replay\n");
        return code;
    }

    if (control_parse(&args, argc - 2, argv + 2)) {
        if (strcmp(verb, "replay") == 0) {
            code = replay_command(config, &args);
        } else if (control_operand_field(&args, "dead_letter")) {
            code = dead_letters_call(config, verb, &args);
        }
    }

    control_args_free(&args);
    return code;
}
