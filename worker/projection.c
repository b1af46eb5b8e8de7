/*
 * Projection: links and keys from PostgreSQL to Redis, where the module reads them.
 *
 * PostgreSQL notes what changed; a change is deleted after Redis has the record, so that one killed
 * in between is written again. A record never replaces one of a higher version. aff:epoch says that
 * every link and key is there.
 *
 * Everything is written again when
 *   - aff:epoch is missing: Redis came back empty, or a rebuild was cut short;
 *   - Redis is another process than the one that was written to: it may have loaded an older state
 *     of itself;
 *   - PostgreSQL is another cluster or timeline: it may have lost changes, so versions prove
 *     nothing;
 *   - another master key is current: records must be signed before the old key is dropped.
 *
 * aff:projected remembers the last three. A rebuild deletes the epoch first and sets it last, and
 * only if the token it left in Redis is still there: a Redis that was emptied meanwhile must not be
 * taken for complete.
 */

#include "worker/role.h"

#include "protocol/chars.h"
#include "protocol/projection.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define TOKEN_CHARS  16
#define MARKER_MAX   (REDIS_RUN_ID_MAX + PG_IDENTITY_MAX + AFF_MASTER_KEY_ID_MAX + 4)
#define SCAN_COUNT   "500"
#define VERSION_TEXT "8, 15" /* where a record holds its version, little-endian */

struct projection {
    struct role *role;
    struct redis redis;
    PGconn *pg;
    struct aff_keyring ring;
    char identity[PG_IDENTITY_MAX];
    char marker[MARKER_MAX];
    char sha[48]; /* of projection_set_script */
    bool force;   /* write whatever the version says */
    int64_t next_check_ms;
};

/* What differs between links and keys. */
struct projected {
    const char *kind;   /* in projection_change and in Redis: aff:<kind>:NAME */
    const char *select; /* the record's columns, the name first */
    const char *name;   /* its column */
    size_t (*encode)(
        struct projection *projection, const PGresult *result, int row, uint8_t *out, size_t room);
};

/* Not by string comparison: that follows the server's locale. */
static const char projection_set_script[] =
    "local old = redis.call('GETRANGE', KEYS[1], " VERSION_TEXT ")\n"
    "if #old == 8 then\n"
    "  for i = 8, 1, -1 do\n"
    "    local a, b = old:byte(i), ARGV[1]:byte(8 + i)\n"
    "    if a > b then return 0 end\n"
    "    if a < b then break end\n"
    "  end\n"
    "end\n"
    "redis.call('SET', KEYS[1], ARGV[1])\n"
    "return 1\n";

static const char projection_finish_script[] =
    "if redis.call('GET', 'aff:rebuild') ~= ARGV[1] then return 0 end\n"
    "redis.call('DEL', 'aff:rebuild')\n"
    "redis.call('SET', 'aff:projected', ARGV[2])\n"
    "redis.call('SET', 'aff:epoch', ARGV[1])\n"
    "redis.call('PUBLISH', 'aff:invalidate', 'all')\n"
    "return 1\n";

static struct aff_slice
projection_text(const PGresult *result, int row, int column)
{
    return aff_slice(PQgetvalue(result, row, column), (size_t) PQgetlength(result, row, column));
}

static uint64_t
projection_number(const PGresult *result, int row, int column)
{
    return strtoull(PQgetvalue(result, row, column), NULL, 10);
}

static size_t
projection_encode_link(
    struct projection *projection, const PGresult *result, int row, uint8_t *out, size_t room)
{
    struct aff_slice hosts = projection_text(result, row, 12);
    struct aff_link link = {
        .code = projection_text(result, row, 0),
        .version = projection_number(result, row, 1),
        .link_id = projection_number(result, row, 2),
        .merchant_id = projection_number(result, row, 3),
        .campaign_id = projection_number(result, row, 4),
        .affiliate_id = projection_number(result, row, 5),
        .expires_ms = projection_number(result, row, 6),
        .state = (uint8_t) projection_number(result, row, 7),
        .livemode = PQgetvalue(result, row, 8)[0] == 't',
        .url = projection_text(result, row, 9),
        .param = projection_text(result, row, 10),
        .fallback = projection_text(result, row, 11),
    };

    while (hosts.len > 0 && link.hosts_count < AFF_LINK_HOSTS_MAX) {
        const uint8_t *end = memchr(hosts.data, '\n', hosts.len);
        size_t len = end == NULL ? hosts.len : (size_t) (end - hosts.data);

        link.hosts[link.hosts_count++] = aff_slice(hosts.data, len);
        len += end != NULL;
        hosts = aff_slice(hosts.data + len, hosts.len - len);
    }

    return aff_link_encode(&link, &projection->ring, out, room);
}

static size_t
projection_encode_key(
    struct projection *projection, const PGresult *result, int row, uint8_t *out, size_t room)
{
    struct aff_key key = {
        .id = projection_text(result, row, 0),
        .version = projection_number(result, row, 1),
        .merchant_id = projection_number(result, row, 2),
        .livemode = PQgetvalue(result, row, 3)[0] == 't',
        .revoked = PQgetvalue(result, row, 4)[0] == 't',
        .master_id = projection_text(result, row, 5),
    };

    return aff_key_encode(&key, &projection->ring, out, room);
}

static const struct projected projection_kinds[] = {
    {"link",
        "select code, version, link_id, merchant_id, campaign_id, affiliate_id, expires_ms, state, "
        "livemode, url, "
        "param, fallback, array_to_string(hosts, E'\\n') from affiliate.link_projection",
        "code", projection_encode_link},
    {"key",
        "select key_id, version, merchant_id, livemode, revoked, master_id from "
        "affiliate.key_projection",
        "key_id", projection_encode_key},
};

#define KINDS (sizeof(projection_kinds) / sizeof(projection_kinds[0]))

/* --- writing --- */

static bool
projection_failed_redis(struct projection *projection)
{
    return role_failed_redis(projection->role, "writing the projection", &projection->redis);
}

static bool
projection_announce(struct projection *projection, const struct projected *kind, const char *name)
{
    return redis_append(&projection->redis, "PUBLISH aff:invalidate %s:%s", kind->kind, name);
}

static bool
projection_drop(struct projection *projection, const struct projected *kind, const char *name)
{
    return redis_append(&projection->redis, "DEL aff:%s:%s", kind->kind, name);
}

/* Appends the write of one row. A row that can't be a record is taken out of Redis, and named. */
static bool
projection_write_row(
    struct projection *projection, const struct projected *kind, const PGresult *result, int row)
{
    uint8_t record[AFF_LINK_RECORD_MAX];
    const char *name = PQgetvalue(result, row, 0);
    size_t len = kind->encode(projection, result, row, record, sizeof(record));

    if (len == 0) {
        log_error(
            "%s %s can't be projected: a field is not allowed or too long; nginx will not know it",
            kind->kind, name);
        return projection_drop(projection, kind, name);
    }

    role_count(projection->role, COUNTER_PROJECTED, 1);
    if (projection->force) {
        return redis_append(&projection->redis, "SET aff:%s:%s %b", kind->kind, name, record, len);
    }

    return redis_append(&projection->redis, "EVALSHA %s 1 aff:%s:%s %b", projection->sha,
        kind->kind, name, record, len);
}

/* Appends the writes of all rows. */
static bool
projection_write(
    struct projection *projection, const struct projected *kind, const PGresult *result)
{
    for (int row = 0; row < PQntuples(result); row++) {
        if (!projection_write_row(projection, kind, result, row)) {
            return projection_failed_redis(projection);
        }
    }

    return true;
}

/* --- changes --- */

/* {"name",…} of the rows of `kind` (NULL: all) in one column of a result of names. The caller frees
 * it. */
static char *
projection_array(const PGresult *changes, int column, const char *kind)
{
    char *text = NULL;
    size_t len = 0;
    unsigned count = 0;
    FILE *out = open_memstream(&text, &len);

    if (out == NULL) {
        return NULL;
    }

    fputc('{', out);
    for (int row = 0; row < PQntuples(changes); row++) {
        if (kind == NULL || strcmp(PQgetvalue(changes, row, 1), kind) == 0) {
            /* Names are of [A-Za-z0-9_-]. Quoted, because one may be "null". */
            fprintf(out, "%s\"%s\"", count++ == 0 ? "" : ",", PQgetvalue(changes, row, column));
        }
    }
    fputc('}', out);

    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }

    return text;
}

static bool
projection_has(const PGresult *result, const char *name)
{
    /* Rows come ordered by name, bytewise. */
    int low = 0, high = PQntuples(result);

    while (low < high) {
        int middle = (low + high) / 2;
        int order = strcmp(PQgetvalue(result, middle, 0), name);

        if (order == 0) {
            return true;
        }

        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }

    return false;
}

static PGresult *
projection_rows(struct projection *projection, const struct projected *kind, const char *names)
{
    char sql[512];
    struct pg_error error;
    PGresult *result;

    snprintf(sql, sizeof(sql), "%s where %s = any ($1::text[]) order by %s collate \"C\"",
        kind->select, kind->name, kind->name);
    result = pg_query(projection->pg, sql, 1, &names, 0, &error);
    if (result == NULL) {
        role_failed_pg(projection->role, "reading the projection", &error);
    }

    return result;
}

/* Writes what the changes of one kind name, and tells the modules. What PostgreSQL has no more is
 * deleted. */
static bool
projection_apply_kind(
    struct projection *projection, const struct projected *kind, const PGresult *changes)
{
    char *names = projection_array(changes, 2, kind->kind);
    PGresult *result = names == NULL ? NULL : projection_rows(projection, kind, names);
    bool ok = result != NULL && projection_write(projection, kind, result);

    free(names);
    for (int row = 0; ok && row < PQntuples(changes); row++) {
        const char *name = PQgetvalue(changes, row, 2);

        if (strcmp(PQgetvalue(changes, row, 1), kind->kind) == 0) {
            ok = (projection_has(result, name) || projection_drop(projection, kind, name)) &&
                 projection_announce(projection, kind, name);
        }
    }

    PQclear(result);
    return ok;
}

/* Takes and writes a batch of changes; `*taken` tells how many. */
static bool
projection_changes(struct projection *projection, int *taken)
{
    struct role *role = projection->role;
    struct pg_error error;
    char batch[24];
    const char *values[] = {batch};
    PGresult *changes, *done;
    char *ids;
    bool ok = true;

    snprintf(batch, sizeof(batch), "%lld", (long long) role->config->projection.batch);
    changes = pg_query(projection->pg,
        "select change_id, kind, name from affiliate.projection_take($1::integer)", 1, values, 0,
        &error);
    if (changes == NULL) {
        return role_failed_pg(role, "taking changes", &error);
    }

    *taken = PQntuples(changes);
    ok = !AFF_FAULT("projection.taken") || role_failed(role, "an injected fault");
    for (size_t i = 0; ok && *taken > 0 && i < KINDS; i++) {
        ok = projection_apply_kind(projection, &projection_kinds[i], changes);
    }

    ok = ok && (redis_collect(&projection->redis) || projection_failed_redis(projection));
    ok = ok && (!AFF_FAULT("projection.written") || role_failed(role, "an injected fault"));
    if (ok && *taken > 0) {
        ids = projection_array(changes, 0, NULL);
        values[0] = ids;
        done = ids == NULL
                   ? NULL
                   : pg_query(projection->pg, "select affiliate.projection_done($1::bigint[])", 1,
                         values, 0, &error);
        ok = done != NULL || role_failed_pg(role, "settling changes", &error);
        PQclear(done);
        free(ids);
        role_count(role, COUNTER_TRANSACTIONS, 1);
    }

    PQclear(changes);
    return ok;
}

/* --- rebuild --- */

static bool
projection_page_all(struct projection *projection, const struct projected *kind)
{
    char sql[512], after[128] = "", batch[24];
    const char *values[] = {after, batch};
    struct pg_error error;
    int rows;

    snprintf(sql, sizeof(sql),
        "%s where %s > $1::text collate \"C\" order by %s collate \"C\" limit $2::integer",
        kind->select, kind->name, kind->name);
    snprintf(batch, sizeof(batch), "%lld", (long long) projection->role->config->projection.batch);

    do {
        PGresult *result = pg_query(projection->pg, sql, 2, values, 0, &error);
        bool ok;

        if (result == NULL) {
            return role_failed_pg(projection->role, "reading the projection", &error);
        }

        rows = PQntuples(result);
        ok = projection_write(projection, kind, result) &&
             (redis_collect(&projection->redis) || projection_failed_redis(projection));
        if (rows > 0) {
            snprintf(after, sizeof(after), "%s", PQgetvalue(result, rows - 1, 0));
        }

        PQclear(result);
        if (!ok) {
            return false;
        }

        if (role_should_end(projection->role)) {
            return role_failed(projection->role, "stopped while rebuilding");
        }
    } while (rows == (int) projection->role->config->projection.batch);

    return true;
}

/* Deletes records of one SCAN page that PostgreSQL does not know. */
static bool
projection_drop_strangers(
    struct projection *projection, const struct projected *kind, const redisReply *keys)
{
    size_t prefix = strlen("aff:") + strlen(kind->kind) + 1;
    char *names = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&names, &len);
    PGresult *result;
    bool ok = true;

    if (out == NULL) {
        return role_failed(projection->role, "out of memory");
    }

    fputc('{', out);
    for (size_t i = 0, count = 0; i < keys->elements; i++) {
        const char *name = keys->element[i]->str;

        if (keys->element[i]->type != REDIS_REPLY_STRING ||
            (size_t) keys->element[i]->len < prefix) {
            ok = false;
            break;
        }

        name += prefix;
        if (aff_word_valid(aff_slice_of(name), AFF_CODE_MAX)) {
            fprintf(out, "%s\"%s\"", count++ == 0 ? "" : ",", name);
        }
    }
    fputc('}', out);
    fclose(out);

    result = ok ? projection_rows(projection, kind, names) : NULL;
    free(names);
    if (!ok) {
        return role_failed(projection->role, "SCAN: Redis answers what is no key");
    }

    if (result == NULL) {
        return false;
    }

    for (size_t i = 0; ok && i < keys->elements; i++) {
        ok = projection_has(result, keys->element[i]->str + prefix) ||
             redis_append(&projection->redis, "DEL %s", keys->element[i]->str);
    }

    PQclear(result);
    return (ok && redis_collect(&projection->redis)) || projection_failed_redis(projection);
}

/* A PostgreSQL that went back in time may not know links that Redis still has. */
static bool
projection_scan_strangers(struct projection *projection, const struct projected *kind)
{
    char cursor[32] = "0";

    do {
        redisReply *reply = redis_command(
            &projection->redis, "SCAN %s MATCH aff:%s:* COUNT " SCAN_COUNT, cursor, kind->kind);
        bool ok;

        if (reply == NULL) {
            return projection_failed_redis(projection);
        }

        if (reply->elements != 2 || reply->element[0]->type != REDIS_REPLY_STRING) {
            freeReplyObject(reply);
            return role_failed(projection->role, "SCAN: Redis answers what is no page");
        }

        snprintf(cursor, sizeof(cursor), "%s", reply->element[0]->str);
        ok = reply->element[1]->elements == 0 ||
             projection_drop_strangers(projection, kind, reply->element[1]);
        freeReplyObject(reply);
        if (!ok) {
            return false;
        }

        role_progress(projection->role);
    } while (strcmp(cursor, "0") != 0);

    return true;
}

static bool
projection_rebuild(struct projection *projection, const char *reason)
{
    int64_t begun = clock_monotonic_ms();
    uint64_t before = atomic_load(&projection->role->values[COUNTER_PROJECTED]);
    char token[TOKEN_CHARS + 1];
    uint64_t random;
    redisReply *reply;
    bool complete;

    if (getrandom(&random, sizeof(random), 0) != (ssize_t) sizeof(random)) {
        return role_failed(projection->role, "no random numbers");
    }

    log_info("writing all links and keys to Redis: %s", reason);
    snprintf(token, sizeof(token), "%016llx", (unsigned long long) random);
    if (!redis_append(&projection->redis, "DEL aff:epoch") ||
        !redis_append(&projection->redis, "SET aff:rebuild %s", token) ||
        !redis_collect(&projection->redis)) {
        return projection_failed_redis(projection);
    }

    for (size_t i = 0; i < KINDS; i++) {
        if (!projection_page_all(projection, &projection_kinds[i]) ||
            (projection->force && !projection_scan_strangers(projection, &projection_kinds[i]))) {
            return false;
        }
    }

    if (AFF_FAULT("projection.rebuilt")) {
        return role_failed(projection->role, "an injected fault");
    }

    reply = redis_command(
        &projection->redis, "EVAL %s 0 %s %s", projection_finish_script, token, projection->marker);
    if (reply == NULL) {
        return projection_failed_redis(projection);
    }

    complete = reply->type == REDIS_REPLY_INTEGER && reply->integer == 1;
    freeReplyObject(reply);
    if (!complete) {
        return role_failed(
            projection->role, "Redis was emptied, or another daemon began, during the rebuild");
    }

    projection->force = false;
    role_count(projection->role, COUNTER_REBUILDS, 1);
    log_info("wrote %llu links and keys in %lld ms",
        (unsigned long long) (atomic_load(&projection->role->values[COUNTER_PROJECTED]) - before),
        (long long) (clock_monotonic_ms() - begun));
    return true;
}

/* Rebuilds if Redis lacks anything, see the top. */
static bool
projection_check(struct projection *projection)
{
    redisReply *reply = redis_command(&projection->redis, "MGET aff:epoch aff:projected");
    const char *reason = NULL;

    if (reply == NULL || reply->elements != 2) {
        freeReplyObject(reply);
        return projection_failed_redis(projection);
    }

    if (reply->element[1]->type == REDIS_REPLY_STRING &&
        strcmp(reply->element[1]->str, projection->marker) != 0) {
        const char *identity = strchr(reply->element[1]->str, ' ');
        size_t len = strlen(projection->identity);

        projection->force = identity == NULL ||
                            strncmp(identity + 1, projection->identity, len) != 0 ||
                            identity[1 + len] != ' ';
        reason = projection->force ? "PostgreSQL is another one than before"
                                   : "Redis was restarted, or the master key changed";
    }

    if (reply->element[0]->type != REDIS_REPLY_STRING ||
        reply->element[1]->type != REDIS_REPLY_STRING) {
        reason = "Redis has no complete projection";
    }

    freeReplyObject(reply);
    return reason == NULL || projection_rebuild(projection, reason);
}

/* --- a life --- */

static bool
projection_load_script(struct projection *projection)
{
    redisReply *reply = redis_command(&projection->redis, "SCRIPT LOAD %s", projection_set_script);
    bool ok;

    if (reply == NULL) {
        return false;
    }

    ok = reply->type == REDIS_REPLY_STRING;
    snprintf(projection->sha, sizeof(projection->sha), "%s", ok ? reply->str : "");
    freeReplyObject(reply);
    return ok;
}

static bool
projection_connect(struct projection *projection)
{
    struct role *role = projection->role;
    struct pg_error error;
    char message[CONFIG_ERROR_MAX], run_id[REDIS_RUN_ID_MAX];

    if (!config_read_keys(role->config, &projection->ring, message)) {
        return role_failed(role, "master keys: %s", message);
    }

    if (!redis_connect(&projection->redis, role->config) ||
        !redis_run_id(&projection->redis, run_id) || !projection_load_script(projection)) {
        return role_failed_redis(role, "connecting", &projection->redis);
    }

    role_progress(role);
    projection->pg = pg_connect(role->config, role->name, &error);
    if (projection->pg == NULL) {
        return role_failed_pg(role, "connecting", &error);
    }

    if (!pg_identity(projection->pg, projection->identity, &error) ||
        !pg_command(projection->pg, "listen affiliate_projection", &error)) {
        return role_failed_pg(role, "preparing", &error);
    }

    snprintf(projection->marker, sizeof(projection->marker), "%s %s %s", run_id,
        projection->identity, projection->ring.keys[0].id);
    return true;
}

static bool
projection_live(struct projection *projection)
{
    struct role *role = projection->role;

    if (!projection_connect(projection)) {
        return false;
    }

    while (!role_should_end(role)) {
        PGnotify *notify;
        int taken = 0;

        if (clock_monotonic_ms() >= projection->next_check_ms) {
            if (!projection_check(projection)) {
                return false;
            }

            projection->next_check_ms = clock_monotonic_ms() + role->config->projection.interval;
        }

        if (!projection_changes(projection, &taken)) {
            return false;
        }

        role_up(role);
        if (taken < role->config->projection.batch) {
            role_wait(role, role->config->projection.interval, PQsocket(projection->pg));
        }

        if (!PQconsumeInput(projection->pg)) {
            return role_failed(role, "PostgreSQL closed the connection");
        }

        /* What they say is in the table. */
        while ((notify = PQnotifies(projection->pg)) != NULL) {
            PQfreemem(notify);
        }
    }

    return true;
}

static bool
projection_serve(struct role *role)
{
    struct projection projection = {.role = role};
    bool ok = projection_live(&projection);

    redis_close(&projection.redis);
    PQfinish(projection.pg);
    aff_keyring_wipe(&projection.ring);
    return ok;
}

const struct role_kind projection_role = {.name = "projection",
    .serve = projection_serve,
    .counters = 1ULL << COUNTER_TRANSACTIONS | 1ULL << COUNTER_PROJECTED |
                1ULL << COUNTER_REBUILDS | 1ULL << COUNTER_FAILURES};
