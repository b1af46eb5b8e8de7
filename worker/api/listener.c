#include "worker/api/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LISTENER_FIRST_FD 3    /* sd_listen_fds(3) */
#define LISTENER_BACKLOG  4096 /* nginx gives up at once when it is full; the kernel may cut it */

static pthread_mutex_t listener_lock = PTHREAD_MUTEX_INITIALIZER;
static int listener = -1;
static bool listener_given; /* by systemd */
static bool listener_retired;

/* The one that systemd passed on; -1 if it passed none. */
static int
listener_from_systemd(void)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    int type = 0;
    socklen_t len = sizeof(type);

    if (pid == NULL || count == NULL || atol(pid) != (long) getpid() || atol(count) < 1 ||
        getsockopt(LISTENER_FIRST_FD, SOL_SOCKET, SO_TYPE, &type, &len) != 0 ||
        type != SOCK_STREAM) {
        return -1;
    }

    if (fcntl(LISTENER_FIRST_FD, F_SETFD, FD_CLOEXEC) != 0 ||
        fcntl(LISTENER_FIRST_FD, F_SETFL, O_NONBLOCK) != 0) {
        return -1;
    }

    return LISTENER_FIRST_FD;
}

/* The group's number, or -1 for one's own; false if there is none by that name. */
static bool
listener_group(const char *name, gid_t *gid)
{
    char buffer[16384];
    struct group entry, *found = NULL;

    *gid = (gid_t) -1;
    if (name[0] == '\0') {
        return true;
    }

    if (getgrnam_r(name, &entry, buffer, sizeof(buffer), &found) != 0 || found == NULL) {
        return false;
    }

    *gid = found->gr_gid;
    return true;
}

/* Whether a daemon that lives answers at the address; what a dead one left is in the way, no more.
 */
static bool
listener_taken(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool taken =
        fd >= 0 &&
        (connect(fd, (const struct sockaddr *) address, sizeof(*address)) == 0 || errno == EAGAIN);

    if (fd >= 0) {
        close(fd);
    }

    return taken;
}

/* Nobody ever meets it with other rights than it is to have. */
static int
listener_open(const struct config *config, char *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    mode_t mode = (mode_t) strtol(config->api.socket_mode, NULL, 8);
    const char *path = config->api.socket;
    gid_t gid;
    int fd;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (listener_taken(&address)) {
        snprintf(error, CONFIG_ERROR_MAX, "api.socket: another daemon answers at %.200s", path);
        return -1;
    }

    if (!listener_group(config->api.socket_group, &gid)) {
        snprintf(error, CONFIG_ERROR_MAX, "api.socket_group: there is no group %.64s",
            config->api.socket_group);
        return -1;
    }

    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(path);

    /* fchmod() before bind() is what the file will have (unix(7)); umask() would be everybody's. */
    if (fd < 0 || fchmod(fd, 0) != 0 ||
        bind(fd, (const struct sockaddr *) &address, sizeof(address)) != 0 ||
        (gid != (gid_t) -1 && chown(path, (uid_t) -1, gid) != 0) || chmod(path, mode) != 0 ||
        listen(fd, LISTENER_BACKLOG) != 0) {
        snprintf(error, CONFIG_ERROR_MAX, "api.socket: %.200s: %s", path, strerror(errno));
        if (fd >= 0) {
            close(fd);
        }

        return -1;
    }

    return fd;
}

int
listener_fd(const struct config *config, char *error)
{
    int fd;

    pthread_mutex_lock(&listener_lock);
    if (listener < 0) {
        listener = listener_from_systemd();
        listener_given = listener >= 0;
    }

    if (listener < 0) {
        listener = listener_open(config, error);
    }

    fd = listener;
    pthread_mutex_unlock(&listener_lock);
    return fd;
}

bool
listener_retire(const struct config *config)
{
    bool ours;

    pthread_mutex_lock(&listener_lock);
    if (listener >= 0 && !listener_given && !listener_retired) {
        unlink(config->api.socket);
    }

    listener_retired = true;
    ours = !listener_given;
    pthread_mutex_unlock(&listener_lock);
    return ours;
}
