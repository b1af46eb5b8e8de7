#include "worker/check.h"

#include "worker/api/exchange.h"
#include "worker/command.h"
#include "worker/mail/mail.h"
#include "worker/migrate.h"
#include "worker/payout/provider.h"
#include "worker/pg.h"
#include "worker/redis.h"
#include "worker/run.h"

#include <errno.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct check {
    const struct config *config;
    unsigned failures;
};

static void check_ok(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void check_failed(struct check *check, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void
check_ok(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("ok    ", stdout);
    vfprintf(stdout, format, args);
    fputc('\n', stdout);
    va_end(args);
}

static void
check_failed(struct check *check, const char *format, ...)
{
    va_list args;

    check->failures++;
    va_start(args, format);
    fputs("FAIL  ", stdout);
    vfprintf(stdout, format, args);
    fputc('\n', stdout);
    va_end(args);
}

static void
check_secret(struct check *check, const char *path)
{
    struct stat st;

    if (path[0] == '\0') {
        return;
    }

    if (stat(path, &st) != 0) {
        check_failed(check, "%s: %s", path, strerror(errno));
    } else if ((st.st_mode & 07) != 0) {
        check_failed(check, "%s: everybody may read or change it; chmod o= %s", path, path);
    } else {
        check_ok("%s is kept from others", path);
    }
}

static void
check_directory(struct check *check, const char *path, const char *setting, const char *what)
{
    if (access(path, W_OK | X_OK) != 0) {
        check_failed(check, "%s: %s: %s", setting, path, strerror(errno));
    } else {
        check_ok("%s may hold %s", path, what);
    }
}

static void
check_files(struct check *check)
{
    struct aff_keyring ring;
    char error[CONFIG_ERROR_MAX];
    char *copy;

    if (!run_roles_valid(&check->config->run.roles, error)) {
        check_failed(check, "%s: %s", check->config->path, error);
    }

    if (config_read_keys(check->config, &ring, error)) {
        check_ok("%u master key%s, %s is current", ring.count, ring.count == 1 ? "" : "s",
            ring.keys[0].id);
    } else {
        check_failed(check, "master keys: %s", error);
    }
    aff_keyring_wipe(&ring);

    check_secret(check, check->config->keys.file);
    check_secret(check, check->config->postgres.password_file);
    check_secret(check, check->config->redis.password_file);

    copy = strdup(check->config->run.status_socket);
    if (copy != NULL && copy[0] != '\0') {
        check_directory(check, dirname(copy), "run.status_socket", "the status socket");
    }

    free(copy);
}

static void
check_schema(struct check *check, PGconn *conn)
{
    struct pg_error error;
    const char *mismatch;
    int version = migrate_version(conn, &mismatch, &error);

    if (version < 0) {
        check_failed(check, "schema version: %s", error.message);
    } else if (version < migrate_latest()) {
        check_failed(check, "schema version %d, %d is needed: run `affiliated migrate`", version,
            migrate_latest());
    } else if (version > migrate_latest()) {
        check_failed(check, "schema version %d, this program knows %d: install a newer one",
            version, migrate_latest());
    } else if (mismatch != NULL) {
        check_failed(check, "schema: %s was applied in another form than this program's", mismatch);
    } else {
        check_ok("schema version %d", version);
    }
}

/* One question that PostgreSQL answers with true, or else `complaint`. */
static void
check_sql(
    struct check *check, PGconn *conn, const char *sql, const char *praise, const char *complaint)
{
    struct pg_error error;
    PGresult *result = pg_query(conn, sql, 0, NULL, 0, &error);

    if (result == NULL) {
        check_failed(check, "%s (%s)", complaint, error.message);
    } else if (PQntuples(result) != 1 || PQgetvalue(result, 0, 0)[0] != 't') {
        check_failed(check, "%s", complaint);
    } else {
        check_ok("%s", praise);
    }

    PQclear(result);
}

static void
check_postgres(struct check *check)
{
    struct pg_error error;
    char identity[PG_IDENTITY_MAX];
    PGconn *conn = pg_connect(check->config, "check", &error);

    if (conn == NULL) {
        check_failed(check, "PostgreSQL: %s", error.message);
        return;
    }

    check_ok("PostgreSQL %d.%d at %s", PQserverVersion(conn) / 10000, PQserverVersion(conn) % 10000,
        PQhost(conn));
    check_sql(check, conn, "select current_setting('server_version_num')::integer >= 150000",
        "its version is supported", "PostgreSQL 15 or newer is needed");
    check_sql(check, conn, "select current_setting('server_encoding') = 'UTF8'",
        "the database is UTF-8", "the database's encoding must be UTF8");
    check_sql(check, conn,
        "select current_setting('fsync') = 'on' and current_setting('full_page_writes') = 'on'",
        "it writes to disk for certain",
        "fsync and full_page_writes must be on: money is at stake");

    if (!pg_identity(conn, identity, &error)) {
        check_failed(check, "identity: %s", error.message);
    }

    check_schema(check, conn);
    check_sql(check, conn,
        "select coalesce(bool_or(day = (now() at time zone 'UTC')::date), false) from "
        "affiliate.click_partitions()",
        "today has a partition for clicks",
        "today has no partition for clicks: is the role partitions running?");
    PQfinish(conn);
}

/* Every operation of the routes has its function, unless it needs none. */
static void
check_operations(struct check *check, PGconn *conn)
{
    unsigned missing = 0;

    for (unsigned i = 0; i < routes_count; i++) {
        const struct native *native = native_find(routes[i].operation);
        const char *values[] = {routes[i].operation};
        struct pg_error error;
        PGresult *result;

        if (native != NULL && native->instead != NULL) {
            continue;
        }

        result = pg_query(conn,
            "select to_regprocedure('affiliate.api_' || $1 || '(affiliate.actor, jsonb)')", 1,
            values, 0, &error);
        if (result == NULL || PQgetisnull(result, 0, 0)) {
            check_failed(check, "API: %s: %s", routes[i].operation,
                result == NULL ? error.message : "the schema has no such operation");
            missing++;
        }

        PQclear(result);
    }

    if (missing == 0) {
        check_ok("API: the schema has all operations of %u routes", routes_count);
    }
}

static void
check_api(struct check *check)
{
    const struct config *config = check->config;
    bool own = config->api.conninfo[0] != '\0';
    struct pg_error error;
    char *copy = strdup(config->api.socket);
    PGconn *conn;

    if (copy != NULL) {
        check_directory(check, dirname(copy), "api.socket", "the API's socket");
    }

    free(copy);
    check_directory(check, config->api.temp_path, "api.temp_path", "large bodies");
    check_secret(check, config->api.password_file);
    conn = pg_connect_as(config, own ? config->api.conninfo : config->postgres.conninfo,
        own ? config->api.password : config->postgres.password, "check", &error);
    if (conn == NULL) {
        check_failed(check, "API: PostgreSQL: %s", error.message);
        return;
    }

    check_sql(check, conn,
        "select has_function_privilege('affiliate.api_call(jsonb, text, jsonb, jsonb)', 'execute')",
        "API: its login may call it",
        "API: its login may not call it: affiliate.grant_api_rights() lets it");
    check_operations(check, conn);
    PQfinish(conn);
}

static void
check_redis_setting(
    struct check *check, struct redis *redis, const char *name, const char *wanted, const char *why)
{
    redisReply *reply = redis_command(redis, "CONFIG GET %s", name);

    if (reply == NULL || reply->elements != 2 || reply->element[1]->type != REDIS_REPLY_STRING) {
        check_ok("Redis does not tell its %s; it should be %s", name, wanted);
    } else if (strcmp(reply->element[1]->str, wanted) != 0) {
        check_failed(
            check, "Redis: %s is %s, should be %s: %s", name, reply->element[1]->str, wanted, why);
    } else {
        check_ok("Redis: %s is %s", name, wanted);
    }

    freeReplyObject(reply);
}

static void
check_redis(struct check *check)
{
    struct redis redis = {0};
    char run_id[REDIS_RUN_ID_MAX];
    redisReply *reply;

    if (!redis_connect(&redis, check->config)) {
        check_failed(check, "Redis: %s", redis.error);
        return;
    }

    check_ok("Redis is a master and lets us in");
    if (!redis_run_id(&redis, run_id)) {
        check_failed(check, "Redis: INFO: %s", redis.error);
    }

    reply = redis_command(&redis, "EVAL %s 0", "return redis.call('EXISTS', 'aff:epoch')");
    if (reply == NULL) {
        check_failed(check, "Redis: EVAL: %s", redis.error);
    } else {
        check_ok("Redis runs scripts; the projection is %s",
            reply->integer == 1 ? "complete" : "not complete yet");
        freeReplyObject(reply);
    }

    check_redis_setting(
        check, &redis, "maxmemory-policy", "noeviction", "streams must not be evicted");
    redis_close(&redis);
}

static void
check_mail(struct check *check)
{
    char said[CONFIG_ERROR_MAX * 2];

    check_secret(check, check->config->mail.password_file);
    if (mail_check(check->config, said, sizeof(said))) {
        check_ok("%s", said);
    } else {
        check_failed(check, "%s", said);
    }
}

static void
check_payouts(struct check *check)
{
    const struct config *config = check->config;
    char said[CONFIG_ERROR_MAX * 2];

    if (!config->npi.enabled) {
        check_ok("npi is off: batches go out as files");
        return;
    }

    check_secret(check, config->npi.client_password_file);
    check_secret(check, config->npi.password_file);
    check_secret(check, config->npi.pfx_file);
    check_secret(check, config->npi.pfx_password_file);
    if (npi_check(config, said, sizeof(said))) {
        check_ok("%s", said);
    } else {
        check_failed(check, "%s", said);
    }
}

int
check_command(struct config *config, int argc, char **argv)
{
    struct check check = {.config = config};

    if (argc > 1) {
        fprintf(stderr, "affiliated check: takes no argument \"%s\"\n", argv[1]);
        return COMMAND_USAGE;
    }

    check_ok("%s", config->path);
    check_files(&check);
    check_postgres(&check);
    if (run_has_role(&config->run.roles, api_role.name)) {
        check_api(&check);
    }

    if (run_has_role(&config->run.roles, mail_role.name)) {
        check_mail(&check);
    }

    if (run_has_role(&config->run.roles, payouts_role.name)) {
        check_payouts(&check);
    }

    check_redis(&check);
    return check.failures == 0 ? COMMAND_OK : COMMAND_FAILED;
}
