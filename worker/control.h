/*
 * What the commands of the control plane share: from arguments to jsonb, through a function of the
 * schema, to rows that are printed. The functions decide what is allowed; nothing here knows the
 * fields of anything.
 */

#ifndef AFFILIATED_CONTROL_H
#define AFFILIATED_CONTROL_H

#include "worker/command.h"
#include "worker/pg.h"

#include <jansson.h>

struct control_args {
    json_t *fields;    /* --some-field VALUE as "some_field"; an option given twice is an array */
    bool json;         /* --json */
    unsigned operands; /* arguments that are no options, moved to the front of what was parsed */
    char **operand;
};

/*
 * Parses argv[0..argc), all that follows the verb. False after telling what is wrong. Free with
 * control_args_free() in either case.
 */
bool control_parse(struct control_args *args, int argc, char **argv);
void control_args_free(struct control_args *args);

/* The single operand, if there is one, becomes this field. False after telling what is wrong. */
bool control_operand_field(struct control_args *args, const char *field);

/* The option as text and out of `fields`; NULL if it was not given. The caller frees it. False if
 * given twice. */
bool control_take(struct control_args *args, const char *field, char **value);

/* Connects, or says why not and returns NULL. */
PGconn *control_connect(const struct config *config, const char *purpose);

/*
 * Rows of `select affiliate.FUNCTION($1)` as a new array of objects. NULL after telling the error;
 * `*code` is then the exit code: a refused field is a mistake of usage.
 */
json_t *control_call(PGconn *conn, const char *function, json_t *fields, int *code);

/* Tells an error of PostgreSQL, and returns the exit code it stands for. */
int control_failed(const struct pg_error *error);

/* Prints objects: a line of JSON each; or a table whose first column is `first`; or, if `list` is
 * false, field by field. */
void control_print(json_t *rows, const char *first, bool list, bool json);

/* What was printed has arrived: COMMAND_OK, or COMMAND_FAILED after saying so. */
int control_flush(void);

/* --password-file becomes the hash that is kept. False after telling what is wrong. */
bool user_take_password(struct control_args *args);

int key_create_command(struct config *config, int argc, char **argv);
int status_command(struct config *config, int argc, char **argv);
int dead_letters_command(struct config *config, int argc, char **argv);

#endif
