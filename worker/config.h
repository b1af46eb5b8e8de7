/*
 * The configuration: an INI file read through one typed table (config.c), from which `-t` and the
 * documentation come, too. A loaded configuration never changes; a reload makes a new one, and who
 * still uses the old one holds it.
 */

#ifndef AFFILIATED_CONFIG_H
#define AFFILIATED_CONFIG_H

#include "protocol/batch.h"
#include "protocol/keyring.h"
#include "worker/log.h"

#include <stdatomic.h>
#include <stdio.h>

#define CONFIG_PATH         "/etc/affiliated/affiliated.conf"
#define CONFIG_LIST_MAX     16
#define CONFIG_FILE_MAX     (256 * 1024UL)
#define CONFIG_SECRET_MAX   4096
#define CONFIG_ERROR_MAX    512
#define CONFIG_KEY_FILE_MAX 8192

enum config_access_log {
    CONFIG_ACCESS_OFF,
    CONFIG_ACCESS_ERRORS,
    CONFIG_ACCESS_ALL,
};

enum config_npi_mode {
    CONFIG_NPI_TEST,
    CONFIG_NPI_LIVE,
};

enum config_tls {
    CONFIG_TLS_REQUIRED,
    CONFIG_TLS_OFF,
};

struct config_list {
    unsigned count;
    char *items[CONFIG_LIST_MAX];
};

/* Durations are in milliseconds, sizes in bytes. Strings are owned by the configuration, never NULL
 * (empty if unset). */
struct config {
    atomic_uint references;
    char *path; /* the file it came from */

    struct {
        struct config_list roles;
        char *consumer; /* stable name of this daemon in the consumer groups */
        char *status_socket;
        int64_t replay_window;
        int64_t claim_idle;
        int64_t retry_min;
        int64_t retry_max;
        int64_t stall_limit;
        int64_t shutdown_timeout;
    } run;

    struct {
        char *conninfo;
        char *password; /* content of password_file; empty if there is none */
        char *password_file;
        int64_t connect_timeout;
        int64_t tcp_user_timeout;
        int64_t keepalives_idle;
        int64_t lock_timeout;
    } postgres;

    struct {
        struct config_list address;
        char *user;
        char *password; /* content of password_file; empty if there is none */
        char *password_file;
        int64_t db;
        int64_t connect_timeout;
        int64_t timeout;
        int64_t streams;
    } redis;

    struct {
        char *file; /* path, resolved; read it with config_read_keys() */
    } keys;

    struct {
        int64_t threads;
        int64_t batch_bytes;
        int64_t batch_delay;
    } clicks;

    struct {
        int64_t batch_bytes;
        int64_t batch_delay;
        int64_t resolve_interval;
        int64_t resolve_batch;
    } conversions;

    struct {
        int64_t interval;
        int64_t batch;
    } holds;

    struct {
        int64_t ahead;     /* days */
        int64_t retention; /* days; 0 = for ever */
        int64_t interval;
    } partitions;

    struct {
        int64_t interval;
        int64_t batch;
    } projection;

    struct {
        char *socket;
        char *socket_mode; /* octal */
        char *socket_group;
        int64_t threads;
        char *conninfo; /* empty: postgres.conninfo */
        char *password;
        char *password_file;
        int64_t statement_timeout;
        int64_t export_timeout;
        int64_t read_timeout;
        int64_t send_timeout;
        int64_t max_body;
        int64_t max_upload;
        int64_t max_answer;
        char *temp_path;
        int64_t password_memory;
        int64_t password_cost;
        int64_t rate;
        int64_t rate_address;
        int64_t rate_login;
        int64_t rate_registration;
        int64_t access_log; /* enum config_access_log */
    } api;

    struct {
        char *server; /* URL; empty: into the maildir */
        char *maildir;
        char *from;
        char *site;
        int64_t tls; /* enum config_tls */
        char *ca_file;
        char *user;
        char *password;
        char *password_file;
        int64_t timeout;
        int64_t attempts;
        int64_t interval;
        int64_t keep;
    } mail;

    struct {
        int64_t interval;
        int64_t timeout;
        char *dns_server;
        char *ca_file;
        char *connect_to;
    } sites;

    struct {
        int64_t enabled; /* 0, 1 */
        int64_t mode;    /* enum config_npi_mode */
        char *url;
        int64_t tls; /* enum config_tls */
        char *ca_file;
        char *client;
        char *client_password;
        char *client_password_file;
        char *user;
        char *password;
        char *password_file;
        char *pfx_file;
        char *pfx_password;
        char *pfx_password_file;
        char *debtor_bank;
        char *debtor_branch;
        char *debtor_account;
        char *debtor_name;
        char *head_office;
        char *purpose;
        int64_t timeout;
        int64_t interval;
        int64_t pause;
    } npi;

    struct {
        int64_t interval;
        int64_t timeout;
        int64_t keep;
        char *ca_file;
        char *connect_to;
    } webhooks;

    struct {
        int64_t format; /* enum log_format */
        int64_t level;  /* enum log_level */
    } log;
};

/*
 * Reads `path`. Every mistake is printed to `errors` as "file:line: what and why"; NULL if there
 * was one. The caller holds one reference.
 */
struct config *config_load(const char *path, FILE *errors);

struct config *config_hold(struct config *config);
void config_release(struct config *config); /* secrets are wiped with the last reference */

/* Reads and parses the key file. On failure `error` (CONFIG_ERROR_MAX bytes) says why. Wipe the
 * ring after use. */
bool config_read_keys(const struct config *config, struct aff_keyring *ring, char *error);

/* --roles: replaces run.roles before the configuration is shared. Prints what is wrong with `text`,
 * then false. */
bool config_override_roles(struct config *config, const char *text);

/* Prints the table as an INI file: every setting with its help, default and bounds. */
void config_print_defaults(FILE *out);

/*
 * Settings of `new` that only take effect at a restart get `old`'s values; those that differed are
 * named to `out`, one a line. Before `new` is shared.
 */
void config_carry_over(const struct config *old, struct config *new, FILE *out);

#endif
