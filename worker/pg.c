/*
 * libpq, blocking: a role has nothing else to do while PostgreSQL works for it. Silence is bounded
 * by connect_timeout for each host, tcp_user_timeout and keepalives; work by lock_timeout.
 */

#include "worker/pg.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Rows that wait for a backend on this host. The kernel's default is less than a millisecond of its
 * work: it starves whenever we get the processor a little late. */
#define PG_SEND_BUFFER 1048576

static const char pg_session_sql[] =
    "set search_path = pg_catalog; set timezone = 'UTC'; set client_min_messages = 'warning'; "
    /* A role that hangs must not hold locks for ever. */
    "set idle_in_transaction_session_timeout = '120s'; set statement_timeout = 0; "
    /* What was committed is acknowledged to the spool: it has to be on disk. remote_apply and the
       like stay. */
    "select set_config('synchronous_commit', 'on', false) "
    "where current_setting('synchronous_commit') in ('off', 'local')";

/* The timeline of the log being written, not of the last checkpoint: that one lags behind a
 * promotion. */
static const char pg_identity_sql[] = "select s.system_identifier::text || '/' || "
                                      "substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) "
                                      "from pg_control_system() s";

enum pg_class
pg_classify(const char *sqlstate)
{
    static const char *const retry[] = {"08", "57", "53", "40", "55", "25"};
    static const char *const poison[] = {"22", "23", "54"};

    if (sqlstate == NULL || sqlstate[0] == '\0') {
        return PG_CLASS_RETRY;
    }

    for (size_t i = 0; i < sizeof(retry) / sizeof(retry[0]); i++) {
        if (strncmp(sqlstate, retry[i], 2) == 0) {
            return PG_CLASS_RETRY;
        }
    }

    for (size_t i = 0; i < sizeof(poison) / sizeof(poison[0]); i++) {
        if (strncmp(sqlstate, poison[i], 2) == 0) {
            return PG_CLASS_POISON;
        }
    }

    return PG_CLASS_ALARM;
}

enum pg_class
pg_error_of(PGconn *conn, const PGresult *result, struct pg_error *error)
{
    const char *sqlstate = result == NULL ? NULL : PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const char *primary =
        result == NULL ? NULL : PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);

    /* The primary message alone: detail lines quote rows. */
    log_flatten(
        error->message, sizeof(error->message), primary != NULL ? primary : PQerrorMessage(conn));
    snprintf(error->sqlstate, sizeof(error->sqlstate), "%s", sqlstate == NULL ? "" : sqlstate);
    error->class = PQstatus(conn) == CONNECTION_BAD ? PG_CLASS_RETRY : pg_classify(sqlstate);

    if (error->message[0] == '\0') {
        snprintf(error->message, sizeof(error->message), "no answer");
    }

    return error->class;
}

static void
pg_notice(void *data, const char *message)
{
    char line[CONFIG_ERROR_MAX];

    (void) data;
    log_flatten(line, sizeof(line), message);
    log_debug("PostgreSQL says: %s", line);
}

/* A server that goes away just as we have come in says so before PQconnectdbParams returns, and
 * libpq prints that to stderr unless it was told otherwise. Thus: begin, tell it, begin anew. */
static PGconn *
pg_open(const char *const *keywords, const char *const *values)
{
    PGconn *conn = PQconnectStartParams(keywords, values, 1);

    if (conn != NULL && PQstatus(conn) != CONNECTION_BAD) {
        PQsetNoticeProcessor(conn, pg_notice, NULL);
        PQreset(conn);
    }

    return conn;
}

/* TCP sizes its buffers itself, unless told to. The kernel may grant less: then it is less. */
static void
pg_widen(PGconn *conn)
{
    int domain = 0, size = PG_SEND_BUFFER;
    socklen_t len = sizeof(domain);

    if (getsockopt(PQsocket(conn), SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 &&
        domain == AF_UNIX) {
        (void) setsockopt(PQsocket(conn), SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    }
}

/* libpq's own words may show what follows a "password=" with a slip in it. */
static bool
pg_conninfo_valid(const char *conninfo)
{
    PQconninfoOption *options = NULL;

    if (strchr(conninfo, '=') != NULL || strstr(conninfo, "://") != NULL) {
        options = PQconninfoParse(conninfo, NULL);
        if (options == NULL) {
            return false;
        }

        PQconninfoFree(options);
    }

    return true;
}

PGconn *
pg_connect(const struct config *config, const char *purpose, struct pg_error *error)
{
    return pg_connect_as(
        config, config->postgres.conninfo, config->postgres.password, purpose, error);
}

PGconn *
pg_connect_as(const struct config *config, const char *conninfo, const char *password,
    const char *purpose, struct pg_error *error)
{
    char name[64], timeout[32], user_timeout[32], idle[32], sql[sizeof(pg_session_sql) + 64];
    const char *keywords[12], *values[12];
    unsigned n = 0;
    PGconn *conn;

    if (!pg_conninfo_valid(conninfo)) {
        *error = (struct pg_error){.class = PG_CLASS_RETRY};
        snprintf(error->message, sizeof(error->message),
            "%s.conninfo: not \"name=value ...\" or \"postgresql://...\" as libpq takes it",
            conninfo == config->postgres.conninfo ? "postgres" : "api");
        return NULL;
    }

    snprintf(name, sizeof(name), "affiliated %s", purpose);
    snprintf(timeout, sizeof(timeout), "%lld",
        (long long) (config->postgres.connect_timeout + 999) / 1000);
    snprintf(
        user_timeout, sizeof(user_timeout), "%lld", (long long) config->postgres.tcp_user_timeout);
    snprintf(
        idle, sizeof(idle), "%lld", (long long) (config->postgres.keepalives_idle + 999) / 1000);

#define PARAMETER(k, v) (keywords[n] = (k), values[n++] = (v))
    /* In front of conninfo: defaults, which it may override. Behind it: what we insist on. */
    PARAMETER("target_session_attrs", "read-write");
    PARAMETER("connect_timeout", timeout);
    PARAMETER("tcp_user_timeout", user_timeout);
    PARAMETER("keepalives_idle", idle);
    PARAMETER("keepalives_interval", "5");
    PARAMETER("keepalives_count", "3");
    PARAMETER("dbname", conninfo);
    PARAMETER("client_encoding", "UTF8");
    PARAMETER("application_name", name);
    if (password[0] != '\0') {
        PARAMETER("password", password);
    }
    PARAMETER(NULL, NULL);
#undef PARAMETER

    conn = pg_open(keywords, values);
    if (conn == NULL || PQstatus(conn) != CONNECTION_OK) {
        error->class = PG_CLASS_RETRY;
        error->sqlstate[0] = '\0';
        log_flatten(error->message, sizeof(error->message),
            conn == NULL ? "out of memory" : PQerrorMessage(conn));
        PQfinish(conn);
        return NULL;
    }

    pg_widen(conn);
    snprintf(sql, sizeof(sql), "set lock_timeout = %lld; %s",
        (long long) config->postgres.lock_timeout, pg_session_sql);
    if (!pg_command(conn, sql, error)) {
        PQfinish(conn);
        return NULL;
    }

    return conn;
}

bool
pg_alive(PGconn *conn)
{
    struct pollfd fd = {.fd = PQsocket(conn), .events = POLLIN};

    return PQstatus(conn) == CONNECTION_OK &&
           (poll(&fd, 1, 0) == 0 || (PQconsumeInput(conn) == 1 && PQstatus(conn) == CONNECTION_OK));
}

bool
pg_identity(PGconn *conn, char *identity, struct pg_error *error)
{
    PGresult *result = pg_query(conn, pg_identity_sql, 0, NULL, 0, error);

    if (result == NULL) {
        return false;
    }

    snprintf(identity, PG_IDENTITY_MAX, "%s", PQgetvalue(result, 0, 0));
    PQclear(result);
    return true;
}

bool
pg_command(PGconn *conn, const char *sql, struct pg_error *error)
{
    PGresult *result = PQexec(conn, sql);
    ExecStatusType status = PQresultStatus(result);
    bool ok = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;

    if (!ok) {
        pg_error_of(conn, result, error);
    }

    PQclear(result);
    return ok;
}

PGresult *
pg_query(PGconn *conn, const char *sql, int count, const char *const *values, int format,
    struct pg_error *error)
{
    PGresult *result = PQexecParams(conn, sql, count, NULL, values, NULL, NULL, format);

    if (PQresultStatus(result) != PGRES_TUPLES_OK) {
        pg_error_of(conn, result, error);
        PQclear(result);
        return NULL;
    }

    return result;
}
