#include "worker/notify.h"

#include "worker/role.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define NOTIFY_PATIENCE_S 1

static int notify_fd = -1;
static struct sockaddr_un notify_address;
static socklen_t notify_address_len;
static int64_t notify_interval_ms;

void
notify_open(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    const char *usec = getenv("WATCHDOG_USEC");
    const char *pid = getenv("WATCHDOG_PID");
    const struct timeval patience = {.tv_sec = NOTIFY_PATIENCE_S};

    if (path != NULL && (path[0] == '/' || path[0] == '@') &&
        strlen(path) < sizeof(notify_address.sun_path)) {
        notify_address.sun_family = AF_UNIX;
        memcpy(notify_address.sun_path, path, strlen(path));
        if (path[0] == '@') {
            notify_address.sun_path[0] = '\0';
        }

        notify_address_len = (socklen_t) (offsetof(struct sockaddr_un, sun_path) + strlen(path));
        notify_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        /* A systemd that does not listen must not keep us from signals. */
        setsockopt(notify_fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    }

    if (notify_fd >= 0 && usec != NULL && (pid == NULL || atol(pid) == (long) getpid())) {
        notify_interval_ms = strtoll(usec, NULL, 10) / 2000;
    }

    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
}

int64_t
notify_watchdog_interval(void)
{
    return notify_interval_ms;
}

static void
notify_send(const char *message, int flags)
{
    if (notify_fd >= 0 && sendto(notify_fd, message, strlen(message), MSG_NOSIGNAL | flags,
                              (const struct sockaddr *) &notify_address, notify_address_len) < 0) {
        log_debug("systemd does not listen");
    }
}

void
notify_ready(const char *status)
{
    char message[256];

    snprintf(message, sizeof(message), "READY=1\nMAINPID=%ld\nSTATUS=%s", (long) getpid(), status);
    notify_send(message, 0);
}

void
notify_status(const char *status)
{
    char message[256];

    snprintf(message, sizeof(message), "STATUS=%s", status);
    notify_send(message, MSG_DONTWAIT);
}

void
notify_reloading(void)
{
    char message[128];
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(message, sizeof(message), "RELOADING=1\nMONOTONIC_USEC=%lld",
        (long long) now.tv_sec * 1000000 + now.tv_nsec / 1000);
    notify_send(message, 0);
}

void
notify_stopping(void)
{
    notify_send("STOPPING=1\nSTATUS=finishing transactions", 0);
}

void
notify_watchdog(void)
{
    /* The next one comes soon. */
    notify_send("WATCHDOG=1", MSG_DONTWAIT);
}
