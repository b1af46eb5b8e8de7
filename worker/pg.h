/* PostgreSQL through libpq: connecting, classes of errors, statements, binary COPY. Every role has
 * a connection of its own. */

#ifndef AFFILIATED_PG_H
#define AFFILIATED_PG_H

#include "protocol/fault.h"
#include "worker/config.h"

#include <libpq-fe.h>

#define PG_IDENTITY_MAX 64

/* What an error asks for. */
enum pg_class {
    PG_CLASS_OK,
    PG_CLASS_RETRY,  /* connection, shutdown, deadlock, serialization, resources: the same again,
                        after a pause */
    PG_CLASS_POISON, /* the data can't be stored as it is: take it apart */
    PG_CLASS_ALARM,  /* a missing object, a right, a bug: retry, but tell the operator */
};

/* The class of a five-character SQLSTATE; NULL or empty (no server answered) is PG_CLASS_RETRY. */
enum pg_class pg_classify(const char *sqlstate);

struct pg_error {
    enum pg_class class;
    char sqlstate[6];
    char message[CONFIG_ERROR_MAX]; /* one line, without secrets */
};

/*
 * Connects as the configuration says (several hosts, read-write, time-outs, keepalives;
 * application_name "affiliated <purpose>") and sets the session up: UTF-8, UTC, search_path
 * pg_catalog, lock_timeout. NULL on failure.
 */
PGconn *pg_connect(const struct config *config, const char *purpose, struct pg_error *error);

/* The same by another login: `password` empty for none. */
PGconn *pg_connect_as(const struct config *config, const char *conninfo, const char *password,
    const char *purpose, struct pg_error *error);

/* False once an idle connection is known to be gone, so that idleness does not hide it. Never
 * waits. */
bool pg_alive(PGconn *conn);

/*
 * Which PostgreSQL this is: "system identifier/timeline". It changes with a failover, a restore,
 * another cluster. `identity` has PG_IDENTITY_MAX bytes.
 */
bool pg_identity(PGconn *conn, char *identity, struct pg_error *error);

/* Statements without a result that matters (BEGIN, COMMIT, SET …). */
bool pg_command(PGconn *conn, const char *sql, struct pg_error *error);

/*
 * One statement with text parameters and a text (format 0) or binary (1) result, NULL on an error.
 * The caller clears the result.
 */
PGresult *pg_query(PGconn *conn, const char *sql, int count, const char *const *values, int format,
    struct pg_error *error);

/* What AFF_FAULT() said: if a step is to fail, `*error` asks for it again. */
static inline bool
pg_fault(int fault, struct pg_error *error)
{
    if (fault) {
        *error = (struct pg_error){.class = PG_CLASS_RETRY, .message = "an injected fault"};
    }

    return fault;
}

/* Takes the error out of a result (which may be NULL) and its connection. Returns its class. */
enum pg_class pg_error_of(PGconn *conn, const PGresult *result, struct pg_error *error);

#endif
