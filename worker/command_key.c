/* `key create`: the id is random, the secret follows from it and the master key, and is seen here
 * and nowhere else. */

#include "worker/control.h"

#include "protocol/api_key.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

struct new_key {
    char id[AFF_API_KEY_ID_CHARS + 1];
    char secret[AFF_API_KEY_SECRET_CHARS + 1];
    char master_id[AFF_MASTER_KEY_ID_MAX + 1];
};

static bool
key_make(const struct config *config, bool livemode, struct new_key *key)
{
    uint8_t random[AFF_API_KEY_RANDOM_BYTES];
    struct aff_keyring ring = {0};
    char error[CONFIG_ERROR_MAX];
    bool ok;

    if (!config_read_keys(config, &ring, error)) {
        fprintf(stderr, "affiliated: %s\n", error);
        return false;
    }

    /* At most 256 bytes come whole or not at all (getrandom(2)). */
    if (getrandom(random, sizeof(random), 0) != (ssize_t) sizeof(random)) {
        fprintf(stderr, "affiliated: getrandom: %s\n", strerror(errno));
        aff_keyring_wipe(&ring);
        return false;
    }

    aff_api_key_make(livemode, random, key->id);
    snprintf(key->master_id, sizeof(key->master_id), "%s", ring.keys[0].id);
    ok = aff_api_key_secret(&ring.keys[0], aff_slice_of(key->id), key->secret);
    if (!ok) {
        fprintf(stderr, "affiliated: OpenSSL can't derive the secret\n");
    }

    explicit_bzero(random, sizeof(random));
    aff_keyring_wipe(&ring);
    return ok;
}

/* --livemode true|false decides the id's prefix, so it is read here, too. */
static bool
key_livemode(const struct control_args *args, bool *livemode)
{
    const char *text = json_string_value(json_object_get(args->fields, "livemode"));

    if (text == NULL || (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)) {
        fprintf(stderr, "affiliated: livemode: %s\n",
            json_object_get(args->fields, "livemode") == NULL ? "is required"
                                                              : "must be true or false");
        return false;
    }

    *livemode = strcmp(text, "true") == 0;
    return true;
}

static int
key_insert(const struct config *config, struct control_args *args, const struct new_key *key)
{
    PGconn *conn = control_connect(config, "control");
    json_t *rows = NULL;
    int code = COMMAND_FAILED;

    if (conn != NULL && json_object_set_new(args->fields, "key_id", json_string(key->id)) == 0 &&
        json_object_set_new(args->fields, "master_id", json_string(key->master_id)) == 0) {
        rows = control_call(conn, "key_create", args->fields, &code);
    }

    if (rows != NULL) {
        json_object_set_new(json_array_get(rows, 0), "secret", json_string(key->secret));
        control_print(rows, "key", false, args->json);
        code = control_flush();
        if (code == COMMAND_OK) {
            fprintf(stderr, "affiliated: this is the only time that the secret is shown\n");
        } else {
            fprintf(stderr, "affiliated: key %s exists, but its secret was not seen: revoke it\n",
                key->id);
        }
    }

    json_decref(rows);
    PQfinish(conn);
    return code;
}

int
key_create_command(struct config *config, int argc, char **argv)
{
    struct new_key key = {.id = ""};
    struct control_args args;
    bool livemode;
    int code = COMMAND_USAGE;

    if (control_parse(&args, argc, argv) && control_operand_field(&args, "merchant") &&
        key_livemode(&args, &livemode)) {
        if (json_object_get(args.fields, "key_id") != NULL ||
            json_object_get(args.fields, "master_id") != NULL) {
            fprintf(stderr, "affiliated: key_id and master_id are made here, not given\n");
        } else if (!key_make(config, livemode, &key)) {
            code = COMMAND_FAILED;
        } else {
            code = key_insert(config, &args, &key);
        }
    }

    explicit_bzero(&key, sizeof(key));
    control_args_free(&args);
    return code;
}
