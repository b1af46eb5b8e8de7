#include "worker/webhook/call.h"

#include "worker/api/text.h"
#include "worker/role.h"
#include "worker/site/address.h"
#include "worker/site/txt.h"

#include <string.h>
#include <sys/socket.h>

#define CALL_ERROR_MAX 400

static curl_socket_t
call_socket(void *context, curlsocktype purpose, struct curl_sockaddr *address)
{
    struct call *call = context;
    bool allowed = call->allowed_len > 0 && address->addrlen == call->allowed_len &&
                   memcmp(&address->addr, &call->allowed, call->allowed_len) == 0;

    if (purpose != CURLSOCKTYPE_IPCXN || address->protocol != IPPROTO_TCP ||
        (!allowed && !address_public(&address->addr, address->addrlen))) {
        address_text(&address->addr, address->addrlen, call->refused, sizeof(call->refused));
        return CURL_SOCKET_BAD;
    }

    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

/* Ends the transfer as soon as it is too much, headers and all. */
static size_t
call_header(char *data, size_t size, size_t count, void *context)
{
    struct call *call = context;

    (void) data;
    call->received += size * count;
    return call->received <= CALL_ANSWER_MAX ? size * count : 0;
}

static size_t
call_body(char *data, size_t size, size_t count, void *context)
{
    struct call *call = context;
    size_t len = size * count, room = sizeof(call->kept) - call->kept_len;
    size_t keep = len < room ? len : room;

    memcpy(call->kept + call->kept_len, data, keep);
    call->kept_len += keep;
    return call_header(data, size, count, context);
}

static bool
call_options(struct call *call, const struct config *config, const struct call_request *request)
{
    CURL *curl = call->curl;
    bool ok = true;

#define SET(option, value) ok = ok && curl_easy_setopt(curl, option, value) == CURLE_OK
    SET(CURLOPT_URL, request->url);
    SET(CURLOPT_PROTOCOLS_STR, request->https_only ? "https" : "https,http");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
    SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_USERAGENT, "affiliated (webhooks)");
    SET(CURLOPT_OPENSOCKETFUNCTION, call_socket);
    SET(CURLOPT_OPENSOCKETDATA, call);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_TIMEOUT_MS, (long) config->webhooks.timeout);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long) config->webhooks.timeout);
    SET(CURLOPT_HEADERFUNCTION, call_header);
    SET(CURLOPT_HEADERDATA, call);
    SET(CURLOPT_WRITEFUNCTION, call_body);
    SET(CURLOPT_WRITEDATA, call);
    SET(CURLOPT_ERRORBUFFER, call->error);
    SET(CURLOPT_PRIVATE, call);
    SET(CURLOPT_HTTPHEADER, call->headers);
    if (request->body != NULL) {
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) strlen(request->body));
        SET(CURLOPT_COPYPOSTFIELDS, request->body);
    }
    if (config->webhooks.ca_file[0] != '\0') {
        SET(CURLOPT_CAINFO, config->webhooks.ca_file);
    }
    if (call->connect_to != NULL) {
        SET(CURLOPT_CONNECT_TO, call->connect_to);
    }
#undef SET

    return ok;
}

static bool
call_add(struct curl_slist **list, const char *text)
{
    struct curl_slist *longer = curl_slist_append(*list, text);

    *list = longer == NULL ? *list : longer;
    return longer != NULL;
}

bool
call_prepare(struct call *call, const struct config *config, const struct call_request *request)
{
    const char *to = config->webhooks.connect_to;
    char entry[96];
    bool ok = true;

    curl_slist_free_all(call->headers);
    curl_slist_free_all(call->connect_to);
    if (call->curl == NULL) {
        call->curl = curl_easy_init();
    } else {
        curl_easy_reset(call->curl);
    }

    *call = (struct call){.curl = call->curl, .begun_ms = clock_monotonic_ms()};
    if (to[0] != '\0') {
        snprintf(entry, sizeof(entry), "::%s", to);
        ok = address_parse(to, &call->allowed, &call->allowed_len) &&
             call_add(&call->connect_to, entry);
    }

    /* "Expect: 100-continue" would cost a large body a round trip, and some receivers a second. */
    ok = ok && call->curl != NULL && call_add(&call->headers, "Expect:");
    for (unsigned i = 0; ok && i < request->header_count; i++) {
        ok = call_add(&call->headers, request->headers[i]);
    }

    return ok && call_options(call, config, request);
}

/* What it said, as text that PostgreSQL takes. */
static json_t *
call_answer(const struct call *call)
{
    size_t len = call->kept_len;
    char shown[CALL_KEPT_MAX + 1];

    /* The cut may have left a part of a character. */
    for (int i = 0; i < 3 && len > 0 && !text_utf8(aff_slice(call->kept, len)); i++) {
        len--;
    }

    if (text_utf8(aff_slice(call->kept, len))) {
        return json_stringn(call->kept, len);
    }

    txt_show(aff_slice(call->kept, call->kept_len), shown, sizeof(shown));
    return json_string(shown);
}

static void
call_sentence(const struct call *call, CURLcode code, long status, char *error)
{
    char said[200];

    txt_show(aff_slice_of(call->error[0] != '\0' ? call->error : curl_easy_strerror(code)), said,
        sizeof(said));
    if (call->refused[0] != '\0') {
        snprintf(error, CALL_ERROR_MAX, "the host is at %s, which is no address on the internet",
            call->refused);
    } else if (status >= 300 && status < 400) {
        snprintf(error, CALL_ERROR_MAX,
            "the answer leads elsewhere (status %ld), which is not followed", status);
    } else if (status >= 200) {
        snprintf(error, CALL_ERROR_MAX, "the answer has the status %ld", status);
    } else if (code == CURLE_OPERATION_TIMEDOUT) {
        snprintf(error, CALL_ERROR_MAX, "no answer came in time: %s", said);
    } else {
        snprintf(error, CALL_ERROR_MAX, "no answer came: %s", said);
    }
}

json_t *
call_judge(const struct call *call, CURLcode code)
{
    char error[CALL_ERROR_MAX];
    curl_off_t retry_after = 0;
    long status = 0;
    json_t *said;
    bool ok;

    curl_easy_getinfo(call->curl, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(call->curl, CURLINFO_RETRY_AFTER, &retry_after);

    /* Once it said that it has it, how the answer ends does not matter. */
    ok = status >= 200 && status < 300;
    said = json_pack("{s:b, s:b, s:I, s:I}", "ok", ok, "gone", status == 410, "latency_ms",
        (json_int_t) (clock_monotonic_ms() - call->begun_ms), "retry_after",
        (json_int_t) (retry_after < 0       ? 0
                      : retry_after > 86400 ? 86400
                                            : retry_after));
    if (status != 0) {
        json_object_set_new(said, "status", json_integer(status));
        json_object_set_new(said, "answer", call_answer(call));
    }

    if (!ok) {
        call_sentence(call, code, status, error);
        json_object_set_new(said, "error", json_string(error));
    }

    return said;
}

void
call_free(struct call *call)
{
    curl_easy_cleanup(call->curl);
    curl_slist_free_all(call->headers);
    curl_slist_free_all(call->connect_to);
}
