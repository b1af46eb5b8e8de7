/*
 * SMTP by libcurl. It tells by an error code alone that a mail did not go; whose fault it was is
 * seen in the conversation: which command was the last, and what the server answered. Before MAIL,
 * and at MAIL itself (which names the sender, not the recipient), it is nothing about this mail.
 */

#include "worker/mail/deliver.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdlib.h>

#define SMTP_REUSE_MAX 50 /* mails over one connection; servers end those that go on and on */
#define SMTP_IDLE_S    30L

enum smtp_stage {
    SMTP_STAGE_LOGIN, /* greeting, EHLO, STARTTLS, AUTH */
    SMTP_STAGE_MAIL,
    SMTP_STAGE_RCPT,
    SMTP_STAGE_DATA,
    SMTP_STAGE_BODY,
};

struct smtp {
    const struct mail_settings *settings;
    bool (*turn)(void *context);
    void *context;
    CURL *curl;
    unsigned sent; /* over this handle's connection */
    char error[CURL_ERROR_SIZE];

    /* Of one mail. */
    struct aff_slice left;
    enum smtp_stage stage;
    char reply[256]; /* the last one */
    bool reply_ends; /* the next line begins another */
    bool over;       /* what follows is libcurl's QUIT */
};

static pthread_once_t smtp_once = PTHREAD_ONCE_INIT;

static void
smtp_global(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* --- the conversation --- */

static bool
smtp_begins(const char *text, size_t len, const char *verb)
{
    return len >= strlen(verb) && strncasecmp(text, verb, strlen(verb)) == 0;
}

/* Passwords pass here: nothing of what is sent is kept. */
static void
smtp_sent_line(struct smtp *smtp, const char *text, size_t len)
{
    smtp->over = smtp_begins(text, len, "QUIT");
    if (smtp->over) {
        return;
    }

    smtp->reply[0] = '\0';
    smtp->reply_ends = false;
    if (smtp_begins(text, len, "MAIL ")) {
        smtp->stage = SMTP_STAGE_MAIL;
    } else if (smtp_begins(text, len, "RCPT ")) {
        smtp->stage = SMTP_STAGE_RCPT;
    } else if (smtp_begins(text, len, "DATA")) {
        smtp->stage = SMTP_STAGE_DATA;
    }
}

/* "550-5.1.1 no such", "550 user" are "550 5.1.1 no such user". */
static void
smtp_reply_line(struct smtp *smtp, const char *text, size_t len)
{
    size_t used = smtp->reply_ends ? 0 : strlen(smtp->reply);
    bool ends = len < 4 || text[3] != '-';

    if (used > 0 && len > 4) {
        text += 4;
        len -= 4;
        smtp->reply[used] = used + 1 < sizeof(smtp->reply) ? ' ' : '\0';
        used += used + 1 < sizeof(smtp->reply);
    }

    for (size_t i = 0; i < len && used + 1 < sizeof(smtp->reply); i++) {
        char c = text[i];

        if (c != '\r' && c != '\n') {
            smtp->reply[used++] = (char) (c >= 0x20 && c < 0x7f ? c : '?');
        }
    }

    smtp->reply[used] = '\0';
    if (used >= 4 && smtp->reply[3] == '-') {
        smtp->reply[3] = ' ';
    }

    smtp->reply_ends = ends;
}

static int
smtp_trace(CURL *curl, curl_infotype type, char *data, size_t size, void *context)
{
    struct smtp *smtp = context;

    (void) curl;
    switch (type) {
    case CURLINFO_HEADER_OUT:
        smtp_sent_line(smtp, data, size);
        break;
    case CURLINFO_HEADER_IN:
        if (!smtp->over) {
            smtp_reply_line(smtp, data, size);
        }
        break;
    case CURLINFO_DATA_OUT:
        if (smtp->stage == SMTP_STAGE_DATA) {
            smtp->stage = SMTP_STAGE_BODY;
            smtp->reply[0] = '\0';
        }
        break;
    default:
        break;
    }

    return 0;
}

static size_t
smtp_read(char *buffer, size_t size, size_t count, void *context)
{
    struct smtp *smtp = context;
    size_t len = size * count < smtp->left.len ? size * count : smtp->left.len;

    memcpy(buffer, smtp->left.data, len);
    smtp->left = aff_slice(smtp->left.data + len, smtp->left.len - len);
    return len;
}

/* A mail whose body is on its way is finished: it would come twice. */
static int
smtp_progress(void *context, curl_off_t to_get, curl_off_t got, curl_off_t to_send, curl_off_t sent)
{
    struct smtp *smtp = context;

    (void) to_get;
    (void) got;
    (void) to_send;
    (void) sent;
    return smtp->turn(smtp->context) && smtp->stage < SMTP_STAGE_DATA;
}

/* --- a connection --- */

static bool
smtp_options(struct smtp *smtp)
{
    const struct config *config = smtp->settings->config;
    CURL *curl = smtp->curl;
    bool ok = true;

#define SET(option, value) ok = ok && curl_easy_setopt(curl, option, value) == CURLE_OK
    SET(CURLOPT_URL, config->mail.server);
    SET(CURLOPT_PROTOCOLS_STR, "smtp,smtps");
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_ERRORBUFFER, smtp->error);
    SET(CURLOPT_VERBOSE, 1L);
    SET(CURLOPT_DEBUGFUNCTION, smtp_trace);
    SET(CURLOPT_DEBUGDATA, smtp);
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_XFERINFOFUNCTION, smtp_progress);
    SET(CURLOPT_XFERINFODATA, smtp);
    SET(CURLOPT_TIMEOUT_MS, (long) config->mail.timeout);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long) (config->mail.timeout + 1) / 2);
    /* The reply to the text is not within the one above. */
    SET(CURLOPT_SERVER_RESPONSE_TIMEOUT, (long) (config->mail.timeout + 999) / 1000);
    SET(CURLOPT_MAXAGE_CONN, SMTP_IDLE_S);
    SET(CURLOPT_USE_SSL,
        (long) (config->mail.tls == CONFIG_TLS_OFF ? CURLUSESSL_NONE : CURLUSESSL_ALL));
    SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
    if (config->mail.ca_file[0] != '\0') {
        SET(CURLOPT_CAINFO, config->mail.ca_file);
    }
    if (config->mail.user[0] != '\0') {
        SET(CURLOPT_USERNAME, config->mail.user);
        SET(CURLOPT_PASSWORD, config->mail.password);
    }
#undef SET

    return ok;
}

static bool
smtp_begin(struct smtp *smtp)
{
    if (smtp->sent >= SMTP_REUSE_MAX) {
        curl_easy_cleanup(smtp->curl);
        smtp->curl = NULL;
        smtp->sent = 0;
    }

    if (smtp->curl == NULL) {
        smtp->curl = curl_easy_init();
    } else {
        curl_easy_reset(smtp->curl);
    }

    smtp->stage = SMTP_STAGE_LOGIN;
    smtp->reply[0] = '\0';
    smtp->reply_ends = false;
    smtp->over = false;
    smtp->error[0] = '\0';
    return smtp->curl != NULL && smtp_options(smtp);
}

struct smtp *
smtp_open(const struct mail_settings *settings, bool (*turn)(void *context), void *context)
{
    struct smtp *smtp = calloc(1, sizeof(*smtp));

    pthread_once(&smtp_once, smtp_global);
    if (smtp != NULL) {
        smtp->settings = settings;
        smtp->turn = turn;
        smtp->context = context;
    }

    return smtp;
}

void
smtp_close(struct smtp *smtp)
{
    if (smtp != NULL) {
        curl_easy_cleanup(smtp->curl); /* says QUIT: the trace is still there */
        free(smtp);
    }
}

/* --- a mail --- */

static void
smtp_explain(const struct smtp *smtp, CURLcode code, char *reason)
{
    const char *said = smtp->reply;
    const char *error = smtp->error[0] != '\0' ? smtp->error : curl_easy_strerror(code);
    char flat[CURL_ERROR_SIZE];

    log_flatten(flat, sizeof(flat), error);
    if (said[0] >= '4' && said[0] <= '5') {
        snprintf(reason, DELIVER_REASON_MAX, "the mail server said: %s", said);
    } else {
        snprintf(reason, DELIVER_REASON_MAX, "the mail server: %s", flat);
    }
}

static enum deliver_outcome
smtp_outcome(const struct smtp *smtp)
{
    if (smtp->stage <= SMTP_STAGE_MAIL) {
        return DELIVER_AWAY;
    }

    /* The server goes away. If it does so at this mail each time, that has to come to an end. */
    if (strncmp(smtp->reply, "421", 3) == 0) {
        return DELIVER_BROKEN;
    }

    switch (smtp->reply[0]) {
    case '5':
        return DELIVER_REFUSED;
    case '4':
        return DELIVER_DELAYED;
    default:
        return DELIVER_BROKEN;
    }
}

enum deliver_outcome
smtp_send(struct smtp *smtp, const struct deliver_mail *mail, char *reason)
{
    struct curl_slist *to;
    CURLcode code;
    bool ok;

    if (!smtp_begin(smtp)) {
        snprintf(reason, DELIVER_REASON_MAX, "libcurl can't be set up for mail.server");
        return DELIVER_AWAY;
    }

    to = curl_slist_append(NULL, mail->to);
    smtp->left = mail->bytes;
    ok =
        to != NULL &&
        curl_easy_setopt(smtp->curl, CURLOPT_MAIL_FROM, smtp->settings->from.address) == CURLE_OK &&
        curl_easy_setopt(smtp->curl, CURLOPT_MAIL_RCPT, to) == CURLE_OK &&
        curl_easy_setopt(smtp->curl, CURLOPT_UPLOAD, 1L) == CURLE_OK &&
        curl_easy_setopt(smtp->curl, CURLOPT_READFUNCTION, smtp_read) == CURLE_OK &&
        curl_easy_setopt(smtp->curl, CURLOPT_READDATA, smtp) == CURLE_OK &&
        curl_easy_setopt(smtp->curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t) mail->bytes.len) ==
            CURLE_OK;
    code = ok ? curl_easy_perform(smtp->curl) : CURLE_OUT_OF_MEMORY;
    curl_slist_free_all(to);
    if (code == CURLE_OK) {
        smtp->sent++;
        return DELIVER_SENT;
    }

    smtp_explain(smtp, code, reason);
    return smtp_outcome(smtp);
}

bool
smtp_check(struct smtp *smtp, char *reason)
{
    CURLcode code = CURLE_OUT_OF_MEMORY;

    if (smtp_begin(smtp) && curl_easy_setopt(smtp->curl, CURLOPT_CONNECT_ONLY, 1L) == CURLE_OK) {
        code = curl_easy_perform(smtp->curl);
    }

    if (code != CURLE_OK) {
        smtp_explain(smtp, code, reason);
    }

    return code == CURLE_OK;
}
