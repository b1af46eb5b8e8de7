#include "worker/mail/settings.h"

#include <curl/curl.h>
#include <stdlib.h>

static bool
settings_wrong(char *error, const char *what)
{
    snprintf(error, CONFIG_ERROR_MAX, "%s", what);
    return false;
}

/* A part of a parsed URL, "" if it has none. */
static bool
settings_part_is(CURLU *url, CURLUPart part, const char *wanted)
{
    char *text = NULL;
    bool is;

    if (curl_url_get(url, part, &text, 0) != CURLUE_OK) {
        return wanted[0] == '\0';
    }

    is = strcmp(text, wanted) == 0;
    curl_free(text);
    return is;
}

static bool
settings_bare(CURLU *url)
{
    return settings_part_is(url, CURLUPART_USER, "") &&
           settings_part_is(url, CURLUPART_PASSWORD, "") &&
           settings_part_is(url, CURLUPART_QUERY, "") &&
           settings_part_is(url, CURLUPART_FRAGMENT, "");
}

static bool
settings_loopback(CURLU *url)
{
    return settings_part_is(url, CURLUPART_HOST, "localhost") ||
           settings_part_is(url, CURLUPART_HOST, "127.0.0.1") ||
           settings_part_is(url, CURLUPART_HOST, "[::1]");
}

static bool
settings_server(const struct config *config, CURLU *url, char *error)
{
    bool smtps;

    if (curl_url_set(url, CURLUPART_URL, config->mail.server, CURLU_NON_SUPPORT_SCHEME) !=
            CURLUE_OK ||
        !settings_bare(url)) {
        return settings_wrong(error, "mail.server is not like smtp://host, smtp://host:587 or "
                                     "smtps://host; user and password are settings of their own");
    }

    smtps = settings_part_is(url, CURLUPART_SCHEME, "smtps");
    if (!smtps && !settings_part_is(url, CURLUPART_SCHEME, "smtp")) {
        return settings_wrong(error, "mail.server begins neither with smtp:// nor with smtps://");
    }

    if ((config->mail.user[0] == '\0') != (config->mail.password[0] == '\0')) {
        return settings_wrong(error, "mail.user and mail.password_file go together");
    }

    if (config->mail.user[0] != '\0' && !smtps && config->mail.tls == CONFIG_TLS_OFF &&
        !settings_loopback(url)) {
        return settings_wrong(
            error, "mail.tls = off would send the password in the clear; only to this host");
    }

    return true;
}

/* Links in mails carry tokens. */
static bool
settings_site(const struct config *config, CURLU *url, struct mail_settings *settings, char *error)
{
    const char *site = config->mail.site;
    size_t len = strlen(site);

    if (curl_url_set(url, CURLUPART_URL, site, 0) != CURLUE_OK || !settings_bare(url) ||
        !(settings_part_is(url, CURLUPART_SCHEME, "https") ||
            (settings_part_is(url, CURLUPART_SCHEME, "http") && settings_loopback(url)))) {
        return settings_wrong(error, "mail.site is not like https://affiliates.example.com: where "
                                     "links in mails lead");
    }

    for (size_t i = 0; i < len; i++) {
        if (site[i] <= 0x20 || site[i] >= 0x7f || strchr("<>\"{}", site[i]) != NULL) {
            return settings_wrong(error, "mail.site has characters that no URL has");
        }
    }

    while (len > 0 && site[len - 1] == '/') {
        len--;
    }

    snprintf(settings->site, sizeof(settings->site), "%.*s", (int) len, site);
    return true;
}

bool
mail_settings(
    const struct config *config, struct mail_settings *settings, char error[CONFIG_ERROR_MAX])
{
    CURLU *url;
    bool ok;

    *settings = (struct mail_settings){
        .config = config,
        .maildir = config->mail.maildir[0] != '\0',
    };

    if (settings->maildir == (config->mail.server[0] != '\0')) {
        return settings_wrong(error, "set either mail.server, as smtp://host:587, or mail.maildir");
    }

    if (settings->maildir && config->mail.maildir[0] != '/') {
        return settings_wrong(error, "mail.maildir has to begin with /");
    }

    if (!message_mailbox(config->mail.from, &settings->from)) {
        return settings_wrong(error, "set mail.from, as Name <address@host> or the address alone");
    }

    if (config->mail.site[0] == '\0') {
        return settings_wrong(error, "set mail.site, as https://host: where links in mails lead");
    }

    url = curl_url();
    if (url == NULL) {
        return settings_wrong(error, "out of memory");
    }

    ok = (settings->maildir || settings_server(config, url, error)) &&
         settings_site(config, url, settings, error);
    curl_url_cleanup(url);
    return ok;
}
