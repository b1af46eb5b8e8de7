/* `user create` and `user update` with a password, which is read from a file and never given as an
 * argument, where everybody on the host could see it. */

#include "worker/control.h"

#include "worker/api/password.h"
#include "worker/api/text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The first line of a file, or of standard input ("-"), without its end. */
static bool
user_read_line(const char *path, char *line, size_t room)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    bool ok;

    if (file == NULL) {
        fprintf(stderr, "affiliated: %s: %s\n", path, strerror(errno));
        return false;
    }

    ok = fgets(line, (int) room, file) != NULL;
    if (file != stdin) {
        fclose(file);
    }

    line[ok ? strcspn(line, "\r\n") : 0] = '\0';
    return true;
}

static bool
user_hash(const char *password, char stored[PASSWORD_STORED_MAX])
{
    struct aff_slice bytes = aff_slice_of(password);
    size_t characters = 0;

    for (size_t i = 0; i < bytes.len; i++) {
        characters += (bytes.data[i] & 0xc0) != 0x80;
    }

    if (!text_utf8(bytes) || characters < PASSWORD_MIN || bytes.len > PASSWORD_MAX) {
        fprintf(stderr,
            "affiliated: a password has at least %d characters, and at most %d bytes of UTF-8\n",
            PASSWORD_MIN, PASSWORD_MAX);
        return false;
    }

    if (password_hash(bytes, stored) != PASSWORD_RIGHT) {
        fprintf(stderr, "affiliated: OpenSSL can't hash the password\n");
        return false;
    }

    return true;
}

bool
user_take_password(struct control_args *args)
{
    char line[PASSWORD_MAX + 3]; /* one byte too many shows, and the line's end */
    char stored[PASSWORD_STORED_MAX];
    char *path = NULL;
    bool ok = true;

    if (!control_take(args, "password_file", &path)) {
        return false;
    }

    if (path != NULL) {
        ok = user_read_line(path, line, sizeof(line)) && user_hash(line, stored) &&
             json_object_set_new(args->fields, "_password", json_string(stored)) == 0;
        explicit_bzero(line, sizeof(line));
    }

    free(path);
    return ok;
}
