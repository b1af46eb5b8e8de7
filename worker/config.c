/*
 * The typed table of settings, the INI reader in front of it and the printers behind it.
 *
 * A setting is one row: where it stands in the file, where it goes in struct config, what it may
 * be, whether a reload changes it. Nothing else in the daemon knows the names of settings.
 */

#include "worker/config.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum setting_type {
    SETTING_STRING,
    SETTING_INT,
    SETTING_DURATION, /* 500ms, 5s, 10m, 1h, 7d; stored in milliseconds */
    SETTING_SIZE,     /* 512, 64k, 4m, 1g; stored in bytes */
    SETTING_CHOICE,   /* one of `choices`; stored as its index */
    SETTING_LIST,     /* words separated by commas or blanks */
    SETTING_SECRET, /* a file whose content goes to `content`; a name without '/' is a credential */
    SETTING_PATH,   /* a file read later, looked up like a secret */
};

struct setting {
    const char *section;
    const char *name;
    size_t offset;
    size_t content; /* SETTING_SECRET: where the content goes */
    const char *fallback;
    int64_t min;
    int64_t max;
    enum setting_type type;
    bool reload;
    const char *const *choices;
    const char *help;
};

struct config_reader {
    const char *path;
    FILE *errors;
    unsigned failures;
    unsigned line;
};

#define SECOND 1000LL
#define MINUTE (60 * SECOND)
#define HOUR   (60 * MINUTE)
#define DAY    (24 * HOUR)
#define KIB    1024LL
#define MIB    (1024 * KIB)
#define AT(m)  offsetof(struct config, m)

static const char *const config_log_formats[] = {"plain", "json", NULL};
static const char *const config_access_logs[] = {"off", "errors", "all", NULL};
static const char *const config_switch[] = {"off", "on", NULL};
static const char *const config_npi_modes[] = {"test", "live", NULL};
static const char *const config_tls[] = {"required", "off", NULL};
static const char *const config_log_levels[] = {"error", "warning", "info", "debug", NULL};

static const struct setting config_settings[] = {
    {"run", "roles", AT(run.roles), 0, "clicks, conversions, holds, projection, partitions", 1,
        CONFIG_LIST_MAX, SETTING_LIST, false, NULL,
        "What this daemon does; each role is a thread with connections of its own. There are also "
        "api, "
        "mail, sites, payouts and webhooks."},
    {"run", "consumer", AT(run.consumer), 0, "", 0, 128, SETTING_STRING, false, NULL,
        "Name in the consumer groups. Must stay the same over restarts and differ between daemons. "
        "Empty: the host's name."},
    {"run", "status_socket", AT(run.status_socket), 0, "/run/affiliated/status.sock", 0, 107,
        SETTING_STRING, false, NULL, "Unix socket where `affiliated status` asks. Empty: none."},
    {"run", "replay_window", AT(run.replay_window), 0, "1h", 0, 30 * DAY, SETTING_DURATION, true,
        NULL,
        "How long stream entries stay after PostgreSQL has committed them, so that they can be "
        "applied again "
        "when a failover of PostgreSQL lost commits."},
    {"run", "claim_idle", AT(run.claim_idle), 0, "5m", 10 * SECOND, DAY, SETTING_DURATION, true,
        NULL,
        "Entries that another daemon took and did not finish for this long are taken over. Longer "
        "than the worst "
        "batch."},
    {"run", "retry_min", AT(run.retry_min), 0, "50ms", 1, MINUTE, SETTING_DURATION, true, NULL,
        "First pause before trying again after an error; pauses grow with jitter."},
    {"run", "retry_max", AT(run.retry_max), 0, "5s", 10, HOUR, SETTING_DURATION, true, NULL,
        "Longest such pause."},
    {"run", "stall_limit", AT(run.stall_limit), 0, "5m", 10 * SECOND, DAY, SETTING_DURATION, true,
        NULL,
        "A role without any progress for this long stops feeding systemd's watchdog. Longer than "
        "the longest "
        "statement."},
    {"run", "shutdown_timeout", AT(run.shutdown_timeout), 0, "30s", SECOND, HOUR, SETTING_DURATION,
        true, NULL,
        "How long SIGTERM waits for transactions under way; nothing is lost when it does not "
        "wait."},

    {"postgres", "conninfo", AT(postgres.conninfo), 0, "dbname=affiliate", 1, 4096, SETTING_STRING,
        true, NULL,
        "libpq connection string; may name several hosts. target_session_attrs defaults to "
        "read-write."},
    {"postgres", "password_file", AT(postgres.password_file), AT(postgres.password), "", 0,
        PATH_MAX, SETTING_SECRET, true, NULL,
        "File that holds the password, or the name of a systemd credential."},
    {"postgres", "connect_timeout", AT(postgres.connect_timeout), 0, "5s", SECOND, 10 * MINUTE,
        SETTING_DURATION, true, NULL, "For each host; whole seconds."},
    {"postgres", "tcp_user_timeout", AT(postgres.tcp_user_timeout), 0, "30s", SECOND, HOUR,
        SETTING_DURATION, true, NULL,
        "How long sent data may stay unacknowledged before the connection counts as dead."},
    {"postgres", "keepalives_idle", AT(postgres.keepalives_idle), 0, "30s", SECOND, HOUR,
        SETTING_DURATION, true, NULL, "Silence before the first keepalive; whole seconds."},
    {"postgres", "lock_timeout", AT(postgres.lock_timeout), 0, "30s", 100, HOUR, SETTING_DURATION,
        true, NULL, "How long a statement waits for a lock before it is tried again."},

    {"redis", "address", AT(redis.address), 0, "127.0.0.1:6379", 1, CONFIG_LIST_MAX, SETTING_LIST,
        true, NULL,
        "unix:/path or host:port; the first of several that answers as a master is used."},
    {"redis", "user", AT(redis.user), 0, "", 0, 128, SETTING_STRING, true, NULL,
        "ACL user; empty: the default one."},
    {"redis", "password_file", AT(redis.password_file), AT(redis.password), "", 0, PATH_MAX,
        SETTING_SECRET, true, NULL,
        "File that holds the password, or the name of a systemd credential."},
    {"redis", "db", AT(redis.db), 0, "0", 0, 1023, SETTING_INT, true, NULL, "Database number."},
    {"redis", "connect_timeout", AT(redis.connect_timeout), 0, "2s", 10, 10 * MINUTE,
        SETTING_DURATION, true, NULL, "For each address."},
    {"redis", "timeout", AT(redis.timeout), 0, "5s", SECOND, 10 * MINUTE, SETTING_DURATION, true,
        NULL, "For one command; a blocking read waits half a second within it."},
    {"redis", "streams", AT(redis.streams), 0, "1", 1, AFF_STREAMS_MAX, SETTING_INT, false, NULL,
        "Streams a channel is spread over; the same number as affiliate_streams in nginx."},

    {"keys", "file", AT(keys.file), 0, "keys", 1, PATH_MAX, SETTING_PATH, true, NULL,
        "Master keys, one `id hex` a line, the current one first; the same file as "
        "affiliate_key_file in nginx. "
        "A name without '/' is a systemd credential, or a file beside this one."},

    {"clicks", "threads", AT(clicks.threads), 0, "2", 1, 8, SETTING_INT, false, NULL,
        "Threads with connections of their own; while one commits, another copies."},
    {"clicks", "batch_bytes", AT(clicks.batch_bytes), 0, "4m", 64 * KIB, 16 * MIB, SETTING_SIZE,
        true, NULL,
        "Stream data applied in one transaction; two of these are in memory for each thread."},
    {"clicks", "batch_delay", AT(clicks.batch_delay), 0, "20ms", 0, MINUTE, SETTING_DURATION, true,
        NULL, "How long a transaction waits for more clicks while there is little to do."},

    {"conversions", "batch_bytes", AT(conversions.batch_bytes), 0, "2m", 64 * KIB, 16 * MIB,
        SETTING_SIZE, true, NULL,
        "Stream data applied in one transaction; two of these are in memory."},
    {"conversions", "batch_delay", AT(conversions.batch_delay), 0, "20ms", 0, MINUTE,
        SETTING_DURATION, true, NULL,
        "How long a transaction waits for more events while there is little to do."},
    {"conversions", "resolve_interval", AT(conversions.resolve_interval), 0, "1s", 10, HOUR,
        SETTING_DURATION, true, NULL,
        "How often conversions that wait for their click are looked at again."},
    {"conversions", "resolve_batch", AT(conversions.resolve_batch), 0, "5000", 1, 1000000,
        SETTING_INT, true, NULL, "How many of them in one transaction."},

    {"holds", "interval", AT(holds.interval), 0, "1s", 10, DAY, SETTING_DURATION, true, NULL,
        "How often matured commissions are looked for."},
    {"holds", "batch", AT(holds.batch), 0, "10000", 1, 1000000, SETTING_INT, true, NULL,
        "Commissions released in one transaction."},

    {"partitions", "ahead", AT(partitions.ahead), 0, "10", 7, 366, SETTING_INT, true, NULL,
        "Days for which click partitions exist in advance."},
    {"partitions", "retention", AT(partitions.retention), 0, "400", 0, 36500, SETTING_INT, true,
        NULL, "Days that clicks are kept; 0 keeps them for ever. Money never depends on it."},
    {"partitions", "interval", AT(partitions.interval), 0, "1h", SECOND, DAY, SETTING_DURATION,
        true, NULL, "How often partitions are created and dropped."},

    {"projection", "interval", AT(projection.interval), 0, "1s", 10, HOUR, SETTING_DURATION, true,
        NULL,
        "How often Redis is asked whether it still has the projection; changes themselves are "
        "notified at once."},
    {"projection", "batch", AT(projection.batch), 0, "1000", 1, 10000, SETTING_INT, true, NULL,
        "Links and keys read and written at a time."},

    {"api", "socket", AT(api.socket), 0, "/run/affiliated/api.sock", 1, 107, SETTING_STRING, false,
        NULL,
        "Unix socket where nginx's scgi_pass reaches the role api. A socket that systemd gives "
        "(LISTEN_FDS) is taken instead."},
    {"api", "socket_mode", AT(api.socket_mode), 0, "0660", 3, 4, SETTING_STRING, false, NULL,
        "Its permissions, octal: who may connect."},
    {"api", "socket_group", AT(api.socket_group), 0, "", 0, 64, SETTING_STRING, false, NULL,
        "Its group, which affiliated's user belongs to, such as that of nginx's workers. Empty: "
        "affiliated's own."},
    {"api", "threads", AT(api.threads), 0, "8", 1, 64, SETTING_INT, false, NULL,
        "Requests at work at a time; each thread has a connection to PostgreSQL."},
    {"api", "conninfo", AT(api.conninfo), 0, "", 0, 4096, SETTING_STRING, true, NULL,
        "libpq connection string of the api's own login, which may call its functions and nothing "
        "else. Empty: postgres.conninfo."},
    {"api", "password_file", AT(api.password_file), AT(api.password), "", 0, PATH_MAX,
        SETTING_SECRET, true, NULL,
        "File that holds that login's password, or the name of a systemd credential."},
    {"api", "statement_timeout", AT(api.statement_timeout), 0, "30s", 100, 10 * MINUTE,
        SETTING_DURATION, true, NULL, "How long PostgreSQL may work for one request."},
    {"api", "export_timeout", AT(api.export_timeout), 0, "2m", 100, HOUR, SETTING_DURATION, true,
        NULL, "The same for a list as CSV; at most half of the threads work on those."},
    {"api", "read_timeout", AT(api.read_timeout), 0, "10s", 100, 10 * MINUTE, SETTING_DURATION,
        true, NULL, "How long a whole request may take to arrive; nginx has it complete before."},
    {"api", "send_timeout", AT(api.send_timeout), 0, "60s", 100, HOUR, SETTING_DURATION, true, NULL,
        "How long a whole answer may take to be taken."},
    {"api", "max_body", AT(api.max_body), 0, "256k", KIB, 16 * MIB, SETTING_SIZE, true, NULL,
        "Largest JSON body."},
    {"api", "max_upload", AT(api.max_upload), 0, "512m", KIB, 4096 * MIB, SETTING_SIZE, true, NULL,
        "Largest CSV body; nginx's client_max_body_size has to allow it, too."},
    {"api", "max_answer", AT(api.max_answer), 0, "1g", MIB, 16384 * MIB, SETTING_SIZE, true, NULL,
        "Largest answer: a list as CSV."},
    {"api", "temp_path", AT(api.temp_path), 0, "/tmp", 1, PATH_MAX, SETTING_STRING, true, NULL,
        "Where bodies and answers of more than 1m wait, in files without a name."},
    {"api", "password_memory", AT(api.password_memory), 0, "64m", MIB, 4096 * MIB, SETTING_SIZE,
        true, NULL,
        "For all passwords that are hashed at a time; one takes 32m at the default cost."},
    {"api", "password_cost", AT(api.password_cost), 0, "15", 10, 20, SETTING_INT, true, NULL,
        "scrypt's N as a power of two, with r=8 and p=3. Each step doubles time and memory; kept "
        "passwords follow at the next login."},
    {"api", "rate", AT(api.rate), 0, "1200", 0, 1000000, SETTING_INT, true, NULL,
        "Calls a minute of one key or session; 0: any number."},
    {"api", "rate_address", AT(api.rate_address), 0, "300", 0, 1000000, SETTING_INT, true, NULL,
        "Calls a minute of one address without either, and as many with ones that are refused; 0: "
        "any number."},
    {"api", "rate_login", AT(api.rate_login), 0, "30", 0, 1000000, SETTING_INT, true, NULL,
        "Passwords tried in ten minutes by one address or for one account; 0: any number."},
    {"api", "rate_registration", AT(api.rate_registration), 0, "20", 0, 1000000, SETTING_INT, true,
        NULL, "Registrations, and mails asked for, in an hour by one address; 0: any number."},
    {"api", "access_log", AT(api.access_log), 0, "errors", 0, 0, SETTING_CHOICE, true,
        config_access_logs, "Which requests get a line: none, those that failed here, or all."},

    {"mail", "server", AT(mail.server), 0, "", 0, 512, SETTING_STRING, true, NULL,
        "Where the role mail hands mails to: smtp://host, smtp://host:587 or smtps://host. A path "
        "behind it is the name that EHLO says, if not this host's."},
    {"mail", "maildir", AT(mail.maildir), 0, "", 0, 512, SETTING_STRING, true, NULL,
        "In place of a server: a maildir on this host that mails are put into."},
    {"mail", "from", AT(mail.from), 0, "", 0, 384, SETTING_STRING, true, NULL,
        "Who mails come from, and where those that can't be delivered go back to: Name "
        "<address@host>."},
    {"mail", "site", AT(mail.site), 0, "", 0, 511, SETTING_STRING, true, NULL,
        "Where links in mails lead: https://host, behind which /verify and /reset are."},
    {"mail", "tls", AT(mail.tls), 0, "required", 0, 0, SETTING_CHOICE, true, config_tls,
        "Whether a server at smtp:// has to take STARTTLS and show a certificate that is good; "
        "smtps:// always has to."},
    {"mail", "ca_file", AT(mail.ca_file), 0, "", 0, PATH_MAX, SETTING_PATH, true, NULL,
        "Certificates of authorities that the mail server's is checked against. Empty: the "
        "system's."},
    {"mail", "user", AT(mail.user), 0, "", 0, 256, SETTING_STRING, true, NULL,
        "Login at the mail server. Empty: none."},
    {"mail", "password_file", AT(mail.password_file), AT(mail.password), "", 0, PATH_MAX,
        SETTING_SECRET, true, NULL,
        "File that holds the password, or the name of a systemd credential."},
    {"mail", "timeout", AT(mail.timeout), 0, "60s", SECOND, 10 * MINUTE, SETTING_DURATION, true,
        NULL,
        "For one mail, with connecting. A daemon that dies in the middle of one leaves it to "
        "others after three times that."},
    {"mail", "attempts", AT(mail.attempts), 0, "12", 1, 100, SETTING_INT, true, NULL,
        "How often the server may put one mail off, with growing pauses of an hour at most. While "
        "the server is away, mails wait."},
    {"mail", "interval", AT(mail.interval), 0, "10s", 10, HOUR, SETTING_DURATION, true, NULL,
        "How often mails that were put off are looked for; new ones are notified at once."},
    {"mail", "keep", AT(mail.keep), 0, "90d", DAY, 3650 * DAY, SETTING_DURATION, true, NULL,
        "How long notices that were sent, or can't be, stay in the database."},

    {"sites", "interval", AT(sites.interval), 0, "30s", 10, HOUR, SETTING_DURATION, true, NULL,
        "How often the role sites looks for merchants' sites that are to be looked at again; new "
        "ones are notified at once."},
    {"sites", "timeout", AT(sites.timeout), 0, "10s", SECOND, MINUTE, SETTING_DURATION, true, NULL,
        "For the answer of one site or its name servers."},
    {"sites", "dns_server", AT(sites.dns_server), 0, "", 0, 64, SETTING_STRING, true, NULL,
        "Resolver that TXT records are asked of, as 192.0.2.1:53. Empty: those of "
        "/etc/resolv.conf."},
    {"sites", "ca_file", AT(sites.ca_file), 0, "", 0, PATH_MAX, SETTING_PATH, true, NULL,
        "Certificates of authorities that a site's is checked against. Empty: the system's."},
    {"sites", "connect_to", AT(sites.connect_to), 0, "", 0, 64, SETTING_STRING, true, NULL,
        "For tests alone: address:port that every site is taken to be at, even if it is none of "
        "the internet's."},

    {"npi", "enabled", AT(npi.enabled), 0, "off", 0, 0, SETTING_CHOICE, true, config_switch,
        "Whether the role payouts hands batches to NPI, the interface of Nepal's clearing house. "
        "Uncertified: made after the public specification."},
    {"npi", "mode", AT(npi.mode), 0, "test", 0, 0, SETTING_CHOICE, true, config_npi_modes,
        "Which payouts go there: those of test mode, or live ones."},
    {"npi", "url", AT(npi.url), 0, "", 0, 511, SETTING_STRING, true, NULL,
        "Where NPI is, as NCHL gives it: https://host, behind which /oauth/token and /api are."},
    {"npi", "tls", AT(npi.tls), 0, "required", 0, 0, SETTING_CHOICE, true, config_tls,
        "off lets a URL of the test environment be http://."},
    {"npi", "ca_file", AT(npi.ca_file), 0, "", 0, PATH_MAX, SETTING_PATH, true, NULL,
        "Certificates of authorities that NPI's is checked against. Empty: the system's."},
    {"npi", "client", AT(npi.client), 0, "", 0, 256, SETTING_STRING, true, NULL,
        "Name of the client, for a token. Empty: none."},
    {"npi", "client_password_file", AT(npi.client_password_file), AT(npi.client_password), "", 0,
        PATH_MAX, SETTING_SECRET, true, NULL,
        "File that holds the client's password, or the name of a systemd credential."},
    {"npi", "user", AT(npi.user), 0, "", 0, 256, SETTING_STRING, true, NULL,
        "Login at NPI; orders are signed with it."},
    {"npi", "password_file", AT(npi.password_file), AT(npi.password), "", 0, PATH_MAX,
        SETTING_SECRET, true, NULL,
        "File that holds the password, or the name of a systemd credential."},
    {"npi", "pfx_file", AT(npi.pfx_file), 0, "", 0, PATH_MAX, SETTING_PATH, true, NULL,
        "PFX file (PKCS #12) with the key that orders are signed with, or the name of a systemd "
        "credential."},
    {"npi", "pfx_password_file", AT(npi.pfx_password_file), AT(npi.pfx_password), "", 0, PATH_MAX,
        SETTING_SECRET, true, NULL,
        "File that holds its password, or the name of a systemd credential."},
    {"npi", "debtor_bank", AT(npi.debtor_bank), 0, "", 0, 4, SETTING_STRING, true, NULL,
        "Bank that is paid from: its code of four digits."},
    {"npi", "debtor_branch", AT(npi.debtor_branch), 0, "1", 1, 4, SETTING_STRING, true, NULL,
        "Its branch."},
    {"npi", "debtor_account", AT(npi.debtor_account), 0, "", 0, 20, SETTING_STRING, true, NULL,
        "The account that is paid from: the one of the bank's debit authorization letter."},
    {"npi", "debtor_name", AT(npi.debtor_name), 0, "", 0, 140, SETTING_STRING, true, NULL,
        "Whose account it is, as the bank has it."},
    {"npi", "head_office", AT(npi.head_office), 0, "1", 1, 4, SETTING_STRING, true, NULL,
        "Branch that is named for accounts whose owners name none."},
    {"npi", "purpose", AT(npi.purpose), 0, "CUST", 4, 4, SETTING_STRING, true, NULL,
        "Category purpose of batches of several payouts; one alone goes in real time, as ECPG."},
    {"npi", "timeout", AT(npi.timeout), 0, "60s", SECOND, 10 * MINUTE, SETTING_DURATION, true, NULL,
        "For one answer of NPI, with connecting. After that a batch that was sent is unknown, and "
        "asked about."},
    {"npi", "interval", AT(npi.interval), 0, "10s", 10, HOUR, SETTING_DURATION, true, NULL,
        "How often batches are looked for that are due."},
    {"npi", "pause", AT(npi.pause), 0, "1m", 10, HOUR, SETTING_DURATION, true, NULL,
        "Before a batch is asked about for the first time, or tried again; it grows to an hour."},
    {"webhooks", "interval", AT(webhooks.interval), 0, "1s", 10, HOUR, SETTING_DURATION, true, NULL,
        "How often deliveries that failed are looked for; new ones are notified at once."},
    {"webhooks", "timeout", AT(webhooks.timeout), 0, "20s", SECOND, MINUTE, SETTING_DURATION, true,
        NULL,
        "For the answer of one endpoint. A daemon that dies in the middle of a delivery leaves it "
        "to others after three times that."},
    {"webhooks", "keep", AT(webhooks.keep), 0, "30d", DAY, 3650 * DAY, SETTING_DURATION, true, NULL,
        "How long events that are over, their deliveries and attempts stay in the database."},
    {"webhooks", "ca_file", AT(webhooks.ca_file), 0, "", 0, PATH_MAX, SETTING_PATH, true, NULL,
        "Certificates of authorities that an endpoint's is checked against. Empty: the system's."},
    {"webhooks", "connect_to", AT(webhooks.connect_to), 0, "", 0, 64, SETTING_STRING, true, NULL,
        "For tests alone: address:port that every endpoint is taken to be at, even if it is none "
        "of the internet's."},

    {"log", "format", AT(log.format), 0, "plain", 0, 0, SETTING_CHOICE, true, config_log_formats,
        "Form of a line."},
    {"log", "level", AT(log.level), 0, "info", 0, 0, SETTING_CHOICE, true, config_log_levels,
        "Least level shown."},
};

#define SETTINGS (sizeof(config_settings) / sizeof(config_settings[0]))

static void config_fail(struct config_reader *reader, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void
config_fail(struct config_reader *reader, const char *format, ...)
{
    va_list args;

    reader->failures++;
    fprintf(reader->errors, "%s:%u: ", reader->path, reader->line);
    va_start(args, format);
    vfprintf(reader->errors, format, args);
    va_end(args);
    fputc('\n', reader->errors);
}

static void *
config_member(struct config *config, size_t offset)
{
    return (char *) config + offset;
}

/* A number, then one of `units`; zero needs none. */
struct unit {
    const char *name;
    int64_t factor;
};

static const struct unit config_duration_units[] = {
    {"ms", 1}, {"s", SECOND}, {"m", MINUTE}, {"h", HOUR}, {"d", DAY}, {NULL, 0}};
static const struct unit config_size_units[] = {
    {"", 1}, {"k", KIB}, {"m", MIB}, {"g", 1024 * MIB}, {NULL, 0}};
static const struct unit config_int_units[] = {{"", 1}, {NULL, 0}};

static bool
config_parse_number(const char *text, const struct unit *units, int64_t *value)
{
    char *end;
    long long number;

    if (!isdigit((unsigned char) text[0])) {
        return false;
    }

    errno = 0;
    number = strtoll(text, &end, 10);
    if (errno != 0) {
        return false;
    }

    if (number == 0 && *end == '\0') {
        *value = 0;
        return true;
    }

    for (; units->name != NULL; units++) {
        if (strcasecmp(end, units->name) == 0) {
            return !__builtin_mul_overflow(number, units->factor, value);
        }
    }

    return false;
}

static void
config_format_number(enum setting_type type, int64_t value, char *out, size_t size)
{
    const struct unit *units = type == SETTING_DURATION ? config_duration_units
                               : type == SETTING_SIZE   ? config_size_units
                                                        : config_int_units;
    const struct unit *best = units;

    for (; units->name != NULL; units++) {
        if (value != 0 && value % units->factor == 0) {
            best = units;
        }
    }

    snprintf(out, size, "%lld%s", (long long) (value / best->factor), value == 0 ? "" : best->name);
}

static void
config_set_number(struct config_reader *reader, struct config *config,
    const struct setting *setting, const char *text)
{
    const struct unit *units = setting->type == SETTING_DURATION ? config_duration_units
                               : setting->type == SETTING_SIZE   ? config_size_units
                                                                 : config_int_units;
    const char *forms = setting->type == SETTING_DURATION
                            ? "a duration such as 500ms, 5s, 10m, 1h or 7d"
                        : setting->type == SETTING_SIZE ? "a size such as 512, 64k or 4m"
                                                        : "a whole number";
    char low[32], high[32];
    int64_t value;

    if (!config_parse_number(text, units, &value)) {
        config_fail(
            reader, "%s.%s: \"%s\" is not %s", setting->section, setting->name, text, forms);
        return;
    }

    if (value < setting->min || value > setting->max) {
        config_format_number(setting->type, setting->min, low, sizeof(low));
        config_format_number(setting->type, setting->max, high, sizeof(high));
        config_fail(reader, "%s.%s: %s is not within %s and %s", setting->section, setting->name,
            text, low, high);
        return;
    }

    *(int64_t *) config_member(config, setting->offset) = value;
}

static void
config_set_choice(struct config_reader *reader, struct config *config,
    const struct setting *setting, const char *text)
{
    char choices[128];
    size_t len = 0;

    for (int64_t i = 0; setting->choices[i] != NULL; i++) {
        if (strcmp(text, setting->choices[i]) == 0) {
            *(int64_t *) config_member(config, setting->offset) = i;
            return;
        }
    }

    for (int64_t i = 0; setting->choices[i] != NULL && len < sizeof(choices); i++) {
        len += (size_t) snprintf(
            choices + len, sizeof(choices) - len, "%s%s", i == 0 ? "" : ", ", setting->choices[i]);
    }

    config_fail(
        reader, "%s.%s: \"%s\" is none of %s", setting->section, setting->name, text, choices);
}

/* False when memory is exhausted; the old value is freed. */
static bool
config_store(char **member, const char *text)
{
    char *copy = strdup(text);

    if (copy == NULL) {
        return false;
    }

    free(*member);
    *member = copy;
    return true;
}

static void
config_list_clear(struct config_list *list)
{
    for (unsigned i = 0; i < list->count; i++) {
        free(list->items[i]);
    }

    list->count = 0;
}

static void
config_set_list(struct config_reader *reader, struct config *config, const struct setting *setting,
    const char *text)
{
    struct config_list *list = config_member(config, setting->offset);

    config_list_clear(list);

    for (;;) {
        size_t len;

        text += strspn(text, ", \t");
        len = strcspn(text, ", \t");
        if (len == 0) {
            break;
        }

        if (list->count == CONFIG_LIST_MAX) {
            config_fail(reader, "%s.%s: more than %d values", setting->section, setting->name,
                CONFIG_LIST_MAX);
            return;
        }

        list->items[list->count] = strndup(text, len);
        if (list->items[list->count] == NULL) {
            config_fail(reader, "out of memory");
            return;
        }

        list->count++;
        text += len;
    }

    if (list->count < setting->min || list->count > setting->max) {
        config_fail(reader, "%s.%s: %u values; it takes %lld to %lld", setting->section,
            setting->name, list->count, (long long) setting->min, (long long) setting->max);
    }
}

/* A name without '/' is a credential of systemd's, or else a file beside the configuration. */
static char *
config_resolve(const char *config_path, const char *name)
{
    const char *directory = getenv("CREDENTIALS_DIRECTORY");
    const char *slash = strrchr(config_path, '/');
    char *path = NULL;

    if (strchr(name, '/') != NULL) {
        return strdup(name);
    }

    if (directory != NULL && directory[0] != '\0') {
        if (asprintf(&path, "%s/%s", directory, name) < 0) {
            return NULL;
        }

        if (access(path, F_OK) == 0) {
            return path;
        }

        free(path);
    }

    if (slash == NULL) {
        return strdup(name);
    }

    if (asprintf(&path, "%.*s/%s", (int) (slash - config_path), config_path, name) < 0) {
        return NULL;
    }

    return path;
}

/* Reads a whole file of at most `room` - 1 bytes; -1 with errno set (EFBIG if it is larger).
 * NUL-terminated. */
static ssize_t
config_read_file(const char *path, char *out, size_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t len = 0;
    ssize_t n = 0;

    if (fd < 0) {
        return -1;
    }

    while (len < room && (n = read(fd, out + len, room - len)) > 0) {
        len += (size_t) n;
    }

    if (n < 0 || len == room) {
        int error = n < 0 ? errno : EFBIG;

        close(fd);
        errno = error;
        return -1;
    }

    close(fd);
    out[len] = '\0';
    return (ssize_t) len;
}

static void
config_set_file(struct config_reader *reader, struct config *config, const struct setting *setting,
    const char *text)
{
    char **member = config_member(config, setting->offset);
    char secret[CONFIG_SECRET_MAX];
    char *path;
    ssize_t len;

    if (text[0] == '\0') {
        if (!config_store(member, "") ||
            (setting->type == SETTING_SECRET &&
                !config_store(config_member(config, setting->content), ""))) {
            config_fail(reader, "out of memory");
        }

        return;
    }

    path = config_resolve(reader->path, text);
    if (path == NULL || !config_store(member, path)) {
        config_fail(reader, "out of memory");
        free(path);
        return;
    }

    free(path);
    if (setting->type != SETTING_SECRET) {
        return;
    }

    len = config_read_file(*member, secret, sizeof(secret));
    if (len < 0) {
        config_fail(
            reader, "%s.%s: %s: %s", setting->section, setting->name, *member, strerror(errno));
        return;
    }

    secret[strcspn(secret, "\r\n")] = '\0';
    if (secret[0] == '\0') {
        config_fail(reader, "%s.%s: %s is empty", setting->section, setting->name, *member);
    } else if (!config_store(config_member(config, setting->content), secret)) {
        config_fail(reader, "out of memory");
    }

    explicit_bzero(secret, sizeof(secret));
}

static void
config_set(struct config_reader *reader, struct config *config, const struct setting *setting,
    const char *text)
{
    switch (setting->type) {
    case SETTING_INT:
    case SETTING_DURATION:
    case SETTING_SIZE:
        config_set_number(reader, config, setting, text);
        break;
    case SETTING_CHOICE:
        config_set_choice(reader, config, setting, text);
        break;
    case SETTING_LIST:
        config_set_list(reader, config, setting, text);
        break;
    case SETTING_SECRET:
    case SETTING_PATH:
        config_set_file(reader, config, setting, text);
        break;
    case SETTING_STRING:
        if ((int64_t) strlen(text) < setting->min || (int64_t) strlen(text) > setting->max) {
            config_fail(reader, "%s.%s: %zu characters; it takes %lld to %lld", setting->section,
                setting->name, strlen(text), (long long) setting->min, (long long) setting->max);
        } else if (!config_store(config_member(config, setting->offset), text)) {
            config_fail(reader, "out of memory");
        }
        break;
    }
}

static char *
config_trim(char *text)
{
    size_t len;

    text += strspn(text, " \t\r");
    len = strlen(text);
    while (len > 0 && strchr(" \t\r", text[len - 1]) != NULL) {
        len--;
    }

    text[len] = '\0';
    return text;
}

static const struct setting *
config_find(const char *section, const char *name, bool *section_known)
{
    *section_known = false;

    for (size_t i = 0; i < SETTINGS; i++) {
        if (strcmp(config_settings[i].section, section) == 0) {
            *section_known = true;
            if (name != NULL && strcmp(config_settings[i].name, name) == 0) {
                return &config_settings[i];
            }
        }
    }

    return NULL;
}

/* Reads one line, which is changed. `section` is the current one; `lines` tells where a setting was
 * set before. */
static void
config_read_line(struct config_reader *reader, struct config *config, char *line, char **section,
    unsigned *lines)
{
    const struct setting *setting;
    bool known;
    char *value;

    line = config_trim(line);
    if (line[0] == '\0' || line[0] == '#' || line[0] == ';') {
        return;
    }

    if (line[0] == '[') {
        size_t len = strlen(line);

        if (line[len - 1] != ']') {
            config_fail(reader, "a section is written [name]");
            return;
        }

        line[len - 1] = '\0';
        *section = config_trim(line + 1);
        config_find(*section, NULL, &known);
        if (!known) {
            config_fail(reader, "unknown section [%s]", *section);
        }

        return;
    }

    value = strchr(line, '=');
    if (value == NULL) {
        /* Never shown: it may be a password that got into a line of its own. */
        config_fail(reader, "this line is neither [section] nor name = value");
        return;
    }

    *value++ = '\0';
    line = config_trim(line);
    value = config_trim(value);
    if (*section == NULL) {
        config_fail(reader, "\"%s\" stands before the first [section]", line);
        return;
    }

    setting = config_find(*section, line, &known);
    if (setting == NULL) {
        if (known) {
            config_fail(reader, "unknown setting %s in [%s]", line, *section);
        }

        return;
    }

    if (lines[setting - config_settings] != 0) {
        config_fail(reader, "%s.%s was set before, in line %u", *section, line,
            lines[setting - config_settings]);
        return;
    }

    lines[setting - config_settings] = reader->line;
    config_set(reader, config, setting, value);
}

static void
config_read_text(struct config_reader *reader, struct config *config, char *text, size_t len)
{
    unsigned lines[SETTINGS] = {0};
    char *section = NULL;
    char *next;

    if (memchr(text, '\0', len) != NULL) {
        config_fail(reader, "a NUL byte");
        return;
    }

    for (char *line = text; line != NULL; line = next) {
        next = strchr(line, '\n');
        if (next != NULL) {
            *next++ = '\0';
        }

        reader->line++;
        config_read_line(reader, config, line, &section, lines);
    }

    /* Defaults come last, so that an error in a default's file is told only where the default is
     * used. */
    for (size_t i = 0; i < SETTINGS; i++) {
        if (lines[i] == 0) {
            config_set(reader, config, &config_settings[i], config_settings[i].fallback);
        }
    }
}

/* What no single row can tell. */
static void
config_check(struct config_reader *reader, struct config *config)
{
    char host[128];

    if (config->run.consumer[0] == '\0') {
        if (gethostname(host, sizeof(host)) != 0 || !config_store(&config->run.consumer, host)) {
            config_fail(reader, "run.consumer: the host has no name; set one");
        }
    }

    if (config->run.retry_min > config->run.retry_max) {
        config_fail(reader, "run.retry_min is greater than run.retry_max");
    }

    for (unsigned i = 0; i < config->redis.address.count; i++) {
        const char *address = config->redis.address.items[i];

        if (strncmp(address, "unix:/", 6) != 0 &&
            (strncmp(address, "unix:", 5) == 0 || strrchr(address, ':') == NULL)) {
            config_fail(
                reader, "redis.address: \"%s\" is neither unix:/path nor host:port", address);
        }
    }

    for (unsigned i = 0; i < config->run.roles.count; i++) {
        if (strcmp(config->run.roles.items[i], "api") == 0 &&
            (config->api.export_timeout >= config->run.stall_limit ||
                config->api.statement_timeout >= config->run.stall_limit)) {
            config_fail(reader, "api.export_timeout and api.statement_timeout have to be shorter "
                                "than run.stall_limit");
        }
    }

    if (strspn(config->api.socket_mode, "01234567") != strlen(config->api.socket_mode)) {
        config_fail(reader, "api.socket_mode: \"%s\" is not an octal mode like 0660",
            config->api.socket_mode);
    }

    if (config->redis.user[0] != '\0' && config->redis.password[0] == '\0') {
        config_fail(reader, "redis.user needs redis.password_file");
    }
}

struct config *
config_load(const char *path, FILE *errors)
{
    struct config_reader reader = {.path = path, .errors = errors};
    struct config *config = calloc(1, sizeof(*config));
    char *text = malloc(CONFIG_FILE_MAX);
    ssize_t len;

    if (config == NULL || text == NULL || (config->path = strdup(path)) == NULL) {
        fprintf(errors, "%s: out of memory\n", path);
        free(config);
        free(text);
        return NULL;
    }

    atomic_init(&config->references, 1);
    for (size_t i = 0; i < SETTINGS; i++) {
        if (config_settings[i].type == SETTING_SECRET) {
            config_store(config_member(config, config_settings[i].content), "");
        }
    }

    len = config_read_file(path, text, CONFIG_FILE_MAX);
    if (len < 0) {
        fprintf(errors, "%s: %s\n", path, strerror(errno));
        reader.failures++;
    } else {
        config_read_text(&reader, config, text, (size_t) len);
        if (reader.failures == 0) {
            config_check(&reader, config);
        }
    }

    free(text);
    if (reader.failures != 0) {
        config_release(config);
        return NULL;
    }

    return config;
}

bool
config_override_roles(struct config *config, const char *text)
{
    struct config_reader reader = {.path = "--roles", .errors = stderr};
    bool known;

    config_set_list(&reader, config, config_find("run", "roles", &known), text);
    return reader.failures == 0;
}

struct config *
config_hold(struct config *config)
{
    atomic_fetch_add(&config->references, 1);
    return config;
}

void
config_release(struct config *config)
{
    if (config == NULL || atomic_fetch_sub(&config->references, 1) != 1) {
        return;
    }

    for (size_t i = 0; i < SETTINGS; i++) {
        const struct setting *setting = &config_settings[i];
        char **content = config_member(config, setting->content);

        switch (setting->type) {
        case SETTING_LIST:
            config_list_clear(config_member(config, setting->offset));
            break;
        case SETTING_SECRET:
            if (*content != NULL) {
                explicit_bzero(*content, strlen(*content));
                free(*content);
            }
            free(*(char **) config_member(config, setting->offset));
            break;
        case SETTING_STRING:
            /* conninfo may hold a password. */
            if (*(char **) config_member(config, setting->offset) != NULL) {
                explicit_bzero(*(char **) config_member(config, setting->offset),
                    strlen(*(char **) config_member(config, setting->offset)));
            }
            free(*(char **) config_member(config, setting->offset));
            break;
        case SETTING_PATH:
            free(*(char **) config_member(config, setting->offset));
            break;
        case SETTING_INT:
        case SETTING_DURATION:
        case SETTING_SIZE:
        case SETTING_CHOICE:
            break;
        }
    }

    free(config->path);
    free(config);
}

bool
config_read_keys(const struct config *config, struct aff_keyring *ring, char *error)
{
    char text[CONFIG_KEY_FILE_MAX];
    char detail[CONFIG_ERROR_MAX / 2] = "";
    ssize_t len = config_read_file(config->keys.file, text, sizeof(text));
    bool ok;

    if (len < 0) {
        snprintf(error, CONFIG_ERROR_MAX, "%.200s: %s", config->keys.file, strerror(errno));
        return false;
    }

    ok = aff_keyring_parse(ring, aff_slice(text, (size_t) len), detail, sizeof(detail));
    explicit_bzero(text, sizeof(text));
    if (!ok) {
        snprintf(error, CONFIG_ERROR_MAX, "%.200s: %s", config->keys.file, detail);
    }

    return ok;
}

static void
config_print_wrapped(FILE *out, const char *text)
{
    size_t column = 0;

    while (*text != '\0') {
        size_t len = strcspn(text, " ");

        if (column == 0 || column + len + 1 > 98) {
            fputs(column == 0 ? "#" : "\n#", out);
            column = 1;
        }

        fprintf(out, " %.*s", (int) len, text);
        column += len + 1;
        text += len;
        text += strspn(text, " ");
    }

    fputc('\n', out);
}

static void
config_print_bounds(FILE *out, const struct setting *setting)
{
    char low[32], high[32];

    switch (setting->type) {
    case SETTING_INT:
    case SETTING_DURATION:
    case SETTING_SIZE:
        config_format_number(setting->type, setting->min, low, sizeof(low));
        config_format_number(setting->type, setting->max, high, sizeof(high));
        fprintf(out, "# %s to %s.", low, high);
        break;
    case SETTING_CHOICE:
        fputs("# One of:", out);
        for (unsigned i = 0; setting->choices[i] != NULL; i++) {
            fprintf(out, "%s %s", i == 0 ? "" : ",", setting->choices[i]);
        }
        fputc('.', out);
        break;
    case SETTING_LIST:
        fputs("# A list.", out);
        break;
    case SETTING_SECRET:
    case SETTING_PATH:
        fputs("# A file.", out);
        break;
    case SETTING_STRING:
        fputs("# A text.", out);
        break;
    }

    fputs(setting->reload ? " Reloadable.\n" : " Needs a restart.\n", out);
}

void
config_print_defaults(FILE *out)
{
    const char *section = "";

    for (size_t i = 0; i < SETTINGS; i++) {
        const struct setting *setting = &config_settings[i];

        if (strcmp(section, setting->section) != 0) {
            section = setting->section;
            fprintf(out, "%s[%s]\n", i == 0 ? "" : "\n", section);
        }

        fputc('\n', out);
        config_print_wrapped(out, setting->help);
        config_print_bounds(out, setting);
        fprintf(out, "#%s =%s%s\n", setting->name, setting->fallback[0] == '\0' ? "" : " ",
            setting->fallback);
    }
}

static bool
config_differs(const struct config *a, const struct config *b, const struct setting *setting)
{
    const char *left = (const char *) a + setting->offset;
    const char *right = (const char *) b + setting->offset;

    if (setting->type == SETTING_LIST) {
        const struct config_list *x = (const void *) left, *y = (const void *) right;
        bool differs = x->count != y->count;

        for (unsigned i = 0; !differs && i < x->count; i++) {
            differs = strcmp(x->items[i], y->items[i]) != 0;
        }

        return differs;
    }

    if (setting->type == SETTING_STRING || setting->type == SETTING_SECRET ||
        setting->type == SETTING_PATH) {
        return strcmp(*(char *const *) left, *(char *const *) right) != 0;
    }

    return *(const int64_t *) left != *(const int64_t *) right;
}

void
config_carry_over(const struct config *old, struct config *new, FILE *out)
{
    struct config_reader reader = {.path = new->path, .errors = out};

    for (size_t i = 0; i < SETTINGS; i++) {
        const struct setting *setting = &config_settings[i];
        const void *from = (const char *) old + setting->offset;

        if (setting->reload || !config_differs(old, new, setting)) {
            continue;
        }

        fprintf(out, "%s.%s\n", setting->section, setting->name);
        if (setting->type == SETTING_LIST) {
            const struct config_list *list = from;
            char *text = NULL;
            size_t len = 0;
            FILE *joined = open_memstream(&text, &len);

            for (unsigned k = 0; joined != NULL && k < list->count; k++) {
                fprintf(joined, "%s ", list->items[k]);
            }

            if (joined != NULL && fclose(joined) == 0) {
                config_set_list(&reader, new, setting, text);
            }

            free(text);
        } else if (setting->type == SETTING_STRING) {
            config_set(&reader, new, setting, *(char *const *) from);
        } else {
            *(int64_t *) config_member(new, setting->offset) = *(const int64_t *) from;
        }
    }
}
