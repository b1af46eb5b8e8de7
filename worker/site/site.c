/* Sites: looks whether the hosts that merchants call theirs are. PostgreSQL decides which and when,
 * and what follows; this only looks. */

#include "worker/role.h"
#include "worker/site/prove.h"

#include <curl/curl.h>
#include <stdlib.h>

static pthread_once_t site_once = PTHREAD_ONCE_INIT;

static void
site_global(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static bool
site_turn(void *context)
{
    struct role *role = context;

    role_progress(role);
    return role_stops();
}

static bool
site_done(struct role *role, PGconn *pg, const PGresult *row, bool found, const char *detail)
{
    const char *values[] = {PQgetvalue(row, 0, 0), PQgetvalue(row, 0, 1), PQgetvalue(row, 0, 3),
        found ? "true" : "false", detail};
    struct pg_error error;
    PGresult *result =
        pg_query(pg, "select affiliate.site_verification_done($1::bigint, $2, $3, $4::boolean, $5)",
            5, values, 0, &error);

    if (result == NULL) {
        return role_failed_pg(role, "noting a site", &error);
    }

    PQclear(result);
    role_count(role, COUNTER_TRANSACTIONS, 1);
    role_count(role, COUNTER_CHECKED, 1);
    role_count(role, COUNTER_PROVEN, found);
    return true;
}

/* Looks at the next site; `*taken` is false if none is due. */
static bool
site_next(struct role *role, PGconn *pg, bool *taken)
{
    char detail[PROVE_DETAIL_MAX] = "";
    struct prove prove = {.config = role->config, .turn = site_turn, .context = role};
    struct pg_error error;
    PGresult *row = pg_query(pg,
        "select merchant_id, host, method, challenge from affiliate.site_verification_take(1)", 0,
        NULL, 0, &error);
    bool found, ok;

    if (row == NULL) {
        return role_failed_pg(role, "taking a site", &error);
    }

    *taken = PQntuples(row) == 1;
    if (!*taken) {
        PQclear(row);
        return true;
    }

    prove.host = PQgetvalue(row, 0, 1);
    prove.challenge = PQgetvalue(row, 0, 3);
    found = strcmp(PQgetvalue(row, 0, 2), "dns") == 0 ? prove_dns(&prove, detail)
                                                      : prove_file(&prove, detail);
    /* What was broken off tells nothing; it comes again. */
    ok = (!found && role_stops()) || site_done(role, pg, row, found, detail);
    PQclear(row);
    return ok;
}

static bool
site_wait(struct role *role, PGconn *pg)
{
    PGnotify *notify;

    role_wait(role, role->config->sites.interval, PQsocket(pg));
    if (!PQconsumeInput(pg)) {
        return role_failed(role, "PostgreSQL closed the connection");
    }

    while ((notify = PQnotifies(pg)) != NULL) {
        PQfreemem(notify);
    }

    return true;
}

static bool
site_live(struct role *role, PGconn *pg)
{
    struct pg_error error;
    bool taken = false;

    if (!pg_command(pg, "listen affiliate_site", &error)) {
        return role_failed_pg(role, "preparing", &error);
    }

    while (!role_should_end(role)) {
        if (!site_next(role, pg, &taken)) {
            return false;
        }

        role_up(role);
        if (!taken && !site_wait(role, pg)) {
            return false;
        }
    }

    return true;
}

static bool
site_serve(struct role *role)
{
    struct pg_error error;
    PGconn *pg = pg_connect(role->config, role->name, &error);
    bool ok;

    if (pg == NULL) {
        return role_failed_pg(role, "connecting", &error);
    }

    pthread_once(&site_once, site_global);
    if (role->config->sites.connect_to[0] != '\0') {
        log_warning("sites.connect_to is set: every site is looked for there; it is for tests");
    }

    ok = site_live(role, pg);
    PQfinish(pg);
    return ok;
}

const struct role_kind sites_role = {.name = "sites",
    .serve = site_serve,
    .counters = 1ULL << COUNTER_TRANSACTIONS | 1ULL << COUNTER_CHECKED | 1ULL << COUNTER_PROVEN |
                1ULL << COUNTER_FAILURES};
