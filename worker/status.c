#include "worker/status.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define STATUS_REQUEST_MAX 32
#define STATUS_PATIENCE_MS 200

int
status_listen(const char *path, bool again)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask;
    int bound;

    if (fd < 0) {
        return -1;
    }

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (connect(fd, (struct sockaddr *) &address, sizeof(address)) == 0) {
        if (!again) {
            log_error("%s: another daemon answers there; set run.status_socket", path);
        }

        close(fd);
        return -1;
    }

    unlink(path);
    mask = umask(0117);
    bound = bind(fd, (struct sockaddr *) &address, sizeof(address));
    umask(mask);

    if (bound != 0 || listen(fd, 16) != 0) {
        if (!again) {
            log_error("%s: %s; there is no status until that works", path, strerror(errno));
        }

        close(fd);
        return -1;
    }

    return fd;
}

static void
status_json_text(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char) *text;

        if (c == '"' || c == '\\') {
            fprintf(out, "\\%c", c);
        } else if (c < 0x20) {
            fprintf(out, "\\u%04x", c);
        } else {
            fputc(c, out);
        }
    }
    fputc('"', out);
}

/* Kept in milliseconds, told in seconds. */
static void
status_value(FILE *out, struct role *role, unsigned counter)
{
    uint64_t value = atomic_load(&role->values[counter]);

    if (counter == GAUGE_OLDEST_MS) {
        fprintf(out, "%llu.%03llu", (unsigned long long) value / 1000,
            (unsigned long long) value % 1000);
    } else {
        fprintf(out, "%llu", (unsigned long long) value);
    }
}

static void
status_json(FILE *out, struct role *roles, unsigned count)
{
    int64_t now = clock_monotonic_ms();

    fprintf(out, "{\"pid\":%ld,\"roles\":{", (long) getpid());
    for (unsigned i = 0; i < count; i++) {
        struct role *role = &roles[i];

        fprintf(out,
            "%s\"%s\":{\"state\":\"%s\",\"since_ms\":%lld,\"progress_age_ms\":%lld,\"reason\":",
            i == 0 ? "" : ",", role->name, role_state_name(atomic_load(&role->state)),
            (long long) atomic_load(&role->state_since_ms),
            (long long) (now - atomic_load(&role->progress_ms)));

        pthread_mutex_lock(&role->told_lock);
        status_json_text(out, role->told);
        pthread_mutex_unlock(&role->told_lock);

        for (unsigned c = 0; c < COUNTERS; c++) {
            if ((role->kind->counters >> c & 1) != 0) {
                fprintf(out, ",\"%s\":", counter_infos[c].name);
                status_value(out, role, c);
            }
        }

        fputc('}', out);
    }

    fputs("}}\n", out);
}

static void
status_prometheus(FILE *out, struct role *roles, unsigned count)
{
    fputs("# HELP affiliated_up Whether a role works.\n# TYPE affiliated_up gauge\n", out);
    for (unsigned i = 0; i < count; i++) {
        fprintf(out, "affiliated_up{role=\"%s\"} %d\n", roles[i].name,
            atomic_load(&roles[i].state) == ROLE_UP);
    }

    for (unsigned c = 0; c < COUNTERS; c++) {
        bool headed = false;

        for (unsigned i = 0; i < count; i++) {
            if ((roles[i].kind->counters >> c & 1) == 0) {
                continue;
            }

            if (!headed) {
                fprintf(out, "# HELP affiliated_%s %s\n# TYPE affiliated_%s %s\n",
                    counter_infos[c].name, counter_infos[c].help, counter_infos[c].name,
                    c < COUNTER_GAUGES ? "counter" : "gauge");
                headed = true;
            }

            fprintf(out, "affiliated_%s{role=\"%s\"} ", counter_infos[c].name, roles[i].name);
            status_value(out, &roles[i], c);
            fputc('\n', out);
        }
    }
}

void
status_answer(int listen_fd, struct role *roles, unsigned count)
{
    struct timeval patience = {.tv_usec = STATUS_PATIENCE_MS * 1000L};
    char request[STATUS_REQUEST_MAX + 1];
    char *text = NULL;
    size_t len = 0, sent = 0;
    ssize_t n;
    FILE *out;
    int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0) {
        return;
    }

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    n = recv(fd, request, STATUS_REQUEST_MAX, 0);
    out = n > 0 ? open_memstream(&text, &len) : NULL;
    if (out == NULL) {
        close(fd);
        return;
    }

    request[n] = '\0';
    if (strncmp(request, "prometheus", 10) == 0) {
        status_prometheus(out, roles, count);
    } else {
        status_json(out, roles, count);
    }

    fclose(out);
    while (sent < len && (n = send(fd, text + sent, len - sent, MSG_NOSIGNAL)) > 0) {
        sent += (size_t) n;
    }

    free(text);
    close(fd);
}
