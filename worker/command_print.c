/*
 * Rows for people: an aligned table for several, "field: value" for one. Columns keep the order in
 * which fields first appear, but for the row's own name, which leads, and sentences, which come
 * last. Control characters are never printed.
 */

#include "worker/control.h"

#include <stdlib.h>
#include <string.h>

#define PRINT_COLUMNS_MAX 64
#define PRINT_GAP         2
#define PRINT_LAST        "sentence"

struct column {
    const char *name; /* of the rows */
    int width;
    bool number; /* every value is one: aligned to the right */
};

struct table {
    struct column columns[PRINT_COLUMNS_MAX];
    size_t count;
};

/* Characters of UTF-8 text: its bytes but for those that go on with one. */
static int
print_width(const char *text)
{
    int width = 0;

    for (; *text != '\0'; text++) {
        width += ((unsigned char) *text & 0xc0) != 0x80;
    }

    return width;
}

static void
print_safely(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char) *text;

        if (c < 0x20 || c == 0x7f) {
            fprintf(out, "\\x%02x", c);
        } else {
            fputc(c, out);
        }
    }
}

static void
print_scalar(FILE *out, const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_STRING:
        print_safely(out, json_string_value(value));
        break;
    case JSON_INTEGER:
        fprintf(out, "%lld", (long long) json_integer_value(value));
        break;
    case JSON_REAL:
        fprintf(out, "%.17g", json_real_value(value));
        break;
    case JSON_TRUE:
        fputs("true", out);
        break;
    case JSON_FALSE:
        fputs("false", out);
        break;
    default:
        break;
    }
}

/* A scalar, or an array of them: what a cell can hold. */
static bool
print_is_flat(const json_t *value)
{
    const json_t *element;
    size_t i;

    if (json_is_object(value)) {
        return false;
    }

    json_array_foreach(value, i, element)
    {
        if (json_is_object(element) || json_is_array(element)) {
            return false;
        }
    }

    return true;
}

/* The text of a cell, "" for null. The caller frees it; NULL if memory is exhausted. */
static char *
print_cell(const json_t *value)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    const json_t *element;
    size_t i;

    if (out == NULL) {
        return NULL;
    }

    if (json_is_array(value)) {
        json_array_foreach(value, i, element)
        {
            fputs(i == 0 ? "" : ", ", out);
            print_scalar(out, element);
        }
    } else if (value != NULL) {
        print_scalar(out, value);
    }

    fclose(out);
    return text;
}

/* Digits, one dot, one minus in front; so amounts and ids, but no dates. */
static bool
print_is_number(const char *text)
{
    size_t digits;

    text += *text == '-';
    digits = strspn(text, "0123456789");
    text += digits;
    if (*text == '.') {
        text++;
        text += strspn(text, "0123456789");
    }

    return digits > 0 && *text == '\0';
}

static void
table_add_column(struct table *table, const char *name)
{
    for (size_t i = 0; i < table->count; i++) {
        if (strcmp(table->columns[i].name, name) == 0) {
            return;
        }
    }

    if (table->count < PRINT_COLUMNS_MAX) {
        table->columns[table->count++] =
            (struct column){.name = name, .width = print_width(name), .number = true};
    }
}

static void
table_measure(struct table *table, json_t *rows)
{
    json_t *row;
    size_t i;

    json_array_foreach(rows, i, row)
    {
        for (size_t c = 0; c < table->count; c++) {
            char *cell = print_cell(json_object_get(row, table->columns[c].name));

            if (cell != NULL && cell[0] != '\0') {
                int width = print_width(cell);

                if (width > table->columns[c].width) {
                    table->columns[c].width = width;
                }

                table->columns[c].number = table->columns[c].number && print_is_number(cell);
            }

            free(cell);
        }
    }
}

static void
table_find_columns(struct table *table, json_t *rows, const char *first)
{
    json_t *row, *value;
    const char *key;
    bool last = false;
    size_t i;

    if (first != NULL && json_object_get(json_array_get(rows, 0), first) != NULL) {
        table_add_column(table, first);
    }

    json_array_foreach(rows, i, row)
    {
        json_object_foreach(row, key, value)
        {
            if (strcmp(key, PRINT_LAST) == 0) {
                last = true;
            } else if (!json_is_null(value) && print_is_flat(value)) {
                table_add_column(table, key);
            }
        }
    }

    if (last) {
        table_add_column(table, PRINT_LAST);
    }
}

static void
table_put(const struct table *table, size_t c, const char *cell)
{
    const struct column *column = &table->columns[c];
    int pad = column->width - print_width(cell);

    if (column->number) {
        printf("%*s", pad, "");
        pad = 0;
    }

    fputs(cell, stdout);
    if (c + 1 < table->count) {
        printf("%*s", pad + PRINT_GAP, "");
    } else {
        putchar('\n');
    }
}

static void
print_table(json_t *rows, const char *first, int indent)
{
    struct table table = {.count = 0};
    json_t *row;
    size_t i;

    table_find_columns(&table, rows, first);
    if (table.count == 0) {
        return;
    }

    table_measure(&table, rows);
    printf("%*s", indent, "");
    for (size_t c = 0; c < table.count; c++) {
        table_put(&table, c, table.columns[c].name);
    }

    json_array_foreach(rows, i, row)
    {
        printf("%*s", indent, "");
        for (size_t c = 0; c < table.count; c++) {
            char *cell = print_cell(json_object_get(row, table.columns[c].name));

            table_put(&table, c, cell == NULL ? "" : cell);
            free(cell);
        }
    }
}

static void
print_field(const char *name, json_t *value, int indent, int width)
{
    char *cell = print_cell(value);

    printf("%*s%s:%*s%s\n", indent, "", name, width - print_width(name) + 1, "",
        cell == NULL ? "" : cell);
    free(cell);
}

/* Flat fields first, then objects and lists, each under its name. Depth is the schema's, which is
 * small. */
static void
print_record(json_t *row, const char *first, int indent) /* NOLINT(misc-no-recursion) */
{
    json_t *value;
    const char *key;
    int width = 0;

    json_object_foreach(row, key, value)
    {
        if (!json_is_null(value) && print_is_flat(value) && print_width(key) > width) {
            width = print_width(key);
        }
    }

    if (first != NULL && json_object_get(row, first) != NULL) {
        print_field(first, json_object_get(row, first), indent, width);
    }

    json_object_foreach(row, key, value)
    {
        if (!json_is_null(value) && print_is_flat(value) &&
            (first == NULL || strcmp(key, first) != 0)) {
            print_field(key, value, indent, width);
        }
    }

    json_object_foreach(row, key, value)
    {
        if (print_is_flat(value)) {
            continue;
        }

        printf("%*s%s:\n", indent, "", key);
        if (json_is_object(value)) {
            print_record(value, NULL, indent + 2);
        } else {
            print_table(value, NULL, indent + 2);
        }
    }
}

void
control_print(json_t *rows, const char *first, bool list, bool json)
{
    json_t *row;
    size_t i;

    if (!json && list) {
        print_table(rows, first, 0);
        return;
    }

    json_array_foreach(rows, i, row)
    {
        if (json) {
            json_dumpf(row, stdout, JSON_COMPACT | JSON_ENCODE_ANY);
            putchar('\n');
        } else {
            fputs(i == 0 ? "" : "\n", stdout);
            print_record(row, first, 0);
        }
    }
}
