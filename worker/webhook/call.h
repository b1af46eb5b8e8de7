/*
 * One call of a stranger's endpoint: made ready here, driven by a curl multi handle, judged here.
 * The host can be anything; so: the address is looked at when the socket for it is made, no
 * redirect, no proxy, no cookie, little data, little time.
 */

#ifndef AFFILIATED_WEBHOOK_CALL_H
#define AFFILIATED_WEBHOOK_CALL_H

#include "worker/config.h"

#include <curl/curl.h>
#include <jansson.h>
#include <netinet/in.h>

#define CALL_ANSWER_MAX  (64 * 1024UL)
#define CALL_KEPT_MAX    1024
#define CALL_HEADERS_MAX 4

struct call_request {
    const char *url;
    const char *body; /* NULL: a GET */
    const char *headers[CALL_HEADERS_MAX];
    unsigned header_count;
    bool https_only;
};

struct call {
    CURL *curl; /* kept from call to call */
    struct curl_slist *headers, *connect_to;
    struct sockaddr_storage allowed; /* webhooks.connect_to */
    socklen_t allowed_len;
    int64_t begun_ms;
    size_t received, kept_len;
    char kept[CALL_KEPT_MAX];
    char refused[INET6_ADDRSTRLEN + 32]; /* an address that was */
    char error[CURL_ERROR_SIZE];
};

/* Makes call->curl ready; what `request` points to may go then. False: no memory. */
bool call_prepare(
    struct call *call, const struct config *config, const struct call_request *request);

/* What became of it, as webhook_done() takes it, without delivery and taken. NULL: no memory. */
json_t *call_judge(const struct call *call, CURLcode code);

void call_free(struct call *call);

#endif
