/* Holds: commissions whose hold is over become payable. PostgreSQL finds, decides and posts; this
 * only calls. */

#include "worker/role.h"

#include <stdlib.h>

/* Releases one batch; `*released` tells how many it held. Each call is a transaction of its own. */
static bool
holds_release(struct role *role, PGconn *pg, int64_t *released)
{
    struct pg_error error;
    char batch[24];
    const char *values[] = {batch};
    PGresult *result;

    snprintf(batch, sizeof(batch), "%lld", (long long) role->config->holds.batch);
    result = pg_query(pg, "select affiliate.release_holds($1::integer)", 1, values, 0, &error);
    if (result == NULL) {
        return role_failed_pg(role, "releasing holds", &error);
    }

    *released = atoll(PQgetvalue(result, 0, 0));
    PQclear(result);
    if (pg_fault(AFF_FAULT("holds.released"), &error)) {
        return role_failed_pg(role, "releasing holds", &error);
    }

    role_count(role, COUNTER_TRANSACTIONS, 1);
    role_count(role, COUNTER_RELEASED, (uint64_t) *released);
    return true;
}

static bool
holds_serve(struct role *role)
{
    struct pg_error error;
    PGconn *pg = pg_connect(role->config, role->name, &error);
    int64_t released = 0;
    bool ok = true;

    if (pg == NULL) {
        return role_failed_pg(role, "connecting", &error);
    }

    while (ok && !role_should_end(role)) {
        ok = holds_release(role, pg, &released);
        if (ok) {
            role_up(role);
            if (released < role->config->holds.batch) {
                role_wait(role, role->config->holds.interval, -1);
            }
        }
    }

    PQfinish(pg);
    return ok;
}

const struct role_kind holds_role = {.name = "holds",
    .serve = holds_serve,
    .counters = 1ULL << COUNTER_TRANSACTIONS | 1ULL << COUNTER_RELEASED | 1ULL << COUNTER_FAILURES};
