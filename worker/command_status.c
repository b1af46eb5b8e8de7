/* `status`: asks the daemon's socket. */

#include "worker/control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define STATUS_ANSWER_MAX (1024 * 1024UL)
#define STATUS_PATIENCE_S 5

static int
status_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = STATUS_PATIENCE_S};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        fprintf(stderr, "affiliated: socket: %s\n", strerror(errno));
        return -1;
    }

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (connect(fd, (struct sockaddr *) &address, sizeof(address)) != 0) {
        fprintf(stderr, "affiliated: %s: %s: is affiliated running?\n", path, strerror(errno));
        close(fd);
        return -1;
    }

    return fd;
}

/* The whole answer, NUL-terminated, which the caller frees; NULL after saying why there is none. */
static char *
status_ask(const char *path, const char *question)
{
    size_t len = 0;
    ssize_t n = -1;
    char *answer = NULL;
    int fd = status_connect(path);

    if (fd < 0) {
        return NULL;
    }

    answer = malloc(STATUS_ANSWER_MAX + 1);
    if (answer != NULL &&
        send(fd, question, strlen(question), MSG_NOSIGNAL) == (ssize_t) strlen(question)) {
        while (len < STATUS_ANSWER_MAX &&
               (n = recv(fd, answer + len, STATUS_ANSWER_MAX - len, 0)) > 0) {
            len += (size_t) n;
        }
    }

    if (n != 0 || len == 0) {
        fprintf(stderr, "affiliated: %s: no answer%s%s\n", path, n < 0 ? ": " : "",
            n < 0 ? strerror(errno) : "");
        free(answer);
        answer = NULL;
    } else {
        answer[len] = '\0';
    }

    close(fd);
    return answer;
}

/* Every role on its own lines, with why it does not work. */
static void
status_print(json_t *answer)
{
    json_t *role;
    const char *name;

    printf("pid: %lld\n", (long long) json_integer_value(json_object_get(answer, "pid")));
    json_object_foreach(json_object_get(answer, "roles"), name, role)
    {
        const char *state = json_string_value(json_object_get(role, "state"));
        json_t *rows = json_pack("[{s:s}]", "role", name);

        if (state != NULL && strcmp(state, "up") == 0) {
            /* What was wrong before is no news. */
            json_object_del(role, "reason");
        }

        if (rows != NULL && json_object_update(json_array_get(rows, 0), role) == 0) {
            putchar('\n');
            control_print(rows, "role", false, false);
        }

        json_decref(rows);
    }
}

static bool
status_all_up(json_t *answer)
{
    json_t *role;
    const char *name;

    json_object_foreach(json_object_get(answer, "roles"), name, role)
    {
        const char *state = json_string_value(json_object_get(role, "state"));

        if (state == NULL || strcmp(state, "up") != 0) {
            return false;
        }
    }

    return true;
}

int
status_command(struct config *config, int argc, char **argv)
{
    bool json = argc == 2 && strcmp(argv[1], "--json") == 0;
    bool prometheus = argc == 2 && strcmp(argv[1], "--prometheus") == 0;
    json_t *parsed;
    char *answer;
    bool good = true;

    if (argc > 2 || (argc == 2 && !json && !prometheus)) {
        fprintf(stderr, "affiliated status: takes --json or --prometheus, nothing else\n");
        return COMMAND_USAGE;
    }

    if (config->run.status_socket[0] == '\0') {
        fprintf(stderr, "affiliated: run.status_socket is empty: the daemon can't be asked\n");
        return COMMAND_FAILED;
    }

    answer = status_ask(config->run.status_socket, prometheus ? "prometheus\n" : "json\n");
    if (answer == NULL) {
        return COMMAND_FAILED;
    }

    if (prometheus) {
        fputs(answer, stdout);
    } else {
        parsed = json_loads(answer, 0, NULL);
        if (parsed == NULL) {
            fprintf(
                stderr, "affiliated: %s: the answer can't be read\n", config->run.status_socket);
            good = false;
        } else if (json) {
            good = status_all_up(parsed);
            fputs(answer, stdout);
        } else {
            good = status_all_up(parsed);
            status_print(parsed);
        }

        json_decref(parsed);
    }

    free(answer);
    return control_flush() == COMMAND_OK && good ? COMMAND_OK : COMMAND_FAILED;
}
