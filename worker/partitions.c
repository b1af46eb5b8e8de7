/*
 * What time brings: partitions of the coming days exist ahead of them, those beyond retention go,
 * counts of days that are over move into spans, bills of months that are over are made, and rules
 * look for fraud. Safe beside other daemons.
 */

#include "worker/role.h"

#include <stdlib.h>
#include <string.h>

/* Of each rollup, in one transaction: some milliseconds a thousand. */
#define FOLD_ROWS "5000"

/* Each holds the account of what its merchant owes until the commit. */
#define BILLS_AT_ONCE "1"

/* Settled again in one transaction, because of a case. */
#define FRAUD_ORDERS 1000

static bool
partitions_maintain(struct role *role, PGconn *pg)
{
    struct pg_error error;
    char ahead[24], retention[24];
    const char *values[] = {ahead, retention};
    PGresult *result;

    snprintf(ahead, sizeof(ahead), "%lld", (long long) role->config->partitions.ahead);
    snprintf(retention, sizeof(retention), "%lld", (long long) role->config->partitions.retention);
    result = pg_query(pg,
        "select action, relation from affiliate.maintain_partitions($1::integer, $2::integer)", 2,
        values, 0, &error);
    if (result == NULL) {
        return role_failed_pg(role, "maintaining partitions", &error);
    }

    for (int i = 0; i < PQntuples(result); i++) {
        const char *action = PQgetvalue(result, i, 0);

        log_info("%s %s", action, PQgetvalue(result, i, 1));
        if (strcmp(action, "created") == 0) {
            role_count(role, COUNTER_CREATED, 1);
        } else if (strcmp(action, "dropped") == 0) {
            role_count(role, COUNTER_DROPPED, 1);
        }
    }

    PQclear(result);
    role_count(role, COUNTER_TRANSACTIONS, 1);
    return !AFF_FAULT("partitions.maintained") || role_failed(role, "an injected fault");
}

/* Some at a time, so that whoever counts late clicks of those days never waits for long. */
static bool
partitions_fold(struct role *role, PGconn *pg)
{
    long long moved = 0, rows = 1;

    while (rows > 0 && !role_should_end(role)) {
        struct pg_error error;
        PGresult *result =
            pg_query(pg, "select affiliate.fold_rollups(" FOLD_ROWS ")", 0, NULL, 0, &error);

        if (result == NULL) {
            return role_failed_pg(role, "moving counts into spans", &error);
        }

        rows = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
        moved += rows;
        PQclear(result);
        role_count(role, COUNTER_TRANSACTIONS, 1);
    }

    if (moved > 0) {
        log_info("moved %lld counts of days that are over into spans", moved);
    }

    return true;
}

/* Some merchants at a time. */
static bool
partitions_bill(struct role *role, PGconn *pg)
{
    long long done = 1;

    while (done > 0 && !role_should_end(role)) {
        struct pg_error error;
        PGresult *result =
            pg_query(pg, "select affiliate.issue_bills(" BILLS_AT_ONCE ")", 0, NULL, 0, &error);

        if (result == NULL) {
            return role_failed_pg(role, "making bills", &error);
        }

        done = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
        PQclear(result);
        role_count(role, COUNTER_TRANSACTIONS, 1);
    }

    return true;
}

/* Rules are looked through once a turn; orders follow from their cases, some at a time. */
static bool
partitions_fraud(struct role *role, PGconn *pg)
{
    struct pg_error error;
    char most[12];
    const char *values[] = {most};
    PGresult *result = pg_query(pg, "select opened from affiliate.fraud_run()", 0, NULL, 0, &error);

    if (result == NULL) {
        return role_failed_pg(role, "looking for fraud", &error);
    }

    if (strcmp(PQgetvalue(result, 0, 0), "0") != 0) {
        log_info("fraud rules opened %s cases", PQgetvalue(result, 0, 0));
    }

    PQclear(result);
    role_count(role, COUNTER_TRANSACTIONS, 1);

    snprintf(most, sizeof(most), "%d", FRAUD_ORDERS);

    for (long long orders = FRAUD_ORDERS; orders == FRAUD_ORDERS && !role_should_end(role);) {
        result = pg_query(pg, "select affiliate.fraud_settle($1)", 1, values, 0, &error);

        if (result == NULL) {
            return role_failed_pg(role, "settling what fraud cases hold", &error);
        }

        orders = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
        PQclear(result);
        role_count(role, COUNTER_TRANSACTIONS, 1);
    }

    return true;
}

/* A connection for each turn: there is an hour between two. */
static bool
partitions_serve(struct role *role)
{
    while (!role_should_end(role)) {
        struct pg_error error;
        PGconn *pg = pg_connect(role->config, role->name, &error);
        bool ok;

        if (pg == NULL) {
            return role_failed_pg(role, "connecting", &error);
        }

        ok = partitions_maintain(role, pg) && partitions_fold(role, pg) &&
             partitions_bill(role, pg) && partitions_fraud(role, pg);
        PQfinish(pg);
        if (!ok) {
            return false;
        }

        role_up(role);
        role_wait(role, role->config->partitions.interval, -1);
    }

    return true;
}

const struct role_kind partitions_role = {.name = "partitions",
    .serve = partitions_serve,
    .counters = 1ULL << COUNTER_TRANSACTIONS | 1ULL << COUNTER_CREATED | 1ULL << COUNTER_DROPPED |
                1ULL << COUNTER_FAILURES};
