/* The schema's numbered steps, which are part of the binary, and what of them a database has. */

#ifndef AFFILIATED_MIGRATE_H
#define AFFILIATED_MIGRATE_H

#include "worker/pg.h"

struct migration {
    int version;
    const char *name;
    const char *sql;
};

/* In order, ended by version 0. Made from sql/ by migrations.sh. */
extern const struct migration migrations[];

int migrate_latest(void);

/*
 * The database's version: 0 for an empty one. `*mismatch` names the first step that differs from
 * this binary's (static, NULL if none does). -1 on an error.
 */
int migrate_version(PGconn *conn, const char **mismatch, struct pg_error *error);

int migrate_command(struct config *config, int argc, char **argv);

#endif
