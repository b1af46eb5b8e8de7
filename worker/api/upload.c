/*
 * A CSV body becomes rows in three operations: X tells that one comes, and gets its name; X_rows
 * takes parts of it, in order, each a transaction of its own that may come twice; X_done ends it,
 * in as many steps as it wants, and makes the answer. An upload that broke off goes on where it was
 * when it is sent again under the same Idempotency-Key.
 */

#include "worker/api/csv.h"
#include "worker/api/exchange.h"

#include <stdlib.h>

#define UPLOAD_ROWS_MAX  1000000
#define UPLOAD_PART_ROWS 2000
#define UPLOAD_PART_MAX  (512 * 1024UL) /* bytes of cells */

struct upload {
    struct csv_reader reader;
    struct aff_slice rest; /* of the body, not read yet */
    uint64_t line;         /* rows read so far, without the header */
    uint64_t stored;       /* of them, as far as SQL has said: those are not sent again */
    char *name;
    json_t *path; /* what every operation gets: path and query parameters */
};

static enum csv_event
upload_next(struct upload *upload)
{
    enum csv_event event = csv_read(&upload->reader, &upload->rest);

    return event == CSV_MORE ? csv_end(&upload->reader) : event;
}

static bool
upload_malformed(struct exchange *x, const struct upload *upload)
{
    const struct csv_reader *reader = &upload->reader;
    char pointer[32];

    snprintf(pointer, sizeof(pointer), "/%lu", reader->row);
    return answer_problem(x, 422, "malformed_csv",
        json_pack("{s:[{s:s, s:s}]}", "errors", "pointer", pointer, "detail", reader->problem),
        "Row %lu %s.", reader->row, reader->problem);
}

static json_t *
upload_cells(const struct csv_reader *reader, bool trim)
{
    json_t *cells = json_array();

    for (unsigned i = 0; i < reader->columns; i++) {
        struct aff_slice cell = csv_cell(reader, i);

        while (trim && cell.len > 0 && cell.data[0] == ' ') {
            cell = aff_slice(cell.data + 1, cell.len - 1);
        }

        while (trim && cell.len > 0 && cell.data[cell.len - 1] == ' ') {
            cell.len--;
        }

        json_array_append_new(
            cells, json_stringn_nocheck(cell.len == 0 ? "" : (const char *) cell.data, cell.len));
    }

    return cells;
}

/* One of the three; its row is in `outcome`. `fields` is given away. */
static bool
upload_call(struct exchange *x, const struct upload *upload, const char *suffix, json_t *fields,
    struct outcome *outcome)
{
    char operation[128];
    bool ok;

    *outcome = (struct outcome){.keep = true};
    snprintf(operation, sizeof(operation), "%s%s", x->route->operation, suffix);
    if (fields == NULL || json_object_update(fields, upload->path) != 0) {
        json_decref(fields);
        return answer_unavailable(x, "There is no memory left.");
    }

    json_decref(x->fields);
    x->fields = fields;
    ok = call_rows(x, operation, outcome);
    if (!ok) {
        outcome_free(outcome);
    }

    return ok;
}

/* Begins, or goes on. With `*done` it was answered from memory. */
static bool
upload_begin(struct exchange *x, struct upload *upload, bool *done)
{
    enum csv_event event = upload_next(upload);
    struct outcome outcome;
    const char *name;
    bool ok;

    if (event != CSV_ROW) {
        return event == CSV_MORE
                   ? answer_problem(x, 422, "malformed_csv", NULL, "There is no header line.")
                   : upload_malformed(x, upload);
    }

    if (!upload_call(x, upload, "",
            json_pack("{s:o, s:I}", "_header", upload_cells(&upload->reader, true), "_bytes",
                (json_int_t) x->body.len),
            &outcome)) {
        return false;
    }

    name = json_string_value(json_object_get(outcome.row, "_upload"));
    *done = name == NULL;
    if (*done) {
        ok = call_head(x, outcome.head) && answer_row(x, &outcome);
    } else {
        upload->name = strdup(name);
        ok = upload->name != NULL || answer_unavailable(x, "There is no memory left.");
    }

    outcome_free(&outcome);
    return ok;
}

/* Its answer says with "_line" which row is the first that was not stored yet. */
static bool
upload_flush(struct exchange *x, struct upload *upload, uint64_t first, json_t *rows)
{
    struct outcome outcome;
    json_int_t next;
    bool ok;

    if (json_array_size(rows) == 0) {
        json_decref(rows);
        return true;
    }

    ok = upload_call(x, upload, "_rows",
        json_pack(
            "{s:s, s:I, s:o}", "_upload", upload->name, "_line", (json_int_t) first, "_rows", rows),
        &outcome);
    if (ok) {
        next = json_integer_value(json_object_get(outcome.row, "_line"));
        upload->stored = next > 1 ? (uint64_t) next - 1 : upload->line;
        outcome_free(&outcome);
    }

    return ok;
}

/* Reads the next part and stores it. With `*end` that was the last one. */
static bool
upload_part(struct exchange *x, struct upload *upload, bool *end)
{
    json_t *rows = json_array();
    uint64_t first = upload->line + 1;
    size_t bytes = 0;

    while (json_array_size(rows) < UPLOAD_PART_ROWS && bytes < UPLOAD_PART_MAX) {
        enum csv_event event = upload_next(upload);

        if (event == CSV_MORE) {
            *end = true;
            break;
        }

        if (event != CSV_ROW) {
            json_decref(rows);
            return upload_malformed(x, upload);
        }

        if (++upload->line > UPLOAD_ROWS_MAX) {
            json_decref(rows);
            return answer_problem(
                x, 422, "too_many_rows", NULL, "An upload has at most %d rows.", UPLOAD_ROWS_MAX);
        }

        if (upload->line <= upload->stored) {
            first = upload->line + 1;
            continue;
        }

        bytes += upload->reader.used;
        if (json_array_append_new(rows, upload_cells(&upload->reader, false)) != 0) {
            json_decref(rows);
            return answer_unavailable(x, "There is no memory left.");
        }
    }

    return upload_flush(x, upload, first, rows);
}

/* As long as the answer names the upload again, its end has more to do, each step a transaction. */
static bool
upload_end(struct exchange *x, const struct upload *upload)
{
    struct outcome outcome;
    bool more = true;

    while (more) {
        if (!upload_call(x, upload, "_done",
                json_pack(
                    "{s:s, s:I}", "_upload", upload->name, "_lines", (json_int_t) upload->line),
                &outcome)) {
            return false;
        }

        more = json_object_get(outcome.row, "_upload") != NULL;
        if (more) {
            outcome_free(&outcome);
        }
    }

    more = call_head(x, outcome.head) && answer_row(x, &outcome);
    outcome_free(&outcome);
    return more;
}

bool
upload_operation(struct exchange *x)
{
    struct upload upload = {.path = json_incref(x->fields), .rest = x->body};
    uint8_t *row = malloc(CSV_ROW_MAX);
    bool done = false, end = false;
    bool ok = row != NULL || answer_unavailable(x, "There is no memory left.");

    if (ok) {
        csv_init(&upload.reader, row, CSV_ROW_MAX);
        ok = upload_begin(x, &upload, &done);
    }

    while (ok && !done && !end) {
        ok = upload_part(x, &upload, &end);
    }

    ok = ok && (done || upload_end(x, &upload));
    json_decref(upload.path);
    free(upload.name);
    free(row);
    return ok;
}
