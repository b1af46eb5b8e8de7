/*
 * Fetches a small file from a host whose name a stranger chose. The host can be anything; so: https
 * and port 443 alone, a good certificate, no redirect, no proxy, no cookie, little data, little
 * time, and an address that is the internet's. That is looked at when the socket for the very
 * address is made, so that no name can show one address first and lead to another then.
 */

#include "worker/site/address.h"
#include "worker/site/prove.h"
#include "worker/site/txt.h"

#include <curl/curl.h>
#include <string.h>
#include <sys/socket.h>

#define HTTPS_BODY_MAX (64 * 1024UL)
#define HTTPS_KEPT_MAX 512 /* of it; the challenge is short */

struct https {
    const struct prove *prove;
    struct sockaddr_storage allowed; /* sites.connect_to */
    socklen_t allowed_len;
    char refused[INET6_ADDRSTRLEN + 32]; /* an address that was */
    uint8_t kept[HTTPS_KEPT_MAX];
    size_t kept_len;
    size_t received, headers;
    bool blank_tail; /* what was not kept is blank */
    char error[CURL_ERROR_SIZE];
};

static curl_socket_t
https_socket(void *context, curlsocktype purpose, struct curl_sockaddr *address)
{
    struct https *https = context;
    bool allowed = https->allowed_len > 0 && address->addrlen == https->allowed_len &&
                   memcmp(&address->addr, &https->allowed, https->allowed_len) == 0;

    if (purpose != CURLSOCKTYPE_IPCXN || address->protocol != IPPROTO_TCP ||
        (!allowed && !address_public(&address->addr, address->addrlen))) {
        address_text(&address->addr, address->addrlen, https->refused, sizeof(https->refused));
        return CURL_SOCKET_BAD;
    }

    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

/* Ends the transfer as soon as it is too much. */
static size_t
https_body(char *data, size_t size, size_t count, void *context)
{
    struct https *https = context;
    size_t len = size * count;
    size_t room = sizeof(https->kept) - https->kept_len;
    size_t keep = len < room ? len : room;

    if (len > HTTPS_BODY_MAX - https->received) {
        https->received = HTTPS_BODY_MAX + 1;
        return 0;
    }

    https->received += len;
    memcpy(https->kept + https->kept_len, data, keep);
    https->kept_len += keep;
    https->blank_tail = https->blank_tail && txt_trim(aff_slice(data + keep, len - keep)).len == 0;
    return len;
}

/* So with what comes before it. */
static size_t
https_header(char *data, size_t size, size_t count, void *context)
{
    struct https *https = context;

    (void) data;
    https->headers += size * count;
    if (https->headers > HTTPS_BODY_MAX) {
        https->received = HTTPS_BODY_MAX + 1;
        return 0;
    }

    return size * count;
}

static int
https_progress(
    void *context, curl_off_t to_get, curl_off_t got, curl_off_t to_send, curl_off_t sent)
{
    const struct https *https = context;

    (void) to_get;
    (void) got;
    (void) to_send;
    (void) sent;
    return https->prove->turn(https->prove->context);
}

static bool
https_options(CURL *curl, struct https *https, const char *url, struct curl_slist *connect_to)
{
    const struct config *config = https->prove->config;
    bool ok = true;

#define SET(option, value) ok = ok && curl_easy_setopt(curl, option, value) == CURLE_OK
    SET(CURLOPT_URL, url);
    SET(CURLOPT_PROTOCOLS_STR, "https");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
    SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_USERAGENT, "affiliated (site verification)");
    SET(CURLOPT_OPENSOCKETFUNCTION, https_socket);
    SET(CURLOPT_OPENSOCKETDATA, https);
    SET(CURLOPT_FRESH_CONNECT, 1L);
    SET(CURLOPT_FORBID_REUSE, 1L);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_TIMEOUT_MS, (long) config->sites.timeout);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long) config->sites.timeout);
    SET(CURLOPT_MAXFILESIZE_LARGE, (curl_off_t) HTTPS_BODY_MAX);
    SET(CURLOPT_HEADERFUNCTION, https_header);
    SET(CURLOPT_HEADERDATA, https);
    SET(CURLOPT_WRITEFUNCTION, https_body);
    SET(CURLOPT_WRITEDATA, https);
    SET(CURLOPT_ERRORBUFFER, https->error);
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_XFERINFOFUNCTION, https_progress);
    SET(CURLOPT_XFERINFODATA, https);
    if (config->sites.ca_file[0] != '\0') {
        SET(CURLOPT_CAINFO, config->sites.ca_file);
    }
    if (connect_to != NULL) {
        SET(CURLOPT_CONNECT_TO, connect_to);
    }
#undef SET

    return ok;
}

static bool
https_failed(const struct https *https, CURLcode code, const char *url, char *detail)
{
    const char *host = https->prove->host;
    char said[160];

    txt_show(aff_slice_of(https->error[0] != '\0' ? https->error : curl_easy_strerror(code)), said,
        sizeof(said));
    if (https->refused[0] != '\0') {
        snprintf(detail, PROVE_DETAIL_MAX, "%.253s is at %s, which is no address on the internet",
            host, https->refused);
        return false;
    }

    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
        snprintf(detail, PROVE_DETAIL_MAX, "there is no %.253s in the DNS", host);
        break;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CONNECT_ERROR:
        snprintf(detail, PROVE_DETAIL_MAX,
            "%.160s has no valid certificate: %s; https has to work for everybody", host, said);
        break;
    case CURLE_FILESIZE_EXCEEDED:
    case CURLE_WRITE_ERROR:
        snprintf(detail, PROVE_DETAIL_MAX, "%.320s has more than 64 KiB", url);
        break;
    default:
        snprintf(detail, PROVE_DETAIL_MAX, "%.300s can't be read: %s", url, said);
        break;
    }

    return false;
}

static bool
https_judge(const struct https *https, long status, const char *url, char *detail)
{
    struct aff_slice found = txt_trim(aff_slice(https->kept, https->kept_len));
    char shown[64];

    if (status >= 300 && status < 400) {
        snprintf(detail, PROVE_DETAIL_MAX,
            "%.320s leads elsewhere (status %ld); the file has to be at this very address", url,
            status);
        return false;
    }

    if (status != 200) {
        snprintf(
            detail, PROVE_DETAIL_MAX, "%.320s is answered with status %ld, not 200", url, status);
        return false;
    }

    if (https->blank_tail && aff_slice_equal(found, aff_slice_of(https->prove->challenge))) {
        return true;
    }

    txt_show(found, shown, sizeof(shown));
    snprintf(detail, PROVE_DETAIL_MAX, "%.300s has '%s'%s, not '%.64s'", url, shown,
        https->blank_tail ? "" : " and more", https->prove->challenge);
    return false;
}

static bool
https_fetch(
    CURL *curl, struct https *https, struct curl_slist *connect_to, char detail[PROVE_DETAIL_MAX])
{
    char url[384];
    long status = 0;
    CURLcode code;

    snprintf(url, sizeof(url), "https://%s/.well-known/affiliated-site.txt", https->prove->host);
    if (!https_options(curl, https, url, connect_to)) {
        snprintf(detail, PROVE_DETAIL_MAX, "libcurl can't be set up; this is tried again");
        return false;
    }

    code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    /* Of an answer that is none of ours, how it ends does not matter. */
    if (code != CURLE_OK && (status == 0 || status == 200)) {
        return https_failed(https, code, url, detail);
    }

    return https_judge(https, status, url, detail);
}

/* A name, not an address, and nothing that a URL would take for anything else. */
static bool
https_host_valid(const char *host)
{
    const char *top = strrchr(host, '.');

    return strlen(host) <= 253 && top != NULL && !(top[1] >= '0' && top[1] <= '9') &&
           host[strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")] ==
               '\0';
}

bool
prove_file(const struct prove *prove, char detail[PROVE_DETAIL_MAX])
{
    const char *to = prove->config->sites.connect_to;
    struct https https = {.prove = prove, .blank_tail = true};
    struct curl_slist *connect_to = NULL;
    char entry[96];
    CURL *curl;
    bool ok;

    if (!https_host_valid(prove->host)) {
        snprintf(detail, PROVE_DETAIL_MAX, "%.253s is no host name on the internet", prove->host);
        return false;
    }

    if (to[0] != '\0') {
        snprintf(entry, sizeof(entry), "::%s", to);
        if (!address_parse(to, &https.allowed, &https.allowed_len) ||
            (connect_to = curl_slist_append(NULL, entry)) == NULL) {
            snprintf(detail, PROVE_DETAIL_MAX, "sites.connect_to is not like 192.0.2.1:443");
            return false;
        }
    }

    curl = curl_easy_init();
    ok = curl != NULL && https_fetch(curl, &https, connect_to, detail);
    if (curl == NULL) {
        snprintf(detail, PROVE_DETAIL_MAX, "libcurl can't be set up; this is tried again");
    }

    curl_easy_cleanup(curl);
    curl_slist_free_all(connect_to);
    return ok;
}
