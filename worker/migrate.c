/*
 * `affiliated migrate`: each step in a transaction of its own, under an advisory lock, once.
 *
 * A step that was applied is never changed: its checksum is kept. A database that is ahead of this
 * binary is refused.
 */

#include "worker/migrate.h"

#include "protocol/signature.h"
#include "worker/command.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#define CHECKSUM_CHARS 64

static const char migrate_table_sql[] =
    "create schema if not exists affiliate; "
    "create table if not exists affiliate.schema_version ("
    "version integer primary key, name text not null, checksum text not null, "
    "applied_at timestamptz not null default now())";

int
migrate_latest(void)
{
    int latest = 0;

    for (const struct migration *m = migrations; m->version != 0; m++) {
        latest = m->version;
    }

    return latest;
}

static bool
migrate_checksum(const char *sql, char out[CHECKSUM_CHARS + 1])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned len;

    if (EVP_Digest(sql, strlen(sql), digest, &len, EVP_sha256(), NULL) != 1) {
        return false;
    }

    aff_hex(digest, CHECKSUM_CHARS / 2, out);
    out[CHECKSUM_CHARS] = '\0';
    return true;
}

static const struct migration *
migrate_find(int version)
{
    for (const struct migration *m = migrations; m->version != 0; m++) {
        if (m->version == version) {
            return m;
        }
    }

    return NULL;
}

int
migrate_version(PGconn *conn, const char **mismatch, struct pg_error *error)
{
    PGresult *result = pg_query(
        conn, "select to_regclass('affiliate.schema_version') is not null", 0, NULL, 0, error);
    int version = 0;
    bool there;

    *mismatch = NULL;
    if (result == NULL) {
        return -1;
    }

    there = PQgetvalue(result, 0, 0)[0] == 't';
    PQclear(result);
    if (!there) {
        return 0;
    }

    result =
        pg_query(conn, "select version, checksum from affiliate.schema_version order by version", 0,
            NULL, 0, error);
    if (result == NULL) {
        return -1;
    }

    for (int i = 0; i < PQntuples(result); i++) {
        const struct migration *m;
        char checksum[CHECKSUM_CHARS + 1];

        version = atoi(PQgetvalue(result, i, 0));
        m = migrate_find(version);
        if (m != NULL && *mismatch == NULL &&
            (!migrate_checksum(m->sql, checksum) ||
                strcmp(checksum, PQgetvalue(result, i, 1)) != 0)) {
            *mismatch = m->name;
        }
    }

    PQclear(result);
    return version;
}

static bool
migrate_apply(PGconn *conn, const struct migration *m, struct pg_error *error)
{
    char version[16], checksum[CHECKSUM_CHARS + 1];
    const char *values[] = {version, m->name, checksum};
    PGresult *result;
    bool ok;

    if (!migrate_checksum(m->sql, checksum)) {
        *error = (struct pg_error){.message = "OpenSSL has no SHA-256"};
        return false;
    }

    snprintf(version, sizeof(version), "%d", m->version);
    if (!pg_command(conn, "begin", error) || !pg_command(conn, m->sql, error)) {
        return false;
    }

    result = PQexecParams(conn,
        "insert into affiliate.schema_version (version, name, checksum) values ($1::integer, $2, "
        "$3)",
        3, NULL, values, NULL, NULL, 0);
    ok = PQresultStatus(result) == PGRES_COMMAND_OK;
    if (!ok) {
        pg_error_of(conn, result, error);
    }

    PQclear(result);
    return ok && pg_command(conn, "commit", error);
}

static int
migrate_run(PGconn *conn)
{
    struct pg_error error;
    const char *mismatch;
    bool applied = false;
    int version;

    /* A migration that waits for a lock must not stop everybody who comes behind it. */
    if (!pg_command(conn, "set lock_timeout = '10s'", &error) ||
        !pg_command(
            conn, "select pg_advisory_lock(hashtextextended('affiliated migrate', 0))", &error) ||
        (version = migrate_version(conn, &mismatch, &error)) < 0 ||
        (version == 0 && !pg_command(conn, migrate_table_sql, &error))) {
        fprintf(stderr, "affiliated migrate: %s\n", error.message);
        return COMMAND_FAILED;
    }

    if (version > migrate_latest()) {
        fprintf(stderr,
            "affiliated migrate: the database has schema version %d, this program knows %d: "
            "install a newer one\n",
            version, migrate_latest());
        return COMMAND_FAILED;
    }

    if (mismatch != NULL) {
        fprintf(stderr,
            "affiliated migrate: %s was applied in another form than this program's: wrong "
            "program, or an "
            "unreleased one\n",
            mismatch);
        return COMMAND_FAILED;
    }

    for (const struct migration *m = migrations; m->version != 0; m++) {
        if (m->version <= version) {
            continue;
        }

        if (!migrate_apply(conn, m, &error)) {
            fprintf(stderr, "affiliated migrate: %s: %s%s%s\n", m->name, error.sqlstate,
                error.sqlstate[0] ? " " : "", error.message);
            return COMMAND_FAILED;
        }

        printf("%s\n", m->name);
        applied = true;
    }

    if (applied && !pg_command(conn, "select affiliate.renew_rights()", &error)) {
        fprintf(stderr, "affiliated migrate: rights: %s\n", error.message);
        return COMMAND_FAILED;
    }

    printf("schema version %d\n", migrate_latest());
    return COMMAND_OK;
}

int
migrate_command(struct config *config, int argc, char **argv)
{
    struct pg_error error;
    PGconn *conn;
    int code;

    if (argc > 1) {
        fprintf(stderr, "affiliated migrate: takes no argument \"%s\"\n", argv[1]);
        return COMMAND_USAGE;
    }

    conn = pg_connect(config, "migrate", &error);
    if (conn == NULL) {
        fprintf(stderr, "affiliated migrate: %s\n", error.message);
        return COMMAND_FAILED;
    }

    code = migrate_run(conn);
    PQfinish(conn);
    return code;
}
