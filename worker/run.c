/*
 * The main thread never works: it waits for signals, for roles that end, for clients of the status
 * socket, and for the next time to feed the watchdog.
 *
 * The watchdog is fed only while every role makes progress. Progress is a turn of a role's loop,
 * idle or not, and also an attempt to connect that failed in time: systemd's restart helps against
 * a role that hangs, not against a PostgreSQL that is away.
 */

#include "worker/run.h"

#include "worker/command.h"
#include "worker/notify.h"
#include "worker/status.h"

#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define RUN_ROLES_MAX 128

struct run {
    struct config *config;    /* the newest */
    const char *roles_option; /* --roles, or NULL */
    struct role roles[RUN_ROLES_MAX];
    unsigned count;
    int signal_fd;
    int status_fd;
    int64_t next_watchdog_ms;
    int64_t deadline_ms; /* of the shutdown; 0 while running */
    bool ready;
    char status[160];
};

bool
run_has_role(const struct config_list *roles, const char *name)
{
    for (unsigned i = 0; i < roles->count; i++) {
        if (strcmp(roles->items[i], name) == 0) {
            return true;
        }
    }

    return false;
}

bool
run_roles_valid(const struct config_list *roles, char *error)
{
    for (unsigned i = 0; i < roles->count; i++) {
        bool known = false;

        for (unsigned k = 0; role_kinds[k] != NULL; k++) {
            known = known || strcmp(role_kinds[k]->name, roles->items[i]) == 0;
        }

        if (!known) {
            snprintf(
                error, CONFIG_ERROR_MAX, "run.roles: there is no role \"%.64s\"", roles->items[i]);
            return false;
        }
    }

    return true;
}

static int
run_open_signals(void)
{
    sigset_t set;

    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0) {
        return -1;
    }

    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void
run_log_lines(const char *prefix, char *text)
{
    char *save = NULL;

    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        log_warning("%s%s", prefix, line);
    }
}

/* Reads everything again; the old configuration stays if anything in the new one is wrong. */
static void
run_reload(struct run *run)
{
    struct aff_keyring ring = {0};
    char error[CONFIG_ERROR_MAX];
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    struct config *config;

    if (out == NULL) {
        log_error("reload: out of memory");
        return;
    }

    notify_reloading();
    config = config_load(run->config->path, out);
    if (config != NULL && run->roles_option != NULL) {
        config_override_roles(config, run->roles_option);
    }

    if (config != NULL && !config_read_keys(config, &ring, error)) {
        fprintf(out, "%s\n", error);
        config_release(config);
        config = NULL;
    }
    aff_keyring_wipe(&ring);

    if (config == NULL) {
        fclose(out);
        run_log_lines("reload: ", text);
        log_error("reload: the old configuration stays in force");
    } else {
        config_carry_over(run->config, config, out);
        fclose(out);
        run_log_lines("reload: needs a restart to take effect: ", text);
        log_configure((enum log_format) config->log.format, (enum log_level) config->log.level);
        config_release(run->config);
        run->config = config;
        role_reconfigure(config_hold(config));
        log_info("reload: new configuration in force");
    }

    free(text);
    notify_ready(run->status);
}

static void
run_stop(struct run *run)
{
    if (run->deadline_ms != 0) {
        log_warning("second signal: exiting at once; what was not committed will be read again");
        _exit(COMMAND_FAILED);
    }

    log_info("stopping: finishing transactions under way");
    run->deadline_ms = clock_monotonic_ms() + run->config->run.shutdown_timeout;
    role_request_stop();
    notify_stopping();
}

static void
run_take_signals(struct run *run)
{
    struct signalfd_siginfo info;

    while (read(run->signal_fd, &info, sizeof(info)) == (ssize_t) sizeof(info)) {
        if (info.ssi_signo != SIGHUP) {
            run_stop(run);
        } else if (run->deadline_ms == 0) {
            run_reload(run);
        }
    }
}

static bool
run_finished(struct run *run)
{
    for (unsigned i = 0; i < run->count; i++) {
        if (atomic_load(&run->roles[i].state) != ROLE_STOPPED) {
            return false;
        }
    }

    return true;
}

static int
run_listen(const struct run *run, bool again)
{
    const char *path = run->config->run.status_socket;

    return path[0] == '\0' ? -1 : status_listen(path, again);
}

/* Tells systemd how things are when that changes, and feeds the watchdog. */
static void
run_report(struct run *run)
{
    int64_t now = clock_monotonic_ms();
    char status[sizeof(run->status)] = "";
    size_t len = 0;
    bool progress = true;

    for (unsigned i = 0; i < run->count; i++) {
        struct role *role = &run->roles[i];

        progress = progress && now - atomic_load(&role->progress_ms) < run->config->run.stall_limit;
        if (len < sizeof(status)) {
            len += (size_t) snprintf(status + len, sizeof(status) - len, "%s%s %s",
                i == 0 ? "" : ", ", role->name, role_state_name(atomic_load(&role->state)));
        }
    }

    if (strcmp(status, run->status) != 0) {
        memcpy(run->status, status, sizeof(status));
        if (run->ready) {
            notify_status(status);
        }
    }

    if (!run->ready) {
        run->ready = true;
        notify_ready(run->status);
    }

    if (notify_watchdog_interval() > 0 && progress && now >= run->next_watchdog_ms) {
        run->next_watchdog_ms = now + notify_watchdog_interval();
        notify_watchdog();
    }
}

static int
run_loop(struct run *run)
{
    struct pollfd fds[3] = {{.fd = run->signal_fd, .events = POLLIN},
        {.fd = role_finished_fd(), .events = POLLIN}, {.events = POLLIN}};
    int64_t interval = notify_watchdog_interval();
    int timeout = interval > 0 && interval < 1000 ? (int) interval : 1000;
    uint64_t finished;

    for (;;) {
        fds[2].fd = run->status_fd;
        if (poll(fds, 3, timeout) < 0 && errno != EINTR) {
            log_error("poll: %s", strerror(errno));
            return COMMAND_FAILED;
        }

        run_take_signals(run);
        if (read(role_finished_fd(), &finished, sizeof(finished)) > 0 && run_finished(run)) {
            return 0;
        }

        if (run->status_fd < 0) {
            run->status_fd = run_listen(run, true);
        } else if ((fds[2].revents & POLLIN) != 0) {
            status_answer(run->status_fd, run->roles, run->count);
        }

        run_report(run);
        if (run->deadline_ms != 0 && clock_monotonic_ms() > run->deadline_ms) {
            log_warning(
                "run.shutdown_timeout is over: exiting; what was not committed will be read again");
            _exit(COMMAND_FAILED);
        }
    }
}

static bool
run_start_roles(struct run *run)
{
    for (unsigned k = 0; role_kinds[k] != NULL; k++) {
        const struct role_kind *kind = role_kinds[k];
        unsigned lanes = kind->lanes == NULL ? 1 : (unsigned) kind->lanes(run->config);

        if (!run_has_role(&run->config->run.roles, kind->name)) {
            continue;
        }

        for (unsigned lane = 0; lane < lanes; lane++) {
            if (!role_start(&run->roles[run->count], kind, lane)) {
                return false;
            }

            run->count++;
        }
    }

    return true;
}

/* --roles=a,b in place of run.roles. */
static bool
run_options(struct run *run, struct config *config, int argc, char **argv)
{
    static const struct option options[] = {
        {"roles", required_argument, NULL, 'r'}, {NULL, 0, NULL, 0}};
    char error[CONFIG_ERROR_MAX];
    int option;

    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option != 'r') {
            fprintf(stderr, "affiliated run: \"%s\" is no option, or lacks its value\n",
                argv[optind - 1]);
            return false;
        }

        if (!config_override_roles(config, optarg)) {
            return false;
        }

        run->roles_option = optarg;
    }

    if (optind != argc) {
        fprintf(stderr, "affiliated run: \"%s\" is no option\n", argv[optind]);
        return false;
    }

    if (!run_roles_valid(&config->run.roles, error)) {
        fprintf(stderr, "affiliated run: %s\n", error);
        return false;
    }

    return true;
}

int
run_command(struct config *config, int argc, char **argv)
{
    static struct run run; /* large, and roles point into it until the process ends */
    struct aff_keyring ring = {0};
    char error[CONFIG_ERROR_MAX];
    int code;

    if (!run_options(&run, config, argc, argv)) {
        return COMMAND_USAGE;
    }

    if (geteuid() == 0) {
        fprintf(stderr, "affiliated run: does not run as root; it needs no rights at all\n");
        return COMMAND_USAGE;
    }

    if (!config_read_keys(config, &ring, error)) {
        fprintf(stderr, "affiliated run: %s\n", error);
        return COMMAND_USAGE;
    }
    aff_keyring_wipe(&ring);

    /* Batches come and go by the megabyte: few arenas, and memory that is given back. */
    mallopt(M_ARENA_MAX, 2);
    mallopt(M_TRIM_THRESHOLD, 1024 * 1024);
    mallopt(M_MMAP_THRESHOLD, 1024 * 1024);

    log_configure((enum log_format) config->log.format, (enum log_level) config->log.level);
    run.config = config_hold(config);
    run.signal_fd = run_open_signals();
    if (run.signal_fd < 0 || !role_setup(config)) {
        log_error("can't set up: %s", strerror(errno));
        return COMMAND_FAILED;
    }

    notify_open();
    run.status_fd = run_listen(&run, false);
    log_info("affiliated starts as consumer %s", config->run.consumer);
    if (!run_start_roles(&run)) {
        _exit(COMMAND_FAILED);
    }

    code = run_loop(&run);
    for (unsigned i = 0; i < run.count; i++) {
        pthread_join(run.roles[i].thread, NULL);
    }

    if (run.status_fd >= 0) {
        close(run.status_fd);
        unlink(config->run.status_socket);
    }

    log_info("stopped");
    role_reconfigure(NULL);
    config_release(run.config);
    return code;
}
