/*
 * Mail: takes notices one by one, makes mails of them, hands them over, and says in the database
 * what became of each. A notice is its daemon's own for a while; one that dies between the server's
 * "250" and that commit leaves it to be sent once more, with the same Message-ID.
 */

#include "worker/mail/mail.h"
#include "worker/mail/deliver.h"
#include "worker/mail/letter.h"
#include "worker/role.h"
#include "worker/token.h"

#include "worker/api/text.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MAIL_COUNT_MS  2000
#define MAIL_FORGET_MS 3600000
#define MAIL_MAC_BYTES 8

struct mail {
    struct role *role;
    struct mail_settings settings;
    struct aff_keyring ring;
    PGconn *pg;
    struct smtp *smtp; /* NULL: none is open, or there is a maildir */
    int64_t next_count_ms;
    int64_t next_forget_ms;
};

/* A row of notice_take(), as texts. */
struct notice {
    const char *id;
    const char *template;
    const char *recipient; /* NULL: nobody */
    const char *person;    /* NULL: nobody, or not proven */
    const char *user;      /* NULL: none */
    const char *taken;
    int64_t created_us;
    int64_t expires_s; /* 0: never */
    json_t *data;
};

/* --- a notice as a mail --- */

static const char *
mail_column(const PGresult *row, int column)
{
    return PQgetisnull(row, 0, column) ? NULL : PQgetvalue(row, 0, column);
}

static struct notice
mail_notice(const PGresult *row)
{
    const char *created = mail_column(row, 6), *expires = mail_column(row, 7);

    return (struct notice){
        .id = PQgetvalue(row, 0, 0),
        .template = PQgetvalue(row, 0, 1),
        .recipient = mail_column(row, 2),
        .person = mail_column(row, 3),
        .data = json_loads(PQgetvalue(row, 0, 4), 0, NULL),
        .user = mail_column(row, 5),
        .created_us = created == NULL ? 0 : strtoll(created, NULL, 10),
        .expires_s = expires == NULL ? 0 : strtoll(expires, NULL, 10),
        .taken = PQgetvalue(row, 0, 8),
    };
}

/* <notice-ID.MAC@host>: the same each time, and not to be guessed by who wants to claim it. */
static bool
mail_id(const struct mail *mail, const struct notice *notice, char *id, size_t size)
{
    uint8_t key[32], digest[EVP_MAX_MD_SIZE];
    char message[64], mac[MAIL_MAC_BYTES * 2 + 1];
    unsigned len = 0;
    bool ok;

    snprintf(message, sizeof(message), "%s %lld", notice->id, (long long) notice->created_us);
    ok = aff_hkdf(mail->ring.keys[0].master, aff_slice_of("message_id"), key, sizeof(key)) &&
         HMAC(EVP_sha256(), key, sizeof(key), (const uint8_t *) message, strlen(message), digest,
             &len) != NULL;
    OPENSSL_cleanse(key, sizeof(key));
    if (ok) {
        text_hex(aff_slice(digest, MAIL_MAC_BYTES), mac);
        snprintf(id, size, "notice-%s.%s@%s", notice->id, mac,
            message_host(mail->settings.from.address));
    }

    return ok;
}

/* Where the link leads. The token stands behind #, which browsers send to nobody: it gets into no
 * log. */
static bool
mail_link(const struct mail *mail, const struct letter *letter, const struct notice *notice,
    char *link, size_t size)
{
    const char *nonce = json_string_value(json_object_get(notice->data, "nonce"));
    struct token token = {.expires_s = notice->expires_s};
    char text[TOKEN_CHARS + 1];

    if (nonce == NULL || notice->user == NULL || notice->expires_s == 0 ||
        !text_from_hex(aff_slice_of(nonce), token.nonce, sizeof(token.nonce))) {
        return false;
    }

    token.user_id = strtoll(notice->user, NULL, 10);
    if (!token_make(&mail->ring, letter->purpose, &token, text)) {
        return false;
    }

    snprintf(link, size, "%s%s#token=%s", mail->settings.site, letter->path, text);
    OPENSSL_cleanse(text, sizeof(text));
    return true;
}

static void
mail_set_until(json_t *fields, int64_t expires_s)
{
    time_t seconds = (time_t) expires_s;
    struct tm tm = {0};
    char text[64];

    gmtime_r(&seconds, &tm);
    strftime(text, sizeof(text), "%d %B %Y, %H:%M UTC", &tm);
    json_object_set_new(fields, "until", json_string(text[0] == '0' ? text + 1 : text));
}

/* The notice's data and what every letter may name. The caller drops the reference. */
static json_t *
mail_fields(const struct mail *mail, const struct letter *letter, const struct notice *notice)
{
    char link[sizeof(mail->settings.site) + 128];
    json_t *fields = json_copy(notice->data);

    if (fields == NULL) {
        return NULL;
    }

    json_object_set_new(fields, "site", json_string(mail->settings.site));
    json_object_del(fields, "person");
    if (notice->person != NULL) {
        json_object_set_new(fields, "person", json_string(notice->person));
    }

    if (notice->expires_s != 0) {
        mail_set_until(fields, notice->expires_s);
    }

    json_object_del(fields, "link");
    if (letter->purpose != NULL && mail_link(mail, letter, notice, link, sizeof(link))) {
        json_object_set_new(fields, "link", json_string(link));
        OPENSSL_cleanse(link, sizeof(link));
    }

    return fields;
}

static bool
mail_unfit(char *reason, const char *format, const char *what)
{
    snprintf(reason, DELIVER_REASON_MAX, format, what);
    return false;
}

/* The whole mail into `out`. False, with the reason, if the notice can never be one. */
static bool
mail_render(const struct mail *mail, const struct notice *notice, const char *id,
    struct buffer *out, char *reason)
{
    const struct letter *letter = letter_find(notice->template);
    char subject[LETTER_SUBJECT_MAX + 1], missing[32] = "";
    struct buffer text;
    struct aff_slice whole;
    json_t *fields;
    bool ok;

    if (letter == NULL) {
        return mail_unfit(
            reason, "there is no template \"%.64s\" in this affiliated", notice->template);
    }

    if (notice->recipient == NULL || !message_address_valid(notice->recipient)) {
        return mail_unfit(reason, "%s",
            notice->recipient == NULL ? "it names no recipient"
                                      : "the recipient's address can't be mailed to");
    }

    fields = json_is_object(notice->data) ? mail_fields(mail, letter, notice) : NULL;
    if (fields == NULL) {
        return mail_unfit(reason, "%s", "its data is no object");
    }

    buffer_open(&text, MESSAGE_MAX / 4, NULL);
    ok = letter_render(letter, fields, subject, &text, missing) && buffer_whole(&text, &whole);
    if (ok) {
        struct message message = {
            .from = &mail->settings.from,
            .to = notice->recipient,
            .id = id,
            .subject = subject,
            .text = (const char *) whole.data,
            .date_s = notice->created_us / 1000000,
        };

        message_write(&message, out);
    }

    buffer_close(&text);
    json_decref(fields);
    if (!ok || out->failed) {
        return ok ? mail_unfit(reason, "%s", "the mail would be too long")
                  : mail_unfit(reason, "its field %.32s is missing, or too long", missing);
    }

    return true;
}

/* --- handing it over --- */

static bool
mail_turn(void *context)
{
    struct role *role = context;

    role_progress(role);
    return role_stops();
}

static enum deliver_outcome
mail_hand_over(struct mail *mail, const struct deliver_mail *what, char *reason)
{
    if (mail->settings.maildir) {
        return maildir_store(mail->settings.config->mail.maildir, what, reason);
    }

    if (mail->smtp == NULL) {
        mail->smtp = smtp_open(&mail->settings, mail_turn, mail->role);
    }

    if (mail->smtp == NULL) {
        snprintf(reason, DELIVER_REASON_MAX, "out of memory");
        return DELIVER_AWAY;
    }

    return smtp_send(mail->smtp, what, reason);
}

static enum deliver_outcome
mail_deliver(struct mail *mail, const struct notice *notice, char *reason)
{
    char id[MESSAGE_ID_MAX], file[MESSAGE_ID_MAX + 64];
    enum deliver_outcome outcome = DELIVER_REFUSED;
    struct buffer bytes;
    struct deliver_mail what = {.to = notice->recipient, .file = file};

    if (!mail_id(mail, notice, id, sizeof(id))) {
        snprintf(reason, DELIVER_REASON_MAX, "OpenSSL fails");
        return DELIVER_AWAY;
    }

    snprintf(file, sizeof(file), "%lld.%s", (long long) (notice->created_us / 1000000), id);
    for (char *c = file; *c != '\0'; c++) {
        if (*c == '/') {
            *c = '_';
        }
    }

    buffer_open(&bytes, MESSAGE_MAX, NULL);
    if (mail_render(mail, notice, id, &bytes, reason) && buffer_whole(&bytes, &what.bytes)) {
        outcome = mail_hand_over(mail, &what, reason);
    }

    buffer_close(&bytes);
    return outcome;
}

/* --- the database --- */

static bool
mail_done(struct mail *mail, const struct notice *notice, enum deliver_outcome outcome,
    const char *reason)
{
    static const char *const names[] = {
        [DELIVER_SENT] = "sent",
        [DELIVER_REFUSED] = "failed",
        [DELIVER_DELAYED] = "retry",
        [DELIVER_BROKEN] = "retry",
        [DELIVER_AWAY] = "later",
    };
    struct role *role = mail->role;
    char attempts[24];
    const char *values[] = {notice->id, names[outcome], reason, notice->taken, attempts};
    struct pg_error error;
    PGresult *result;

    if (pg_fault(AFF_FAULT("mail.delivered"), &error)) {
        return role_failed_pg(role, "noting a mail", &error);
    }

    snprintf(attempts, sizeof(attempts), "%lld", (long long) role->config->mail.attempts);
    result = pg_query(mail->pg,
        "select affiliate.notice_done($1::bigint, $2, $3, $4::timestamptz, $5::integer)", 5, values,
        0, &error);
    if (result == NULL) {
        return role_failed_pg(role, "noting a mail", &error);
    }

    role_count(role, COUNTER_TRANSACTIONS, 1);
    if (outcome == DELIVER_SENT) {
        role_count(role, COUNTER_SENT, 1);
    } else if (outcome != DELIVER_AWAY) {
        bool over = PQntuples(result) == 1 && strcmp(PQgetvalue(result, 0, 0), "failed") == 0;

        role_count(role, over ? COUNTER_UNDELIVERABLE : COUNTER_DELAYED, 1);
        if (over) {
            log_warning(
                "notice %s (%.64s) can't be delivered: %s", notice->id, notice->template, reason);
        }
    }

    PQclear(result);
    return true;
}

/* Sends the next notice; `*taken` is false if none is due. */
static bool
mail_next(struct mail *mail, bool *taken)
{
    char lease[32], reason[DELIVER_REASON_MAX] = "";
    const char *values[] = {lease};
    enum deliver_outcome outcome;
    struct notice notice;
    struct pg_error error;
    PGresult *row;
    bool ok;

    snprintf(lease, sizeof(lease), "%lld ms", 3 * (long long) mail->settings.config->mail.timeout);
    row = pg_query(
        mail->pg, "select * from affiliate.notice_take($1::interval)", 1, values, 0, &error);
    if (row == NULL) {
        return role_failed_pg(mail->role, "taking a mail", &error);
    }

    *taken = PQntuples(row) == 1;
    if (!*taken) {
        PQclear(row);
        return true;
    }

    notice = mail_notice(row);
    outcome = mail_deliver(mail, &notice, reason);
    ok = mail_done(mail, &notice, outcome, reason);
    if (ok && (outcome == DELIVER_AWAY || outcome == DELIVER_BROKEN)) {
        ok = role_stops() || role_failed(mail->role, "%s", reason);
    } else if (ok) {
        role_up(mail->role);
    }

    json_decref(notice.data);
    PQclear(row);
    return ok;
}

static bool
mail_count(struct mail *mail)
{
    struct pg_error error;
    PGresult *row;

    if (clock_monotonic_ms() < mail->next_count_ms) {
        return true;
    }

    row = pg_query(
        mail->pg, "select waiting, oldest from affiliate.notice_counts()", 0, NULL, 0, &error);
    if (row == NULL) {
        return role_failed_pg(mail->role, "counting mails", &error);
    }

    role_gauge(mail->role, GAUGE_WAITING, strtoull(PQgetvalue(row, 0, 0), NULL, 10));
    role_gauge(mail->role, GAUGE_WAITING_S, strtoull(PQgetvalue(row, 0, 1), NULL, 10));
    PQclear(row);
    mail->next_count_ms = clock_monotonic_ms() + MAIL_COUNT_MS;
    return true;
}

static bool
mail_forget(struct mail *mail)
{
    char keep[32];
    const char *values[] = {keep};
    struct pg_error error;
    PGresult *row;

    if (clock_monotonic_ms() < mail->next_forget_ms) {
        return true;
    }

    snprintf(keep, sizeof(keep), "%lld ms", (long long) mail->settings.config->mail.keep);
    row = pg_query(mail->pg, "select affiliate.notice_forget($1::interval)", 1, values, 0, &error);
    if (row == NULL) {
        return role_failed_pg(mail->role, "forgetting old mails", &error);
    }

    /* Many are taken in pieces. */
    mail->next_forget_ms =
        clock_monotonic_ms() + (atoll(PQgetvalue(row, 0, 0)) > 0 ? MAIL_COUNT_MS : MAIL_FORGET_MS);
    PQclear(row);
    return true;
}

/* --- a life --- */

static bool
mail_prepare(struct mail *mail)
{
    struct role *role = mail->role;
    char message[CONFIG_ERROR_MAX];
    struct pg_error error;

    if (!mail_settings(role->config, &mail->settings, message)) {
        return role_failed(role, "%s", message);
    }

    if (!config_read_keys(role->config, &mail->ring, message)) {
        return role_failed(role, "master keys: %s", message);
    }

    if (mail->settings.maildir && !maildir_open(role->config->mail.maildir, message)) {
        return role_failed(role, "mail.maildir: %s", message);
    }

    mail->pg = pg_connect(role->config, role->name, &error);
    if (mail->pg == NULL) {
        return role_failed_pg(role, "connecting", &error);
    }

    return pg_command(mail->pg, "listen affiliate_notice", &error) ||
           role_failed_pg(role, "preparing", &error);
}

/* Waits until there is something to do. A connection that has nothing to do is closed. */
static bool
mail_wait(struct mail *mail)
{
    PGnotify *notify;
    bool woken = false;

    role_wait(mail->role, mail->role->config->mail.interval, PQsocket(mail->pg));
    if (!PQconsumeInput(mail->pg)) {
        return role_failed(mail->role, "PostgreSQL closed the connection");
    }

    while ((notify = PQnotifies(mail->pg)) != NULL) {
        PQfreemem(notify);
        woken = true;
    }

    if (!woken) {
        smtp_close(mail->smtp);
        mail->smtp = NULL;
    }

    return true;
}

static bool
mail_live(struct mail *mail)
{
    bool taken = false;

    if (!mail_prepare(mail)) {
        return false;
    }

    while (!role_should_end(mail->role)) {
        if (!mail_count(mail) || !mail_forget(mail) || !mail_next(mail, &taken)) {
            return false;
        }

        if (!taken) {
            mail->next_count_ms = 0;
            role_up(mail->role);
            if (!mail_count(mail) || !mail_wait(mail)) {
                return false;
            }
        }
    }

    return true;
}

static bool
mail_serve(struct role *role)
{
    struct mail mail = {.role = role};
    bool ok = mail_live(&mail);

    smtp_close(mail.smtp);
    PQfinish(mail.pg);
    aff_keyring_wipe(&mail.ring);
    return ok;
}

const struct role_kind mail_role = {.name = "mail",
    .serve = mail_serve,
    .counters = 1ULL << COUNTER_TRANSACTIONS | 1ULL << COUNTER_SENT | 1ULL << COUNTER_DELAYED |
                1ULL << COUNTER_UNDELIVERABLE | 1ULL << COUNTER_FAILURES | 1ULL << GAUGE_WAITING |
                1ULL << GAUGE_WAITING_S};

static bool
mail_patient(void *context)
{
    (void) context;
    return false;
}

bool
mail_check(const struct config *config, char *said, size_t size)
{
    struct mail_settings settings;
    char reason[DELIVER_REASON_MAX] = "";
    struct smtp *smtp;
    bool ok;

    if (!mail_settings(config, &settings, reason)) {
        snprintf(said, size, "%s", reason);
        return false;
    }

    if (settings.maildir) {
        /* Made when it is needed, by who will write there. */
        ok = access(config->mail.maildir, W_OK | X_OK) == 0 || errno == ENOENT;
        snprintf(said, size, "mail.maildir: %s%s", config->mail.maildir,
            ok ? " takes mails" : " can't be written to");
        return ok;
    }

    smtp = smtp_open(&settings, mail_patient, NULL);
    ok = smtp != NULL && smtp_check(smtp, reason);
    smtp_close(smtp);
    snprintf(said, size, "mail: %s%s%s", config->mail.server, ok ? " lets us in" : ": ",
        ok ? "" : reason);
    return ok;
}
