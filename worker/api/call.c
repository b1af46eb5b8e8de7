/*
 * From a request to one function of the schema, and from its rows to an answer.
 *
 * affiliate.api_call() is one transaction, and what it says leaves us only after that is committed.
 * Its first row is the head (status, etag, replayed, location), the others are data: one object, or
 * the rows of a list, one more than was asked for if there are more. Members that begin with '_'
 * are ours and go no further.
 */

#include "worker/api/csv.h"
#include "worker/api/exchange.h"

#include "protocol/chars.h"
#include "protocol/url.h"

#include <stdlib.h>

#define CALL_ATTEMPTS    3
#define CALL_LIMIT       50 /* rows of a list, unless the request says otherwise */
#define CALL_LIMIT_MAX   200
#define CALL_AGENT_MAX   256
#define CALL_COLUMNS_MAX 64
#define CALL_PROGRESS    1024 /* rows */

static atomic_int call_long; /* files on their way in or out */

#define CALL_FROM                                                                                  \
    " from affiliate.api_call($1::jsonb, $2, $3::jsonb, $4::jsonb) with ordinality t(r, n)"

/* What of a row is ours. */
#define CALL_OURS "'{_cursor,_secret,_recovery,_upload,_line}'::text[]"

typedef bool (*call_sink)(struct exchange *x, const PGresult *result, int row, void *data);

static bool
call_connected(struct exchange *x)
{
    struct lane *lane = x->lane;
    struct pg_error error;

    if (lane->pg != NULL && pg_alive(lane->pg)) {
        return true;
    }

    /* It was restarted, perhaps, and is there again. */
    PQfinish(lane->pg);
    lane->pg = NULL;
    if (!lane_connect(lane, &error)) {
        (void) role_failed_pg(lane->role, "connecting", &error);
        lane->lost = true;
        return answer_unavailable(x, "The database can't be reached just now.");
    }

    return true;
}

static json_t *
call_detail(const PGresult *result)
{
    const char *text = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);
    json_t *detail = text == NULL ? NULL : json_loads(text, 0, NULL);

    if (detail != NULL && json_is_array(detail)) {
        return json_pack("{s:o}", "errors", detail);
    }

    return detail;
}

/* {"field": "rule", ...} as errors[]. `rules` is given away. */
static json_t *
call_errors(json_t *rules)
{
    json_t *errors = json_array(), *rule;
    const char *field;

    json_object_foreach(rules, field, rule)
    {
        json_array_append_new(
            errors, json_pack("{s:s+, s:O}", "pointer", "/", field, "detail", rule));
    }

    json_decref(rules);
    return json_pack("{s:o}", "errors", errors);
}

/* "field: rule"; where there are several, they are the error's detail. */
static bool
call_refused(struct exchange *x, const PGresult *result, const char *message)
{
    json_t *more = call_detail(result);
    bool several = json_is_object(more) && json_object_size(more) > 0;
    const char *colon = strstr(message, ": ");
    struct aff_slice field = aff_slice(message, colon == NULL ? 0 : (size_t) (colon - message));
    char pointer[REQUEST_NAME_MAX + 2] = "";

    if (several) {
        more = call_errors(more);
    } else {
        json_decref(more);
        if (field.len <= REQUEST_NAME_MAX && colon != NULL) {
            snprintf(pointer, sizeof(pointer), "/%.*s", (int) field.len, message);
        }

        more = json_pack("{s:[{s:s, s:s}]}", "errors", "pointer", pointer, "detail",
            colon == NULL ? message : colon + 2);
    }

    return answer_problem(x, 422, "invalid_field", more, "%s", message);
}

/* What a function raised of its own will: 22023 by refuse(), AFxxx by problem(). */
static bool
call_raised(struct exchange *x, const PGresult *result, const char *sqlstate)
{
    const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    const char *code = PQresultErrorField(result, PG_DIAG_MESSAGE_HINT);
    int status = 0;

    if (strcmp(sqlstate, "22023") == 0) {
        return call_refused(x, result, message);
    }

    for (unsigned i = 2; i < 5; i++) {
        status = status * 10 + (sqlstate[i] >= '0' && sqlstate[i] <= '9' ? sqlstate[i] - '0' : 99);
    }

    if (status < 400 || status > 599) {
        status = 500;
    }

    return answer_problem(
        x, status, code == NULL ? "refused" : code, call_detail(result), "%s", message);
}

/* True if the same statement should run again; else the exchange is answered. */
static bool
call_again(struct exchange *x, const PGresult *result, bool repeatable, unsigned attempt)
{
    const char *sqlstate = result == NULL ? NULL : PQresultErrorField(result, PG_DIAG_SQLSTATE);
    struct pg_error error;

    pg_error_of(x->lane->pg, result, &error);
    if (PQstatus(x->lane->pg) == CONNECTION_BAD || sqlstate == NULL) {
        (void) role_failed_pg(x->lane->role, "working for a request", &error);
        PQfinish(x->lane->pg);
        x->lane->pg = NULL;
        if (repeatable && attempt + 1 < CALL_ATTEMPTS) {
            return call_connected(x);
        }

        x->lane->lost = true;
        return answer_unavailable(
            x, repeatable
                   ? "The database can't be reached just now."
                   : "The database went away: it may be done or not. Look before you repeat it.");
    }

    if (strcmp(sqlstate, "40001") == 0 || strcmp(sqlstate, "40P01") == 0) {
        return attempt + 1 < CALL_ATTEMPTS ||
               answer_unavailable(x, "Others change the same things just now.");
    }

    if (strcmp(sqlstate, "22023") == 0 || strncmp(sqlstate, "AF", 2) == 0) {
        return call_raised(x, result, sqlstate);
    }

    if (error.class == PG_CLASS_RETRY) {
        return answer_unavailable(x, strcmp(sqlstate, "57014") == 0
                                         ? "This takes too long just now."
                                         : "The database is busy just now.");
    }

    log_error("request %s: %s: PostgreSQL: %s (%s)", x->id,
        x->route == NULL ? "-" : x->route->operation, error.message, error.sqlstate);
    return answer_problem(
        x, 500, "internal_error", NULL, "This should not have happened. It has been logged.");
}

/* Reads all results of the statement under way. NULL, or the one that failed. */
static bool
call_results(struct exchange *x, call_sink sink, void *data, PGresult **failed)
{
    PGconn *pg = x->lane->pg;
    PGresult *result;
    uint64_t rows = 0;
    bool ok = true;

    *failed = NULL;
    while ((result = PQgetResult(pg)) != NULL) {
        ExecStatusType status = PQresultStatus(result);

        if (status == PGRES_TUPLES_OK || status == PGRES_SINGLE_TUPLE) {
            for (int i = 0; ok && i < PQntuples(result); i++) {
                ok = sink(x, result, i, data);
                if (++rows % CALL_PROGRESS == 0) {
                    role_progress(x->lane->role);
                }
            }
        } else if (*failed == NULL) {
            *failed = result;
            continue;
        }

        PQclear(result);
    }

    return *failed == NULL && PQstatus(pg) == CONNECTION_OK;
}

struct call_statement {
    const char *sql;
    int count;
    const char *const *values;
    bool repeatable;
    bool stream; /* row by row: there may be very many */
    call_sink sink;
    void (*restart)(
        struct exchange *x, void *data); /* forgets the rows of an attempt that failed */
    void *data;
};

/* True if it was sent; else the connection tells why not. */
static bool
call_send(struct exchange *x, const struct call_statement *s)
{
    struct pg_error error;

    if (s->stream && !lane_limit(x->lane, x->config->api.export_timeout, &error)) {
        return false;
    }

    if (PQsendQueryParams(x->lane->pg, s->sql, s->count, NULL, s->values, NULL, NULL, 0) != 1) {
        return false;
    }

    return !s->stream || PQsetSingleRowMode(x->lane->pg) == 1;
}

static bool
call_run(struct exchange *x, const struct call_statement *s)
{
    for (unsigned attempt = 0;; attempt++) {
        PGresult *failed = NULL;
        bool again;

        if (!call_connected(x)) {
            return false;
        }

        role_progress(x->lane->role);
        s->restart(x, s->data);
        if (call_send(x, s) && call_results(x, s->sink, s->data, &failed)) {
            return true;
        }

        again = call_again(x, failed, s->repeatable, attempt);
        PQclear(failed);
        if (!again) {
            return false;
        }
    }
}

static bool
call_take_value(struct exchange *x, const PGresult *result, int row, void *data)
{
    json_t **value = data;

    (void) x;
    if (PQgetisnull(result, row, 0)) {
        return true;
    }

    json_decref(*value);
    *value = json_loadb(
        PQgetvalue(result, row, 0), (size_t) PQgetlength(result, row, 0), JSON_DECODE_ANY, NULL);
    return *value != NULL;
}

static void
call_restart_value(struct exchange *x, void *data)
{
    json_t **value = data;

    (void) x;
    json_decref(*value);
    *value = NULL;
}

json_t *
call_value(
    struct exchange *x, const char *sql, int count, const char *const *values, bool repeatable)
{
    json_t *value = NULL;
    struct call_statement statement = {.sql = sql,
        .count = count,
        .values = values,
        .repeatable = repeatable,
        .sink = call_take_value,
        .restart = call_restart_value,
        .data = &value};

    if (!call_run(x, &statement)) {
        json_decref(value);
        return NULL;
    }

    return value == NULL ? json_null() : value;
}

char *
call_credential(const struct exchange *x)
{
    const struct credential *c = &x->credential;
    json_t *object = json_object();
    char *text;

    if (c->kind == CREDENTIAL_KEY) {
        json_object_set_new(object, "key", json_string(c->key));
    } else if (c->kind == CREDENTIAL_SESSION) {
        json_object_set_new(object, "session", json_string(c->session));
        if (c->csrf[0] != '\0') {
            json_object_set_new(object, "csrf", json_string(c->csrf));
        }
    }

    text = json_dumps(object, JSON_COMPACT);
    json_decref(object);
    return text;
}

/* What the same key may be used for again: the same method, target and body. */
static void
call_body_hash(struct exchange *x)
{
    char body[TEXT_SHA256_CHARS + 1];
    struct buffer text;
    struct aff_slice whole = {0};

    if (x->body_hash[0] != '\0') {
        return;
    }

    text_sha256(x->body, body);
    buffer_open(&text, SCGI_INPUT_MAX, NULL);
    buffer_put(&text, x->method.data, x->method.len);
    buffer_puts(&text, "\n");
    buffer_put(&text, x->target.data, x->target.len);
    buffer_puts(&text, "\n");
    buffer_puts(&text, body);
    if (buffer_whole(&text, &whole)) {
        text_sha256(whole, x->body_hash);
    }

    buffer_close(&text);
}

static void
call_set(json_t *object, const char *name, struct aff_slice value)
{
    if (value.len > 0) {
        json_object_set_new(object, name, json_stringn((const char *) value.data, value.len));
    }
}

char *
call_meta(struct exchange *x)
{
    json_t *object = json_pack("{s:s}", "request_id", x->id);
    char agent[CALL_AGENT_MAX];
    struct aff_slice value;
    size_t len;
    char *text;

    call_set(object, "address", aff_slice_of(x->prefix));
    call_set(object, "method", x->method);
    call_set(object, "idempotency_key", x->idempotency_key);
    if (!aff_slice_equal(x->method, aff_slice_of("GET"))) {
        call_body_hash(x);
        call_set(object, "body_hash", aff_slice_of(x->body_hash));
    }

    (void) scgi_find(&x->lane->head, "HTTP_IF_MATCH", &value);
    if (text_utf8(value)) {
        call_set(object, "if_match", value);
    }

    (void) scgi_find(&x->lane->head, "HTTP_USER_AGENT", &value);
    len = value.len < sizeof(agent) ? value.len : sizeof(agent);
    for (size_t i = 0; i < len; i++) {
        agent[i] = '?';
        if (value.data[i] >= 0x20 && value.data[i] < 0x7f) {
            agent[i] = (char) value.data[i];
        }
    }
    call_set(object, "user_agent", aff_slice(agent, len));

    text = json_dumps(object, JSON_COMPACT);
    json_decref(object);
    return text;
}

void
outcome_free(struct outcome *outcome)
{
    json_decref(outcome->head);
    json_decref(outcome->row);
    outcome->head = outcome->row = NULL;
}

static void
call_restart(struct exchange *x, void *data)
{
    struct outcome *outcome = data;

    outcome_free(outcome);
    outcome->rows = 0;
    outcome->more = outcome->failed = false;
    outcome->next[0] = '\0';
    buffer_reset(&x->answer);
    if (outcome->list && !x->csv) {
        buffer_puts(&x->answer, "{\"data\":[");
    }
}

static struct aff_slice
call_cell(const PGresult *result, int row, int column)
{
    return aff_slice(PQgetvalue(result, row, column), (size_t) PQgetlength(result, row, column));
}

static bool
call_take_head(struct outcome *outcome, const PGresult *result, int row)
{
    outcome->head =
        json_loadb(PQgetvalue(result, row, 0), (size_t) PQgetlength(result, row, 0), 0, NULL);
    outcome->failed = outcome->head == NULL;
    return !outcome->failed;
}

/* Columns: the row, its cursor. */
static bool
call_take_json(struct exchange *x, const PGresult *result, int row, void *data)
{
    struct outcome *outcome = data;
    struct aff_slice text = call_cell(result, row, 0);

    if (outcome->head == NULL) {
        return call_take_head(outcome, result, row);
    }

    outcome->rows++;
    if (outcome->keep) {
        if (outcome->row == NULL) {
            outcome->row = json_loadb((const char *) text.data, text.len, 0, NULL);
            outcome->failed = outcome->row == NULL;
        }

        return !outcome->failed;
    }

    if (outcome->limit > 0 && outcome->rows > outcome->limit) {
        outcome->more = true;
        return true;
    }

    if (outcome->list) {
        buffer_puts(&x->answer, outcome->rows == 1 ? "" : ",");
        snprintf(outcome->next, sizeof(outcome->next), "%s", PQgetvalue(result, row, 1));
    }

    if (outcome->list || outcome->rows == 1) {
        buffer_put(&x->answer, text.data, text.len);
    }

    return true;
}

/* Columns: the head, or null; then the cells. */
static bool
call_take_csv(struct exchange *x, const PGresult *result, int row, void *data)
{
    struct outcome *outcome = data;

    if (outcome->head == NULL) {
        const char *names = x->route->columns;

        buffer_puts(&x->answer, names);
        buffer_puts(&x->answer, "\r\n");
        return call_take_head(outcome, result, row);
    }

    outcome->rows++;
    for (int i = 1; i < PQnfields(result); i++) {
        buffer_puts(&x->answer, i == 1 ? "" : ",");
        csv_put(&x->answer, call_cell(result, row, i));
    }
    buffer_puts(&x->answer, "\r\n");
    return true;
}

/* `select head, r #>> '{a,b}', ... from`: the columns are the table's, checked by its generator. */
static bool
call_csv_sql(const struct exchange *x, char *sql, size_t size)
{
    size_t len = (size_t) snprintf(sql, size, "select case when n = 1 then r end");
    const char *column = x->route->columns;

    while (column != NULL && *column != '\0') {
        size_t n = strcspn(column, ",");

        if (len + n + 16 >= size) {
            return false;
        }

        len += (size_t) snprintf(sql + len, size - len, ", r #>> '{%.*s}'", (int) n, column);
        for (char *p = sql + len - n - 2; *p != '\0'; p++) {
            if (*p == '.') {
                *p = ',';
            }
        }

        column += n + (column[n] == ',');
    }

    return len + sizeof(CALL_FROM) <= size && snprintf(sql + len, size - len, CALL_FROM) > 0;
}

/* A mutation without an Idempotency-Key may have been done when the connection breaks. */
static bool
call_repeatable(const struct exchange *x)
{
    return x->idempotency_key.len > 0 || aff_slice_equal(x->method, aff_slice_of("GET")) ||
           aff_slice_equal(x->method, aff_slice_of("HEAD"));
}

bool
call_rows(struct exchange *x, const char *operation, struct outcome *outcome)
{
    char sql[4096];
    char *credential = call_credential(x), *meta = call_meta(x);
    char *request = json_dumps(x->fields, JSON_COMPACT);
    const char *values[] = {credential, operation, request, meta};
    struct call_statement statement = {.sql = sql,
        .count = 4,
        .values = values,
        .repeatable = call_repeatable(x),
        .stream = x->csv,
        .sink = x->csv ? call_take_csv : call_take_json,
        .restart = call_restart,
        .data = outcome};
    bool ok = credential != NULL && meta != NULL && request != NULL;

    if (x->csv) {
        ok = ok && call_csv_sql(x, sql, sizeof(sql));
    } else {
        snprintf(sql, sizeof(sql), "select %s, r ->> '_cursor'" CALL_FROM,
            outcome->keep ? "r" : "r - " CALL_OURS);
    }

    ok = ok ? call_run(x, &statement) : answer_unavailable(x, "There is no memory left.");
    if (request != NULL) {
        explicit_bzero(request, strlen(request));
    }

    free(credential);
    free(meta);
    free(request);
    if (ok && (outcome->head == NULL || outcome->failed)) {
        log_error("request %s: %s gave no head, or no JSON", x->id, operation);
        return answer_problem(
            x, 500, "internal_error", NULL, "This should not have happened. It has been logged.");
    }

    return ok;
}

bool
call_head(struct exchange *x, const json_t *head)
{
    const char *etag = json_string_value(json_object_get(head, "etag"));
    const char *location = json_string_value(json_object_get(head, "location"));
    json_t *status = json_object_get(head, "status");
    struct aff_slice seen;
    char quoted[256];

    x->status = status == NULL ? 200 : (int) json_integer_value(status);
    if (json_is_true(json_object_get(head, "replayed"))) {
        answer_header(x, "Idempotent-Replayed", "true");
    }

    if (location != NULL) {
        answer_header(x, "Location", "%s", location);
    }

    if (etag != NULL) {
        snprintf(quoted, sizeof(quoted), etag[0] == '"' ? "%s" : "\"%s\"", etag);
        answer_header(x, "ETag", "%s", quoted);
        (void) scgi_find(&x->lane->head, "HTTP_IF_NONE_MATCH", &seen);
        if (x->status == 200 && aff_slice_equal(seen, aff_slice_of(quoted)) &&
            strcmp(x->route->method, "GET") == 0) {
            x->status = 304;
        }
    }

    return true;
}

/* What is no JSON: a file, as SQL made it. */
static bool
answer_file(struct exchange *x, const json_t *row)
{
    const json_t *content = json_object_get(row, "_content");
    const char *type = json_string_value(json_object_get(row, "_type"));
    const char *name = json_string_value(json_object_get(row, "_name"));

    buffer_put(&x->answer, json_string_value(content), json_string_length(content));
    answer_header(x, "Content-Type", "%s", type);
    if (name != NULL) {
        answer_header(x, "Content-Disposition", "attachment; filename=\"%s\"", name);
    } else {
        answer_header(x, "Content-Security-Policy",
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox");
    }

    return true;
}

bool
answer_row(struct exchange *x, const struct outcome *outcome)
{
    static const char *const ours[] = {
        "_cursor", "_secret", "_recovery", "_upload", "_line", "_master_id"};
    char *text;

    buffer_reset(&x->answer);
    if (outcome->row == NULL) {
        return true;
    }

    if (json_is_string(json_object_get(outcome->row, "_content"))) {
        return answer_file(x, outcome->row);
    }

    for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
        json_object_del(outcome->row, ours[i]);
    }

    text = json_dumps(outcome->row, JSON_COMPACT);
    if (text == NULL) {
        return answer_unavailable(x, "There is no memory left.");
    }

    buffer_puts(&x->answer, text);
    buffer_puts(&x->answer, "\n");
    explicit_bzero(text, strlen(text));
    free(text);
    answer_header(x, "Content-Type", "application/json");
    return true;
}

/* The request's own target with another `after`. */
static void
call_link_next(struct exchange *x, const char *next)
{
    struct aff_slice query = x->query, name, value;
    struct buffer link;
    struct aff_slice whole;

    buffer_open(&link, 2 * (size_t) REQUEST_TARGET_MAX, NULL);
    buffer_puts(&link, "<");
    buffer_put(&link, x->path.data, x->path.len);
    buffer_puts(&link, "?");
    while (aff_query_next(&query, &name, &value)) {
        if (!aff_slice_equal(name, aff_slice_of("after"))) {
            buffer_put(&link, name.data, name.len);
            buffer_puts(&link, "=");
            buffer_put(&link, value.data, value.len);
            buffer_puts(&link, "&");
        }
    }

    buffer_puts(&link, "after=");
    for (const char *p = next; *p != '\0'; p++) {
        if (aff_char_is((uint8_t) *p, AFF_CHAR_UNRESERVED)) {
            buffer_put(&link, p, 1);
        } else {
            buffer_printf(&link, "%%%02X", (uint8_t) *p);
        }
    }

    buffer_puts(&link, ">; rel=\"next\"");
    buffer_put(&link, "", 1);
    if (buffer_whole(&link, &whole) && aff_chars_visible(aff_slice(whole.data, 8)) &&
        whole.len < 1000) {
        answer_header(x, "Link", "%s", (const char *) whole.data);
    }

    buffer_close(&link);
}

/* {"data": [...], "has_more": ..., "next": ...} around the rows, which are there already. */
static bool
call_finish_list(struct exchange *x, const struct outcome *outcome)
{
    buffer_printf(&x->answer, "],\"has_more\":%s,\"next\":", outcome->more ? "true" : "false");
    if (outcome->more) {
        buffer_json(&x->answer, aff_slice_of(outcome->next));
        call_link_next(x, outcome->next);
    } else {
        buffer_puts(&x->answer, "null");
    }

    buffer_puts(&x->answer, "}\n");
    answer_header(x, "Content-Type", "application/json");
    return true;
}

static bool
call_finish_object(struct exchange *x, const struct outcome *outcome)
{
    if (outcome->rows > 0) {
        buffer_puts(&x->answer, "\n");
        answer_header(x, "Content-Type", "application/json");
    } else if (x->status == 200) {
        x->status = 204;
    }

    return true;
}

/* How many rows a list is to have. SQL refuses what is none; then this does not matter. */
static uint64_t
call_limit(const struct exchange *x)
{
    const char *text = json_string_value(json_object_get(x->fields, "limit"));
    unsigned long limit = text == NULL ? CALL_LIMIT : strtoul(text, NULL, 10);

    return limit < 1 || limit > CALL_LIMIT_MAX ? CALL_LIMIT_MAX : limit;
}

/* All that there is, as it was filtered. */
static bool
call_all(struct exchange *x)
{
    json_object_del(x->fields, "limit");
    json_object_del(x->fields, "after");
    return json_object_set_new(x->fields, "all", json_true()) == 0 ||
           answer_unavailable(x, "There is no memory left.");
}

static bool
call_finish(struct exchange *x, const struct native *native, struct outcome *outcome)
{
    if (!call_head(x, outcome->head)) {
        return false;
    }

    if (native != NULL && native->after != NULL) {
        x->status = outcome->row == NULL && x->status == 200 ? 204 : x->status;
        return native->after(x, outcome->row) && answer_row(x, outcome);
    }

    if (x->csv) {
        answer_header(x, "Content-Type", "text/csv; charset=utf-8; header=present");
        answer_header(
            x, "Content-Disposition", "attachment; filename=\"%s.csv\"", x->route->operation);
        return true;
    }

    return outcome->list ? call_finish_list(x, outcome) : call_finish_object(x, outcome);
}

static bool
call_export(struct exchange *x, struct outcome *outcome)
{
    struct pg_error error;
    bool ok = call_all(x) && call_rows(x, x->route->operation, outcome);

    if (x->lane->pg != NULL) {
        (void) lane_limit(x->lane, x->config->api.statement_timeout, &error);
    }

    return ok;
}

static bool
call_work(struct exchange *x, const struct native *native)
{
    struct outcome outcome = {.list = x->route->columns != NULL,
        .keep = native != NULL && native->after != NULL,
        .limit = call_limit(x)};
    bool ok = x->csv ? call_export(x, &outcome) : call_rows(x, x->route->operation, &outcome);

    ok = ok && call_finish(x, native, &outcome);
    outcome_free(&outcome);
    return ok;
}

/* What takes long must not keep all lanes from what does not. */
static bool
call_long_work(struct exchange *x, const struct native *native)
{
    bool ok;

    if (atomic_fetch_add(&call_long, 1) >= (x->config->api.threads + 1) / 2) {
        ok = answer_unavailable(x, "Too many files are on their way just now.");
    } else {
        ok = x->csv ? call_work(x, native) : upload_operation(x);
    }

    atomic_fetch_sub(&call_long, 1);
    return ok;
}

bool
call_operation(struct exchange *x)
{
    const struct native *native = native_find(x->route->operation);

    if (native != NULL && native->instead != NULL) {
        return native->instead(x);
    }

    if (native != NULL && native->before != NULL && !native->before(x)) {
        return false;
    }

    return x->csv || (x->route->flags & ROUTE_UPLOAD) != 0 ? call_long_work(x, native)
                                                           : call_work(x, native);
}
