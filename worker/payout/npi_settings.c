#include "worker/payout/npi.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

#define NPI_DIGITS "0123456789"
#define NPI_UPPER  "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define NPI_LOWER  "abcdefghijklmnopqrstuvwxyz"

static bool
settings_wrong(char *error, const char *what)
{
    snprintf(error, CONFIG_ERROR_MAX, "%s", what);
    return false;
}

/* 1 to `max` characters of `allowed`. */
static bool
settings_made_of(const char *text, size_t max, const char *allowed)
{
    size_t len = strlen(text);

    return len > 0 && len <= max && strspn(text, allowed) == len;
}

static bool
settings_has(CURLU *url, CURLUPart part)
{
    char *text = NULL;
    bool has = curl_url_get(url, part, &text, 0) == CURLUE_OK;

    curl_free(text);
    return has;
}

static bool
settings_is(CURLU *url, CURLUPart part, const char *wanted)
{
    char *text = NULL;
    bool is = curl_url_get(url, part, &text, 0) == CURLUE_OK && strcmp(text, wanted) == 0;

    curl_free(text);
    return is;
}

/* A password and a signed order to pay go there. */
static bool
settings_url(const struct config *config, CURLU *url, struct npi_settings *settings, char *error)
{
    size_t len = strlen(config->npi.url);
    bool loopback;

    if (len == 0 || len >= sizeof(settings->url) ||
        curl_url_set(url, CURLUPART_URL, config->npi.url, 0) != CURLUE_OK ||
        settings_has(url, CURLUPART_USER) || settings_has(url, CURLUPART_PASSWORD) ||
        settings_has(url, CURLUPART_QUERY) || settings_has(url, CURLUPART_FRAGMENT) ||
        !(settings_is(url, CURLUPART_SCHEME, "https") ||
            settings_is(url, CURLUPART_SCHEME, "http"))) {
        return settings_wrong(
            error, "set npi.url, as https://host: where /oauth/token and /api are");
    }

    loopback = settings_is(url, CURLUPART_HOST, "127.0.0.1") ||
               settings_is(url, CURLUPART_HOST, "localhost");
    settings->tls = settings_is(url, CURLUPART_SCHEME, "https");
    if (!settings->tls && !loopback &&
        (config->npi.tls != CONFIG_TLS_OFF || config->npi.mode == CONFIG_NPI_LIVE)) {
        return settings_wrong(error,
            "npi.url has to begin with https://; for tests alone, and with "
            "npi.tls = off, it may be http://");
    }

    while (len > 0 && config->npi.url[len - 1] == '/') {
        len--;
    }

    snprintf(settings->url, sizeof(settings->url), "%.*s", (int) len, config->npi.url);
    return true;
}

static bool
settings_debtor(const struct config *config, struct npi_debtor *debtor, char *error)
{
    *debtor = (struct npi_debtor){
        .bank = config->npi.debtor_bank,
        .branch = config->npi.debtor_branch,
        .account = config->npi.debtor_account,
        .name = config->npi.debtor_name,
        .user = config->npi.user,
        .purpose = config->npi.purpose,
        .head_office = config->npi.head_office,
    };

    if (strlen(debtor->bank) != 4 || !settings_made_of(debtor->bank, 4, NPI_DIGITS)) {
        return settings_wrong(error, "npi.debtor_bank is not a bank's code of four digits");
    }

    if (!settings_made_of(debtor->branch, 4, NPI_DIGITS) ||
        !settings_made_of(debtor->head_office, 4, NPI_DIGITS)) {
        return settings_wrong(
            error, "npi.debtor_branch and npi.head_office are codes of one to four digits");
    }

    if (!settings_made_of(debtor->account, 20, NPI_DIGITS NPI_UPPER NPI_LOWER "-")) {
        return settings_wrong(error, "npi.debtor_account is not an account number");
    }

    if (debtor->name[0] == '\0' || strlen(debtor->name) > 140) {
        return settings_wrong(error, "set npi.debtor_name, as the bank has it");
    }

    if (strlen(debtor->purpose) != 4 || !settings_made_of(debtor->purpose, 4, NPI_UPPER)) {
        return settings_wrong(error, "npi.purpose is not a category purpose like CUST");
    }

    return true;
}

static bool
settings_login(const struct config *config, char *error)
{
    if (config->npi.user[0] == '\0' || strchr(config->npi.user, ',') != NULL ||
        config->npi.password[0] == '\0') {
        return settings_wrong(error, "set npi.user and npi.password_file");
    }

    if ((config->npi.client[0] == '\0') != (config->npi.client_password[0] == '\0')) {
        return settings_wrong(error, "npi.client and npi.client_password_file go together");
    }

    if (config->npi.pfx_file[0] == '\0') {
        return settings_wrong(error, "set npi.pfx_file: the key that orders are signed with");
    }

    return true;
}

bool
npi_settings(const struct config *config, struct npi_settings *settings, char *error)
{
    CURLU *url;
    bool ok;

    *settings = (struct npi_settings){.config = config};
    url = curl_url();
    if (url == NULL) {
        return settings_wrong(error, "out of memory");
    }

    ok = settings_url(config, url, settings, error) && settings_login(config, error) &&
         settings_debtor(config, &settings->debtor, error);
    curl_url_cleanup(url);
    return ok;
}
