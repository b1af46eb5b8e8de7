#include "worker/api/exchange.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <time.h>

#define ANSWER_DETAIL_MAX 512

int64_t
exchange_now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static const char *
answer_title(int status)
{
    static const struct {
        int status;
        const char *title;
    } titles[] = {
        {200, "OK"},
        {201, "Created"},
        {202, "Accepted"},
        {204, "No Content"},
        {304, "Not Modified"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {406, "Not Acceptable"},
        {409, "Conflict"},
        {410, "Gone"},
        {412, "Precondition Failed"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {422, "Unprocessable Content"},
        {423, "Locked"},
        {428, "Precondition Required"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {503, "Service Unavailable"},
    };

    for (size_t i = 0; i < sizeof(titles) / sizeof(titles[0]); i++) {
        if (titles[i].status == status) {
            return titles[i].title;
        }
    }

    return status < 400 ? "OK" : status < 500 ? "Bad Request" : "Internal Server Error";
}

void
answer_header(struct exchange *x, const char *name, const char *format, ...)
{
    char value[1024];
    va_list args;
    int len;

    va_start(args, format);
    len = vsnprintf(value, sizeof(value), format, args);
    va_end(args);

    /* One that could end the line, or is cut, is none. */
    for (int i = 0; i < len && len < (int) sizeof(value); i++) {
        if ((unsigned char) value[i] < 0x20 || value[i] == 0x7f) {
            return;
        }
    }

    if (len >= 0 && len < (int) sizeof(value)) {
        buffer_puts(&x->headers, name);
        buffer_puts(&x->headers, ": ");
        buffer_puts(&x->headers, value);
        buffer_puts(&x->headers, "\r\n");
    }
}

/* The request id, 32 hexadecimal digits, as a urn:uuid: what this very problem is called. */
static void
answer_instance(struct exchange *x)
{
    struct buffer *out = &x->answer;

    if (strlen(x->id) == 32) {
        buffer_printf(out, ",\"instance\":\"urn:uuid:%.8s-%.4s-%.4s-%.4s-%.12s\"", x->id, x->id + 8,
            x->id + 12, x->id + 16, x->id + 20);
    }

    buffer_puts(out, ",\"request_id\":");
    buffer_json(out, aff_slice_of(x->id));
}

static void
answer_members(struct exchange *x, json_t *more)
{
    json_t *value;
    const char *name;

    json_object_foreach(more, name, value)
    {
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);

        if (strcmp(name, "retry_after") == 0) {
            answer_header(x, "Retry-After", "%lld", (long long) json_integer_value(value));
        } else if (text != NULL) {
            buffer_puts(&x->answer, ",");
            buffer_json(&x->answer, aff_slice_of(name));
            buffer_puts(&x->answer, ":");
            buffer_puts(&x->answer, text);
        }

        free(text);
    }
}

bool
answer_problem(
    struct exchange *x, int status, const char *code, json_t *more, const char *format, ...)
{
    char detail[ANSWER_DETAIL_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(detail, sizeof(detail), format, args);
    va_end(args);

    /* Cut within a character, it would be no UTF-8 any more. */
    for (size_t len = strlen(detail); len > 0 && !text_utf8(aff_slice(detail, len)); len--) {
        detail[len - 1] = '\0';
    }

    x->status = status;
    snprintf(x->code, sizeof(x->code), "%s", code);
    buffer_reset(&x->answer);
    answer_header(x, "Content-Type", "application/problem+json");
    if (status == 401) {
        answer_header(x, "WWW-Authenticate", "Affiliate-Signature");
    }

    buffer_printf(&x->answer,
        "{\"type\":\"about:blank\",\"title\":\"%s\",\"status\":%d,\"code\":", answer_title(status),
        status);
    buffer_json(&x->answer, aff_slice_of(x->code));
    buffer_puts(&x->answer, ",\"detail\":");
    buffer_json(&x->answer, aff_slice_of(detail));
    answer_instance(x);
    answer_members(x, more);
    buffer_puts(&x->answer, "}\n");
    json_decref(more);
    return false;
}

bool
answer_fault(struct exchange *x, const struct request_fault *fault)
{
    json_t *more = fault->pointer[0] == '\0' ? NULL
                                             : json_pack("{s:[{s:s, s:s}]}", "errors", "pointer",
                                                   fault->pointer, "detail", fault->detail);

    return answer_problem(x, fault->status, fault->code, more, "%s", fault->detail);
}

bool
answer_unavailable(struct exchange *x, const char *detail)
{
    return answer_problem(
        x, 503, "unavailable", json_pack("{s:i}", "retry_after", 1), "%s", detail);
}

static bool
answer_write(struct exchange *x, struct aff_slice bytes, int64_t deadline_ms)
{
    struct pollfd fd = {.fd = x->fd, .events = POLLOUT};

    while (bytes.len > 0) {
        ssize_t n = send(x->fd, bytes.data, bytes.len, MSG_NOSIGNAL | MSG_DONTWAIT);
        int64_t left = deadline_ms - clock_monotonic_ms();

        if (n > 0) {
            bytes = aff_slice(bytes.data + n, bytes.len - (size_t) n);
            role_progress(x->lane->role);
            continue;
        }

        if ((n < 0 && errno != EAGAIN && errno != EINTR) || left <= 0 ||
            (poll(&fd, 1, left > 1000 ? 1000 : (int) left) < 0 && errno != EINTR)) {
            return false;
        }
    }

    return true;
}

static void
answer_rate(struct exchange *x)
{
    const struct rate_policy *policy = &x->policy;

    if (policy->name != NULL && policy->quota > 0) {
        answer_header(x, "RateLimit-Policy", "\"%s\";q=%lld;w=%lld", policy->name,
            (long long) policy->quota, (long long) policy->window_s);
        answer_header(x, "RateLimit", "\"%s\";r=%lld;t=%lld", policy->name,
            (long long) x->rate.left, (long long) x->rate.reset_s);
    }
}

bool
answer_send(struct exchange *x)
{
    int64_t deadline_ms = clock_monotonic_ms() + x->config->api.send_timeout;
    bool bare = x->status == 204 || x->status == 304;
    struct aff_slice body, head;
    struct buffer first;
    bool ok;

    if (!buffer_whole(&x->answer, &body)) {
        answer_unavailable(x, "There is no room for the answer just now.");
        if (!buffer_whole(&x->answer, &body)) {
            return false;
        }
    }

    answer_rate(x);
    answer_header(x, "X-Request-Id", "%s", x->id);
    answer_header(x, "Cache-Control", "no-store");
    answer_header(x, "X-Content-Type-Options", "nosniff");

    buffer_open(&first, SCGI_HEAD_MAX, NULL);
    buffer_printf(&first, "Status: %d %s\r\n", x->status, answer_title(x->status));
    if (!bare) {
        buffer_printf(&first, "Content-Length: %zu\r\n", body.len);
    }

    ok = buffer_whole(&x->headers, &head);
    buffer_put(&first, head.data, head.len);
    buffer_puts(&first, "\r\n");
    ok = ok && buffer_whole(&first, &head) && answer_write(x, head, deadline_ms);
    if (ok && !bare && !aff_slice_equal(x->method, aff_slice_of("HEAD"))) {
        ok = answer_write(x, body, deadline_ms);
    }

    buffer_close(&first);
    return ok;
}
