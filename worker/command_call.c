/* From arguments to a function of the schema. */

#include "worker/control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CONTROL_FIELD_MAX        64
#define CONTROL_SQLSTATE_REFUSED "22023" /* affiliate.refuse(): the message is "field: rule" */

/* "some-field" to "some_field". False if it can be no field's name. */
static bool
control_field_name(const char *option, size_t len, char name[CONTROL_FIELD_MAX])
{
    if (len == 0 || len >= CONTROL_FIELD_MAX) {
        return false;
    }

    for (size_t i = 0; i < len; i++) {
        char c = option[i];

        if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '-' && c != '_') {
            return false;
        }

        name[i] = (char) (c == '-' ? '_' : c);
    }

    name[len] = '\0';
    return true;
}

static bool
control_add(json_t *fields, const char *name, const char *text)
{
    json_t *before = json_object_get(fields, name);
    json_t *value = json_string(text);

    if (value == NULL) {
        fprintf(stderr, "affiliated: %s: is not UTF-8\n", name);
        return false;
    }

    if (before == NULL) {
        return json_object_set_new(fields, name, value) == 0;
    }

    if (json_is_array(before)) {
        return json_array_append_new(before, value) == 0;
    }

    return json_object_set_new(fields, name, json_pack("[O, o]", before, value)) == 0;
}

bool
control_parse(struct control_args *args, int argc, char **argv)
{
    char name[CONTROL_FIELD_MAX];

    *args = (struct control_args){.fields = json_object(), .operand = argv};
    if (args->fields == NULL) {
        fprintf(stderr, "affiliated: out of memory\n");
        return false;
    }

    for (int i = 0; i < argc; i++) {
        const char *option = argv[i];
        const char *value;

        if (strncmp(option, "--", 2) != 0) {
            args->operand[args->operands++] = argv[i];
            continue;
        }

        option += 2;
        if (strcmp(option, "json") == 0) {
            args->json = true;
            continue;
        }

        value = strchr(option, '=');
        if (!control_field_name(
                option, value == NULL ? strlen(option) : (size_t) (value - option), name)) {
            fprintf(stderr, "affiliated: \"%s\" is no option\n", argv[i]);
            return false;
        }

        if (value != NULL) {
            value++;
        } else if (i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0) {
            value = argv[++i];
        } else {
            fprintf(stderr,
                "affiliated: %s: a value is missing (one that begins with -- is written "
                "%s=VALUE)\n",
                name, argv[i]);
            return false;
        }

        if (!control_add(args->fields, name, value)) {
            return false;
        }
    }

    return true;
}

void
control_args_free(struct control_args *args)
{
    json_decref(args->fields);
    args->fields = NULL;
}

bool
control_operand_field(struct control_args *args, const char *field)
{
    if (args->operands == 0) {
        return true;
    }

    if (args->operands > 1) {
        fprintf(stderr, "affiliated: \"%s\" is one argument too many\n", args->operand[1]);
        return false;
    }

    if (json_object_get(args->fields, field) != NULL) {
        fprintf(stderr, "affiliated: %s: is given twice\n", field);
        return false;
    }

    return control_add(args->fields, field, args->operand[0]);
}

bool
control_take(struct control_args *args, const char *field, char **value)
{
    json_t *given = json_object_get(args->fields, field);

    *value = NULL;
    if (given == NULL) {
        return true;
    }

    if (!json_is_string(given)) {
        fprintf(stderr, "affiliated: %s: is given twice\n", field);
        return false;
    }

    *value = strdup(json_string_value(given));
    if (*value == NULL) {
        fprintf(stderr, "affiliated: out of memory\n");
        return false;
    }

    json_object_del(args->fields, field);
    return true;
}

PGconn *
control_connect(const struct config *config, const char *purpose)
{
    struct pg_error error;
    PGconn *conn = pg_connect(config, purpose, &error);

    if (conn == NULL) {
        fprintf(stderr, "affiliated: PostgreSQL: %s\n", error.message);
    }

    return conn;
}

int
control_failed(const struct pg_error *error)
{
    fprintf(stderr, "affiliated: %s\n", error->message);
    if (strcmp(error->sqlstate, "42883") == 0 || strcmp(error->sqlstate, "3F000") == 0) {
        fprintf(stderr,
            "affiliated: this database lacks what this program needs: see `affiliated check`\n");
    }

    return strcmp(error->sqlstate, CONTROL_SQLSTATE_REFUSED) == 0 ? COMMAND_USAGE : COMMAND_FAILED;
}

/* `function` is of our own making, never of the user's. */
json_t *
control_call(PGconn *conn, const char *function, json_t *fields, int *code)
{
    char sql[128];
    char *text = json_dumps(fields, JSON_COMPACT);
    const char *values[] = {text};
    json_t *rows = json_array();
    struct pg_error error;
    PGresult *result;

    *code = COMMAND_FAILED;
    if (text == NULL || rows == NULL) {
        fprintf(stderr, "affiliated: out of memory\n");
        free(text);
        json_decref(rows);
        return NULL;
    }

    snprintf(sql, sizeof(sql), "select affiliate.%s($1::jsonb)", function);
    result = pg_query(conn, sql, 1, values, 0, &error);
    free(text);
    if (result == NULL) {
        *code = control_failed(&error);
        json_decref(rows);
        return NULL;
    }

    for (int i = 0; i < PQntuples(result); i++) {
        json_t *row = json_loadb(
            PQgetvalue(result, i, 0), (size_t) PQgetlength(result, i, 0), JSON_DECODE_ANY, NULL);

        if (row == NULL || json_array_append_new(rows, row) != 0) {
            fprintf(stderr, "affiliated: an answer can't be read\n");
            PQclear(result);
            json_decref(rows);
            return NULL;
        }
    }

    PQclear(result);
    *code = COMMAND_OK;
    return rows;
}

int
control_flush(void)
{
    if (fflush(stdout) != 0 || ferror(stdout) != 0) {
        fprintf(stderr, "affiliated: standard output: %s\n", strerror(errno));
        return COMMAND_FAILED;
    }

    return COMMAND_OK;
}
