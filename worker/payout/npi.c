/*
 * The provider npi: NCHL's National Payments Interface over HTTPS. Uncertified: made after the
 * public specification, and tested against a server that was, too.
 *
 * What hands a batch over is sent once. It so has a connection of its own each time: on one that
 * was kept, libcurl would send a request again that the server had closed upon.
 */

#include "worker/payout/npi.h"
#include "worker/payout/sign.h"
#include "worker/role.h"

#include <curl/curl.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define NPI_EARLY_MS     30000 /* a token is renewed so long before it ends */
#define NPI_TOKEN_ANSWER (64 * 1024UL)
#define NPI_CHECK_ANSWER (64 * 1024UL)
#define NPI_FORM         "Content-Type: application/x-www-form-urlencoded"
#define NPI_JSON_TYPE    "Content-Type: application/json"

struct payout_provider {
    struct npi_settings settings;
    bool (*turn)(void *context);
    void *context;
    CURL *curl;
    struct sign_key *key;
    struct npi_token token;
    int64_t access_until_ms;
    int64_t refresh_until_ms;
    char error[CURL_ERROR_SIZE];
};

/* A request, and what came of it. */
struct npi_call {
    struct payout_provider *provider;
    const char *path;
    const char *type; /* a header */
    struct aff_slice body;
    size_t answer_max;
    bool with_client; /* by the client's name and password, not by a token */
    bool once;        /* it moves money */

    bool sent;   /* perhaps; else certainly not */
    long status; /* 0: there is no answer, or not all of it */
    struct buffer answer;
    struct aff_slice whole;
};

static pthread_once_t npi_once = PTHREAD_ONCE_INIT;

static void
npi_global(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* --- a request --- */

static size_t
npi_body(char *data, size_t size, size_t count, void *context)
{
    struct npi_call *call = context;

    buffer_put(&call->answer, data, size * count);
    return call->answer.failed ? 0 : size * count;
}

static int
npi_progress(void *context, curl_off_t to_get, curl_off_t got, curl_off_t to_send, curl_off_t sent)
{
    const struct npi_call *call = context;

    (void) to_get;
    (void) got;
    (void) to_send;
    (void) sent;
    return call->provider->turn(call->provider->context) && !call->once;
}

static bool
npi_options(struct npi_call *call, const char *url, struct curl_slist *headers)
{
    struct payout_provider *provider = call->provider;
    const struct config *config = provider->settings.config;
    CURL *curl = provider->curl;
    bool ok = true;

#define SET(option, value) ok = ok && curl_easy_setopt(curl, option, value) == CURLE_OK
    SET(CURLOPT_URL, url);
    SET(CURLOPT_PROTOCOLS_STR, provider->settings.tls ? "https" : "http");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
    SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_USERAGENT, "affiliated");
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_TIMEOUT_MS, (long) config->npi.timeout);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long) (config->npi.timeout + 1) / 2);
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_POST, 1L);
    SET(CURLOPT_POSTFIELDS, (const char *) call->body.data);
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) call->body.len);
    SET(CURLOPT_WRITEFUNCTION, npi_body);
    SET(CURLOPT_WRITEDATA, call);
    SET(CURLOPT_ERRORBUFFER, provider->error);
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_XFERINFOFUNCTION, npi_progress);
    SET(CURLOPT_XFERINFODATA, call);
    SET(CURLOPT_FRESH_CONNECT, call->once ? 1L : 0L);
    SET(CURLOPT_FORBID_REUSE, call->once ? 1L : 0L);
    if (config->npi.ca_file[0] != '\0') {
        SET(CURLOPT_CAINFO, config->npi.ca_file);
    }
    if (call->with_client && config->npi.client[0] != '\0') {
        SET(CURLOPT_HTTPAUTH, (long) CURLAUTH_BASIC);
        SET(CURLOPT_USERNAME, config->npi.client);
        SET(CURLOPT_PASSWORD, config->npi.client_password);
    }
#undef SET

    return ok;
}

/* Each header a copy of libcurl's own. Wiped: one is the token. */
static void
npi_headers_free(struct curl_slist *headers)
{
    for (const struct curl_slist *header = headers; header != NULL; header = header->next) {
        OPENSSL_cleanse(header->data, strlen(header->data));
    }

    curl_slist_free_all(headers);
}

static struct curl_slist *
npi_headers(const struct npi_call *call)
{
    char bearer[NPI_TOKEN_MAX + 32];
    const char *lines[] = {call->type, "Accept: application/json", "Expect:", bearer};
    size_t count = call->with_client ? 3 : 4;
    struct curl_slist *headers = NULL;

    snprintf(bearer, sizeof(bearer), "Authorization: Bearer %s", call->provider->token.access);
    for (size_t i = 0; i < count; i++) {
        struct curl_slist *longer = curl_slist_append(headers, lines[i]);

        if (longer == NULL) {
            npi_headers_free(headers);
            headers = NULL;
            break;
        }

        headers = longer;
    }

    OPENSSL_cleanse(bearer, sizeof(bearer));
    return headers;
}

static void
npi_call_close(struct npi_call *call)
{
    buffer_close(&call->answer); /* wipes it: perhaps there is a token in it */
}

/* True with a whole answer; else `detail` says why there is none. npi_call_close() it. */
static bool
npi_perform(struct npi_call *call, char *detail)
{
    struct payout_provider *provider = call->provider;
    char url[NPI_URL_MAX + 64], said[CURL_ERROR_SIZE];
    struct curl_slist *headers = npi_headers(call);
    curl_off_t ready = 0;
    CURLcode code = CURLE_OUT_OF_MEMORY;

    buffer_open(&call->answer, call->answer_max, NULL);
    call->status = 0;
    call->sent = false;
    provider->error[0] = '\0';
    snprintf(url, sizeof(url), "%s%s", provider->settings.url, call->path);
    curl_easy_reset(provider->curl);
    if (headers != NULL && npi_options(call, url, headers)) {
        code = curl_easy_perform(provider->curl);
        /* Before the connection stands, TLS with it, no byte of a request goes out. */
        curl_easy_getinfo(provider->curl,
            provider->settings.tls ? CURLINFO_APPCONNECT_TIME_T : CURLINFO_CONNECT_TIME_T, &ready);
        call->sent = ready > 0;
        if (code == CURLE_OK) {
            curl_easy_getinfo(provider->curl, CURLINFO_RESPONSE_CODE, &call->status);
        }
    }

    npi_headers_free(headers);
    if (code == CURLE_OK && buffer_whole(&call->answer, &call->whole)) {
        return true;
    }

    log_flatten(said, sizeof(said),
        provider->error[0] != '\0' ? provider->error : curl_easy_strerror(code));
    snprintf(detail, PAYOUT_DETAIL_MAX, "NPI: %.200s", said);
    return false;
}

/* --- tokens --- */

/* The reason only: answers there may repeat what was sent. */
static bool
npi_no_token(const struct npi_call *call, const char *what, char *detail)
{
    snprintf(detail, PAYOUT_DETAIL_MAX, "NPI %s: status %ld", what, call->status);
    return false;
}

/* Appends name=value, escaped. */
static void
npi_form(struct payout_provider *provider, struct buffer *form, const char *name, const char *value)
{
    char *escaped = curl_easy_escape(provider->curl, value, (int) strlen(value));

    form->failed = form->failed || escaped == NULL;
    buffer_puts(form, form->len == 0 ? "" : "&");
    buffer_puts(form, name);
    buffer_puts(form, "=");
    if (escaped != NULL) {
        buffer_puts(form, escaped);
        OPENSSL_cleanse(escaped, strlen(escaped));
        curl_free(escaped);
    }
}

/* Asks for tokens with a form, which is closed. */
static bool
npi_ask_token(struct payout_provider *provider, struct buffer *form, struct npi_token *token,
    long *status, char *detail)
{
    struct npi_call call = {
        .provider = provider,
        .answer = {.fd = -1},
        .path = "/oauth/token",
        .type = NPI_FORM,
        .answer_max = NPI_TOKEN_ANSWER,
        .with_client = true,
    };
    bool ok = false;

    *status = 0;
    if (!buffer_whole(form, &call.body)) {
        snprintf(detail, PAYOUT_DETAIL_MAX, "out of memory");
    } else if (npi_perform(&call, detail)) {
        *status = call.status;
        ok = call.status == 200 && npi_token_parse(call.whole, token);
        if (!ok) {
            npi_no_token(&call, "does not let us in", detail);
        }
    }

    npi_call_close(&call);
    buffer_close(form);
    return ok;
}

/* By user and password: a token to get others with. The other one that comes with it may not be
 * used (5.1.1, step 1). */
static bool
npi_login(struct payout_provider *provider, char *detail)
{
    const struct config *config = provider->settings.config;
    struct npi_token token;
    struct buffer form;
    long status;
    bool ok;

    buffer_open(&form, NPI_TOKEN_ANSWER, NULL);
    npi_form(provider, &form, "grant_type", "password");
    npi_form(provider, &form, "username", config->npi.user);
    npi_form(provider, &form, "password", config->npi.password);
    ok = npi_ask_token(provider, &form, &token, &status, detail);
    if (ok && token.refresh[0] == '\0') {
        snprintf(detail, PAYOUT_DETAIL_MAX, "NPI gives no refresh token");
        ok = false;
    }

    if (ok) {
        memcpy(provider->token.refresh, token.refresh, sizeof(token.refresh));
        provider->refresh_until_ms = clock_monotonic_ms() + NPI_REFRESH_S * 1000 - NPI_EARLY_MS;
    }

    OPENSSL_cleanse(&token, sizeof(token));
    return ok;
}

static bool
npi_refresh(struct payout_provider *provider, long *status, char *detail)
{
    struct npi_token token;
    struct buffer form;
    int64_t early;
    bool ok;

    buffer_open(&form, NPI_TOKEN_ANSWER, NULL);
    npi_form(provider, &form, "grant_type", "refresh_token");
    npi_form(provider, &form, "refresh_token", provider->token.refresh);
    ok = npi_ask_token(provider, &form, &token, status, detail);
    if (ok) {
        memcpy(provider->token.access, token.access, sizeof(token.access));
        early = token.expires_s * 1000 / 2 < NPI_EARLY_MS ? token.expires_s * 500 : NPI_EARLY_MS;
        provider->access_until_ms = clock_monotonic_ms() + token.expires_s * 1000 - early;
    }

    OPENSSL_cleanse(&token, sizeof(token));
    return ok;
}

/* A token that lasts for another request. */
static bool
npi_access(struct payout_provider *provider, char *detail)
{
    int64_t now_ms = clock_monotonic_ms();
    long status = 0;

    if (now_ms < provider->access_until_ms) {
        return true;
    }

    if (now_ms < provider->refresh_until_ms) {
        if (npi_refresh(provider, &status, detail)) {
            return true;
        }

        if (status != 400 && status != 401) {
            return false;
        }
    }

    provider->refresh_until_ms = 0;
    return npi_login(provider, detail) && npi_refresh(provider, &status, detail);
}

/* --- requests with a token --- */

/* Performs it; one that is refused for its token (401) was not looked at, and goes again with
 * another. npi_call_close() it. */
static bool
npi_authorized(struct npi_call *call, char *detail)
{
    struct payout_provider *provider = call->provider;

    for (int turn = 0;; turn++) {
        if (!npi_access(provider, detail)) {
            call->sent = false;
            return false;
        }

        if (!npi_perform(call, detail)) {
            return false;
        }

        if (call->status != 401 || turn == 1) {
            return true;
        }

        npi_call_close(call);
        provider->access_until_ms = 0;
    }
}

static enum payout_outcome
npi_fits_here(struct payout_provider *provider, const struct payout_batch *batch, char *detail)
{
    return npi_fits(&provider->settings.debtor, batch, detail) ? PAYOUT_SUBMITTED : PAYOUT_HELD;
}

static enum payout_outcome
npi_validate(struct payout_provider *provider, struct payout_item *item, char *detail)
{
    struct npi_call call = {
        .provider = provider,
        .answer = {.fd = -1},
        .path = "/api/validatebankaccount",
        .type = NPI_JSON_TYPE,
        .answer_max = NPI_CHECK_ANSWER,
    };
    struct buffer request;
    enum payout_outcome outcome = PAYOUT_AWAY;

    buffer_open(&request, NPI_CHECK_ANSWER, NULL);
    buffer_puts(&request, "{\"bankId\":");
    buffer_json(&request, aff_slice_of(item->bank));
    buffer_puts(&request, ",\"accountId\":");
    buffer_json(&request, aff_slice_of(item->account));
    buffer_puts(&request, ",\"accountName\":");
    buffer_json(&request, aff_slice_of(item->holder));
    buffer_puts(&request, "}");
    snprintf(detail, PAYOUT_DETAIL_MAX, "out of memory");
    if (buffer_whole(&request, &call.body) && npi_authorized(&call, detail)) {
        outcome = npi_validated(call.status, call.whole, item, detail);
    }

    npi_call_close(&call);
    buffer_close(&request);
    return outcome;
}

/* The request into `request`, signed. */
static bool
npi_signed_request(
    struct payout_provider *provider, const struct payout_batch *batch, struct buffer *request)
{
    char token[SIGN_BASE64_MAX];
    struct buffer text;
    struct aff_slice whole;
    bool ok;

    buffer_open(&text, NPI_REQUEST_MAX, NULL);
    npi_signed_text(&provider->settings.debtor, batch, &text);
    ok = buffer_whole(&text, &whole) && sign_text(provider->key, whole, token);
    buffer_close(&text);
    if (ok) {
        npi_request(&provider->settings.debtor, batch, token, request);
    }

    return ok;
}

static enum payout_outcome
npi_submit(struct payout_provider *provider, struct payout_batch *batch, char *detail)
{
    struct npi_call call = {
        .provider = provider,
        .answer = {.fd = -1},
        .path = npi_real_time(batch->count) ? "/api/postcipsbatch" : "/api/postnchlipsbatch",
        .type = NPI_JSON_TYPE,
        .answer_max = NPI_ANSWER_MAX,
        .once = true,
    };
    struct buffer request;
    enum payout_outcome outcome = PAYOUT_AWAY;

    buffer_open(&request, NPI_REQUEST_MAX, NULL);
    snprintf(detail, PAYOUT_DETAIL_MAX, "the batch can't be signed");
    if (npi_signed_request(provider, batch, &request) && buffer_whole(&request, &call.body)) {
        if (npi_authorized(&call, detail)) {
            outcome = npi_submitted(call.status, call.whole, batch, detail);
        } else if (call.sent) {
            outcome = PAYOUT_IN_DOUBT;
            for (size_t i = 0; i < batch->count; i++) {
                batch->items[i].verdict = PAYOUT_UNKNOWN;
                snprintf(batch->items[i].detail, PAYOUT_DETAIL_MAX, "%s", detail);
            }
        }
    }

    npi_call_close(&call);
    buffer_close(&request);
    return outcome;
}

static enum payout_outcome
npi_query(struct payout_provider *provider, struct payout_batch *batch, char *detail)
{
    struct npi_call call = {
        .provider = provider,
        .answer = {.fd = -1},
        .path = npi_real_time(batch->sent) ? "/api/getcipstxnlistbybatchid"
                                           : "/api/getnchlipstxnlistbybatchid",
        .type = NPI_JSON_TYPE,
        .answer_max = NPI_ANSWER_MAX,
    };
    struct buffer request;
    enum payout_outcome outcome = PAYOUT_AWAY;

    buffer_open(&request, NPI_CHECK_ANSWER, NULL);
    buffer_puts(&request, "{\"batchId\":");
    buffer_json(&request, aff_slice_of(batch->reference));
    buffer_puts(&request, "}");
    snprintf(detail, PAYOUT_DETAIL_MAX, "out of memory");
    if (buffer_whole(&request, &call.body) && npi_authorized(&call, detail)) {
        outcome = npi_reported(call.status, call.whole, batch, detail);
    }

    npi_call_close(&call);
    buffer_close(&request);
    return outcome;
}

/* --- a life --- */

static void
npi_close(struct payout_provider *provider)
{
    if (provider != NULL) {
        sign_close(provider->key);
        curl_easy_cleanup(provider->curl);
        OPENSSL_cleanse(provider, sizeof(*provider));
        free(provider);
    }
}

static bool
npi_ready(struct payout_provider *provider, const struct config *config, char *error)
{
    char why[SIGN_ERROR_MAX], detail[PAYOUT_DETAIL_MAX];

    if (!npi_settings(config, &provider->settings, error)) {
        return false;
    }

    provider->key = sign_open(config->npi.pfx_file, config->npi.pfx_password, why);
    if (provider->key == NULL) {
        snprintf(error, CONFIG_ERROR_MAX, "npi.pfx_file: %.200s: %s", config->npi.pfx_file, why);
        return false;
    }

    provider->curl = curl_easy_init();
    if (provider->curl == NULL) {
        snprintf(error, CONFIG_ERROR_MAX, "libcurl can't be set up");
        return false;
    }

    if (!npi_access(provider, detail)) {
        snprintf(error, CONFIG_ERROR_MAX, "%s", detail);
        return false;
    }

    return true;
}

static struct payout_provider *
npi_open(const struct config *config, bool (*turn)(void *context), void *context, char *error)
{
    struct payout_provider *provider = calloc(1, sizeof(*provider));

    pthread_once(&npi_once, npi_global);
    if (provider == NULL) {
        snprintf(error, CONFIG_ERROR_MAX, "out of memory");
        return NULL;
    }

    provider->turn = turn;
    provider->context = context;
    if (!npi_ready(provider, config, error)) {
        npi_close(provider);
        return NULL;
    }

    return provider;
}

const struct payout_provider_kind npi_provider = {
    .name = "npi",
    .open = npi_open,
    .close = npi_close,
    .fits = npi_fits_here,
    .validate = npi_validate,
    .submit = npi_submit,
    .query = npi_query,
};

static bool
npi_patient(void *context)
{
    (void) context;
    return false;
}

bool
npi_check(const struct config *config, char *said, size_t size)
{
    char error[CONFIG_ERROR_MAX];
    struct payout_provider *provider = npi_open(config, npi_patient, NULL, error);

    if (provider == NULL) {
        snprintf(said, size, "npi: %s", error);
        return false;
    }

    npi_close(provider);
    snprintf(said, size, "npi: %s lets us in (%s payouts; uncertified)", config->npi.url,
        config->npi.mode == CONFIG_NPI_LIVE ? "live" : "test");
    return true;
}
