/*
 * A PostgreSQL in libpq's place: answers what the daemon asks, checks the order of statements and
 * each row that COPY brings, and fails where it is told to.
 */

#ifndef AFF_FUZZ_POSTGRES_H
#define AFF_FUZZ_POSTGRES_H

#include "fuzz.h"

#include "protocol/conversion.h"
#include "protocol/refusal.h"
#include "worker/copy.h"

/* A row's fields: digits are bytes; u a uuid, h a hash, s a long one, n a network, t a text, a an
 * array. */
#define CLICK_FIELDS_OF      "u8888124n8attt"
#define CONVERSION_FIELDS_OF "88448122tth88ut228tttaaaa"
#define REFUSAL_FIELDS_OF    "884481122488stttttttttaa"

#define COPY_HEADER_LEN 19

struct pg_result {
    ExecStatusType status;
    const char *sqlstate;
    const char *command;
    int rows;
    bool days;    /* rows are partitions, today's first */
    bool counted; /* a row holds its number, from 1 */
};

struct pg_conn {
    bool in_transaction, failed, copying;
    PGresult *next; /* for PQgetResult() */
    const char *fields;
    uint8_t *copied;
    size_t len, size;
};

/* Set before a life, or counted in it. */
struct postgres {
    unsigned statements;
    unsigned fail_at; /* the statement that fails, 0: none */
    bool again;       /* and each multiple of it */
    const char *sqlstate;
    uint64_t rows;      /* of COPYs that ended well */
    uint64_t dead;      /* dead letters of records */
    uint64_t dead_rest; /* dead letters of batches, and of what can't be read as records */
    unsigned commits;
    uint64_t today;
};

static struct postgres postgres;

/* --- rows --- */

static uint32_t
take(const uint8_t **p, size_t *left, size_t bytes)
{
    uint32_t value = 0;

    require(*left >= bytes);
    for (size_t i = 0; i < bytes; i++) {
        value = value << 8 | (*p)[i];
    }

    *p += bytes;
    *left -= bytes;
    return value;
}

static void
check_array(const uint8_t *p, size_t left)
{
    uint32_t nulls, type, count;

    require(take(&p, &left, 4) == 1); /* dimension */
    nulls = take(&p, &left, 4);
    type = take(&p, &left, 4);
    count = take(&p, &left, 4);
    require(nulls <= 1 && take(&p, &left, 4) == 1 && count >= 1);

    for (uint32_t i = 0; i < count; i++) {
        uint32_t len = take(&p, &left, 4);

        if (len == UINT32_MAX) {
            require(nulls == 1);
            continue;
        }

        require(len <= left);
        require(type == COPY_OID_TEXT   ? copy_text_valid(aff_slice(p, len))
                : type == COPY_OID_INT4 ? len == 4
                                        : type == COPY_OID_INT8 && len == 8);
        p += len;
        left -= len;
    }

    require(left == 0);
}

static void
check_field(char kind, const uint8_t *p, size_t len)
{
    switch (kind) {
    case 'u':
        require(len == 16);
        break;
    case 'h':
        require(len == AFF_BODY_HASH_BYTES);
        break;
    case 's':
        require(len == AFF_REFUSAL_HASH_BYTES);
        break;
    case 'n':
        require((p[0] == 2 && p[1] == 24 && p[2] == 1 && p[3] == 4 && len == 8) ||
                (p[0] == 3 && p[1] == 48 && p[2] == 1 && p[3] == 16 && len == 20));
        break;
    case 't':
        require(copy_text_valid(aff_slice(p, len)));
        break;
    case 'a':
        check_array(p, len);
        break;
    default:
        require(len == (size_t) (kind - '0'));
    }
}

/* What COPY brought, from its header to its trailer. */
static uint64_t
check_rows(const PGconn *conn)
{
    const uint8_t *p = conn->copied + COPY_HEADER_LEN;
    size_t left = conn->len - COPY_HEADER_LEN;
    uint64_t rows = 0;

    require(conn->len > COPY_HEADER_LEN && memcmp(conn->copied, "PGCOPY\n\377\r\n", 11) == 0);

    while (left > 2) {
        require(take(&p, &left, 2) == strlen(conn->fields));
        for (const char *kind = conn->fields; *kind != '\0'; kind++) {
            uint32_t len = take(&p, &left, 4);

            if (len != UINT32_MAX) {
                require(len <= left);
                check_field(*kind, p, len);
                p += len;
                left -= len;
            }
        }

        rows++;
    }

    require(take(&p, &left, 2) == 0xffff);
    return rows;
}

/* --- statements --- */

static PGresult *
result_of(ExecStatusType status, const char *sqlstate, int rows)
{
    PGresult *result = calloc(1, sizeof(*result));

    require(result != NULL);
    *result = (PGresult){.status = status, .sqlstate = sqlstate, .rows = rows, .command = ""};
    return result;
}

static bool
begins(const char *sql, const char *with)
{
    return strncmp(sql, with, strlen(with)) == 0;
}

/* NULL if the statement does not fail. */
static PGresult *
failure(PGconn *conn)
{
    unsigned n = ++postgres.statements;

    if (postgres.fail_at == 0 ||
        (n != postgres.fail_at && (!postgres.again || n % postgres.fail_at != 0))) {
        return NULL;
    }

    conn->failed = conn->in_transaction;
    return result_of(PGRES_FATAL_ERROR, postgres.sqlstate, 0);
}

/* Statements that begin and end transactions; NULL for any other. */
static PGresult *
transact(PGconn *conn, const char *sql)
{
    PGresult *result = result_of(PGRES_COMMAND_OK, NULL, 0);

    if (begins(sql, "begin")) {
        require(!conn->in_transaction);
        conn->in_transaction = true;
    } else if (begins(sql, "commit")) {
        require(conn->in_transaction);
        result->command = conn->failed ? "ROLLBACK" : "COMMIT";
        postgres.commits += !conn->failed;
        conn->in_transaction = conn->failed = false;
    } else if (begins(sql, "rollback to savepoint")) {
        require(conn->in_transaction);
        conn->failed = false;
    } else if (begins(sql, "rollback")) {
        conn->in_transaction = conn->failed = false;
    } else {
        PQclear(result);
        return NULL;
    }

    return result;
}

static PGresult *
execute(PGconn *conn, const char *sql)
{
    PGresult *result;

    require(!conn->copying && conn->next == NULL);
    result = transact(conn, sql);
    if (result != NULL) {
        return result;
    }

    if (conn->failed) {
        return result_of(PGRES_FATAL_ERROR, "25P02", 0);
    }

    result = failure(conn);
    if (result != NULL) {
        return result;
    }

    if (begins(sql, "copy ")) {
        require(conn->in_transaction);
        conn->copying = true;
        conn->len = 0;
        conn->fields = begins(sql, "copy pg_temp.conv")   ? CONVERSION_FIELDS_OF
                       : begins(sql, "copy pg_temp.call") ? REFUSAL_FIELDS_OF
                                                          : CLICK_FIELDS_OF;
        return result_of(PGRES_COPY_IN, NULL, 0);
    }

    result = result_of(PGRES_TUPLES_OK, NULL, 1);
    if (strstr(sql, "click_partitions") != NULL) {
        result->rows = 2;
        result->days = true;
    }

    return result;
}

PGresult *
PQexec(PGconn *conn, const char *query)
{
    return execute(conn, query);
}

/* Elements of an array literal. */
static int
elements(const char *literal)
{
    int n = 1;

    require(literal[0] == '{' && literal[strlen(literal) - 1] == '}');
    for (; *literal != '\0'; literal++) {
        require(strchr("{},-0123456789", *literal) != NULL);
        n += *literal == ',';
    }

    return n;
}

PGresult *
PQexecParams(PGconn *conn, const char *command, int nParams, const Oid *paramTypes,
    const char *const *paramValues, const int *paramLengths, const int *paramFormats,
    int resultFormat)
{
    PGresult *result = execute(conn, command);

    (void) paramTypes;
    (void) paramFormats;
    (void) resultFormat;

    if (result->status != PGRES_TUPLES_OK) {
        return result;
    }

    if (strstr(command, "inbox_accept") != NULL) {
        require(nParams == 5);
        result->counted = true;
        result->rows = elements(paramValues[1]);
        for (int i = 2; i < 5; i++) {
            require(elements(paramValues[i]) == result->rows);
        }
    } else if (strstr(command, "dead_letter_add") != NULL) {
        require(nParams == 8 && paramLengths[7] >= 0);
        require(copy_text_valid(aff_slice_of(paramValues[5])));
        require(copy_text_valid(aff_slice_of(paramValues[6])));
        /* So that the sanitizer sees a payload that is not there. */
        for (int i = 0; i < paramLengths[7]; i++) {
            postgres.statements += paramValues[7][i] == 0 ? 0 : 0;
        }

        if (paramValues[4] == NULL || strcmp(paramValues[5], "corrupt_frame") == 0) {
            postgres.dead_rest++;
        } else {
            postgres.dead++;
        }
    }

    return result;
}

int
PQsendQuery(PGconn *conn, const char *query)
{
    conn->next = execute(conn, query);
    return 1;
}

PGresult *
PQgetResult(PGconn *conn)
{
    PGresult *result = conn->next;

    require(!conn->copying);
    conn->next = NULL;
    return result;
}

int
PQputCopyData(PGconn *conn, const char *buffer, int nbytes)
{
    require(conn->copying && nbytes > 0);
    if (conn->size - conn->len < (size_t) nbytes) {
        conn->size = 2 * conn->size + (size_t) nbytes;
        conn->copied = realloc(conn->copied, conn->size);
        require(conn->copied != NULL);
    }

    memcpy(conn->copied + conn->len, buffer, (size_t) nbytes);
    conn->len += (size_t) nbytes;
    return 1;
}

int
PQputCopyEnd(PGconn *conn, const char *errormsg)
{
    uint64_t rows;

    require(conn->copying && errormsg == NULL);
    conn->copying = false;
    rows = check_rows(conn);
    conn->next = failure(conn);
    if (conn->next == NULL) {
        postgres.rows += rows;
        conn->next = result_of(PGRES_COMMAND_OK, NULL, 0);
    }

    return 1;
}

/* --- results --- */

ExecStatusType
PQresultStatus(const PGresult *res)
{
    return res == NULL ? PGRES_FATAL_ERROR : res->status;
}

char *
PQresultErrorField(const PGresult *res, int fieldcode)
{
    return fieldcode == PG_DIAG_SQLSTATE ? (char *) res->sqlstate : (char *) "made to fail";
}

char *
PQcmdStatus(PGresult *res)
{
    return (char *) res->command;
}

int
PQntuples(const PGresult *res)
{
    return res == NULL ? 0 : res->rows;
}

int
PQfnumber(const PGresult *res, const char *field_name)
{
    return res != NULL && field_name[0] != '\0' ? 0 : -1;
}

char *
PQgetvalue(const PGresult *res, int tup_num, int field_num)
{
    static char value[32];

    require(res != NULL && tup_num >= 0 && tup_num < res->rows);
    if (res->days && field_num == 1) {
        return (char *) "affiliate.click_leaf";
    }

    (void) snprintf(value, sizeof(value), "%llu",
        (unsigned long long) (res->days      ? postgres.today + (uint64_t) tup_num
                              : res->counted ? (uint64_t) tup_num + 1
                                             : 0));
    return value;
}

void
PQclear(PGresult *res)
{
    free(res);
}

/* --- connections --- */

PGconn *
PQconnectStartParams(const char *const *keywords, const char *const *values, int expand_dbname)
{
    PGconn *conn = calloc(1, sizeof(*conn));

    require(conn != NULL && keywords[0] != NULL && values[0] != NULL && expand_dbname == 1);
    return conn;
}

void
PQreset(PGconn *conn)
{
    require(conn != NULL);
}

ConnStatusType
PQstatus(const PGconn *conn)
{
    return conn == NULL ? CONNECTION_BAD : CONNECTION_OK;
}

char *
PQerrorMessage(const PGconn *conn)
{
    return (char *) (conn == NULL ? "no connection" : "");
}

int
PQsocket(const PGconn *conn)
{
    return conn == NULL ? -1 : -1;
}

PQnoticeProcessor
PQsetNoticeProcessor(PGconn *conn, PQnoticeProcessor proc, void *arg)
{
    (void) conn;
    (void) arg;
    return proc;
}

void
PQfinish(PGconn *conn)
{
    if (conn != NULL) {
        PQclear(conn->next);
        free(conn->copied);
        free(conn);
    }
}

#endif
