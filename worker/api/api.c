/*
 * The role api: people's and programs' way in. nginx talks HTTP with them and hands each request,
 * whole, to a unix socket (SCGI); a lane takes it, asks PostgreSQL and answers.
 *
 * A lane does one request at a time, blocking, and everything that it waits for has a limit: the
 * request, PostgreSQL, the taker of the answer. While PostgreSQL is away, lanes go on taking
 * requests and tell everybody to come again.
 */

#include "worker/api/exchange.h"
#include "worker/api/listener.h"
#include "worker/api/password.h"

#include "protocol/chars.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

/* Of a body, beyond api.read_timeout: nginx sends what it has on disk. */
#define API_BYTES_PER_MS 10240

#define API_COUNTERS                                                                               \
    (1ULL << COUNTER_REQUESTS | 1ULL << COUNTER_REFUSED | 1ULL << COUNTER_BROKEN |                 \
        1ULL << COUNTER_LIMITED | 1ULL << COUNTER_LOGINS | 1ULL << COUNTER_REQUEST_US |            \
        1ULL << COUNTER_WITHIN_5MS | 1ULL << COUNTER_WITHIN_20MS | 1ULL << COUNTER_WITHIN_100MS |  \
        1ULL << COUNTER_WITHIN_500MS | 1ULL << COUNTER_FAILURES)

bool
lane_limit(struct lane *lane, int64_t ms, struct pg_error *error)
{
    char sql[64];

    snprintf(sql, sizeof(sql), "set statement_timeout = %lld", (long long) ms);
    return pg_command(lane->pg, sql, error);
}

bool
lane_connect(struct lane *lane, struct pg_error *error)
{
    const struct config *config = lane->role->config;
    bool own = config->api.conninfo[0] != '\0';

    lane->pg = pg_connect_as(config, own ? config->api.conninfo : config->postgres.conninfo,
        own ? config->api.password : config->postgres.password, lane->role->name, error);
    if (lane->pg == NULL) {
        return false;
    }

    if (!lane_limit(lane, config->api.statement_timeout, error)) {
        PQfinish(lane->pg);
        lane->pg = NULL;
        return false;
    }

    return true;
}

/* Reads what is there, within the time left; 0 at the end, -1 on an error or too late. */
static ssize_t
api_read(struct exchange *x, uint8_t *out, size_t room, int64_t deadline_ms)
{
    struct pollfd fd = {.fd = x->fd, .events = POLLIN};

    for (;;) {
        ssize_t n = recv(x->fd, out, room, MSG_DONTWAIT);
        int64_t left = deadline_ms - clock_monotonic_ms();

        if (n >= 0 || (errno != EAGAIN && errno != EINTR)) {
            return n;
        }

        if (left <= 0 || (poll(&fd, 1, left > 1000 ? 1000 : (int) left) < 0 && errno != EINTR)) {
            return -1;
        }

        role_progress(x->lane->role);
    }
}

/* nginx's $request_id, or one of our own. */
static void
api_request_id(struct exchange *x)
{
    struct aff_slice value;
    uint8_t random[16];

    (void) scgi_find(&x->lane->head, "REQUEST_ID", &value);
    if (!text_from_hex(value, random, sizeof(random)) &&
        getrandom(random, sizeof(random), 0) != (ssize_t) sizeof(random)) {
        memset(random, 0, sizeof(random));
    }

    text_hex(aff_slice(random, sizeof(random)), x->id);
}

/* The head, and whatever of the body came with it. */
static bool
api_read_head(struct exchange *x, int64_t deadline_ms, struct aff_slice *rest)
{
    struct lane *lane = x->lane;
    enum scgi_result result = SCGI_MORE;
    size_t have = 0, consumed = 0;

    while (result == SCGI_MORE) {
        ssize_t n = have == sizeof(lane->input)
                        ? -1
                        : api_read(x, lane->input + have, sizeof(lane->input) - have, deadline_ms);

        if (n <= 0) {
            return false;
        }

        have += (size_t) n;
        result = scgi_parse(aff_slice(lane->input, have), &lane->head, &consumed);
    }

    *rest = aff_slice(lane->input + consumed, have - consumed);
    if (result != SCGI_DONE) {
        lane->head.count = 0;
    }

    api_request_id(x);
    return result == SCGI_DONE ||
           answer_problem(x, result == SCGI_TOO_LARGE ? 431 : 400, "malformed_request", NULL,
               "The request's head is too large, or none.");
}

/* nginx gives a request away whole before it looks for the answer: what is not wanted is read, too.
 */
static void
api_discard(struct exchange *x, int64_t deadline_ms, struct aff_slice rest)
{
    uint64_t left = x->lane->head.content_length;
    uint8_t block[65536];
    ssize_t n = 1;

    left -= rest.len < left ? rest.len : left;
    while (left > 0 && n > 0) {
        n = api_read(x, block, left < sizeof(block) ? (size_t) left : sizeof(block), deadline_ms);
        left -= n > 0 ? (uint64_t) n : 0;
    }
}

/* A file is taken only from who may have an account; JSON is small. */
static bool
api_body_wanted(struct exchange *x)
{
    bool upload = (x->route->flags & ROUTE_UPLOAD) != 0;
    int64_t max = upload ? x->config->api.max_upload : x->config->api.max_body;

    if (upload && x->credential.kind == CREDENTIAL_NONE) {
        return answer_problem(x, 401, "unauthenticated", NULL, "Log in, or sign with a key.");
    }

    return x->lane->head.content_length <= (uint64_t) max ||
           answer_problem(
               x, 413, "body_too_large", NULL, "The body may have %lld bytes.", (long long) max);
}

static bool
api_read_body(struct exchange *x, int64_t deadline_ms, struct aff_slice rest)
{
    uint8_t block[65536];
    uint64_t length = x->lane->head.content_length;

    buffer_put(&x->input, rest.data, rest.len < length ? rest.len : (size_t) length);
    while (!x->input.failed && buffer_total(&x->input) < length) {
        uint64_t want = length - buffer_total(&x->input);
        ssize_t n =
            api_read(x, block, want < sizeof(block) ? (size_t) want : sizeof(block), deadline_ms);

        if (n <= 0) {
            return answer_problem(x, 400, "malformed_body", NULL, "The body came not to its end.");
        }

        buffer_put(&x->input, block, (size_t) n);
    }

    return buffer_whole(&x->input, &x->body) ||
           answer_unavailable(x, "There is no room for the body just now.");
}

static bool
api_parts(struct exchange *x)
{
    const struct scgi_head *head = &x->lane->head;
    const uint8_t *mark;

    if (scgi_find(head, "REQUEST_METHOD", &x->method) != 1 ||
        scgi_find(head, "REQUEST_URI", &x->target) != 1 || x->target.len == 0 ||
        x->target.data[0] != '/' || !aff_chars_visible(x->method)) {
        return answer_problem(x, 400, "malformed_request", NULL, "There is no method, or no path.");
    }

    if (x->target.len > REQUEST_TARGET_MAX) {
        return answer_problem(x, 414, "target_too_long", NULL, "Path and query may have %d bytes.",
            REQUEST_TARGET_MAX);
    }

    (void) scgi_find(head, "REMOTE_ADDR", &x->address);
    request_address_prefix(x->address, x->prefix);
    mark = memchr(x->target.data, '?', x->target.len);
    x->path = x->target;
    if (mark != NULL) {
        x->path.len = (size_t) (mark - x->target.data);
        x->query = aff_slice(mark + 1, x->target.len - x->path.len - 1);
    }

    return true;
}

static bool
api_route(struct exchange *x, struct route_match *match)
{
    route_find(x->method, x->path, match);
    x->route = match->route;
    if (x->route != NULL) {
        return true;
    }

    if (match->allow[0] == '\0') {
        return answer_problem(x, 404, "not_found", NULL, "There is nothing here.");
    }

    answer_header(x, "Allow", "%s", match->allow);
    return answer_problem(
        x, 405, "method_not_allowed", NULL, "This can be called with %s.", match->allow);
}

/* What the answer is to be: `format` in the query is plainer than an Accept header, and wins. */
static bool
api_format(struct exchange *x)
{
    const char *format = json_string_value(json_object_get(x->fields, "format"));
    bool list = x->route->columns != NULL;
    struct aff_slice accept;
    bool ok;

    (void) scgi_find(&x->lane->head, "HTTP_ACCEPT", &accept);
    if (format == NULL) {
        return accept_choose(accept, list, &x->csv) ||
               answer_problem(x, 406, "not_acceptable", NULL, "The answer is application/json%s.",
                   list ? " or text/csv" : "");
    }

    x->csv = strcmp(format, "csv") == 0;
    ok = (x->csv && list) || strcmp(format, "json") == 0;
    json_object_del(x->fields, "format");
    return ok || answer_problem(x, 406, "not_acceptable", NULL, "format can be json%s.",
                     list ? " or csv" : "");
}

static bool
api_content(struct exchange *x, struct request_fault *fault)
{
    bool upload = (x->route->flags & ROUTE_UPLOAD) != 0;
    struct aff_slice type;

    (void) scgi_find(&x->lane->head, "CONTENT_TYPE", &type);
    if (x->body.len == 0 && !upload) {
        return true;
    }

    if (!request_type_is(type, upload ? "text/csv" : "application/json")) {
        return answer_problem(x, 415, "unsupported_media_type", NULL, "The body has to be %s.",
            upload ? "text/csv" : "application/json");
    }

    if (!upload && (x->route->flags & ROUTE_BODY) == 0) {
        return answer_problem(x, 400, "malformed_body", NULL, "This takes no body.");
    }

    return upload || request_body(x->body, x->fields, fault) || answer_fault(x, fault);
}

static bool
api_fields(struct exchange *x, const struct route_match *match)
{
    struct request_fault fault = {0};

    x->fields = json_object();
    if (x->fields == NULL) {
        return answer_unavailable(x, "There is no memory left.");
    }

    if (!request_path(match, x->fields, &fault) || !request_query(x->query, x->fields, &fault)) {
        return answer_fault(x, &fault);
    }

    if (json_object_get(x->fields, "all") != NULL) {
        return answer_problem(x, 422, "invalid_field", NULL, "all: is not a field of this command");
    }

    return api_format(x) && api_content(x, &fault);
}

/* What is known before the body is there. */
static bool
api_admit(struct exchange *x, struct route_match *match)
{
    return api_parts(x) && api_route(x, match) && auth_identify(x) &&
           (x->credential.kind == CREDENTIAL_NONE || rate_guard(x)) && api_body_wanted(x);
}

/* In the order of the conversion location: form first, then who it is, then what. */
static bool
api_work(struct exchange *x, int64_t deadline_ms)
{
    struct route_match match;
    struct aff_slice rest;

    if (!api_read_head(x, deadline_ms, &rest)) {
        return false;
    }

    deadline_ms += (int64_t) (x->lane->head.content_length / API_BYTES_PER_MS);
    if (!api_admit(x, &match)) {
        api_discard(x, deadline_ms, rest);
        return false;
    }

    return api_read_body(x, deadline_ms, rest) &&
           (x->credential.kind != CREDENTIAL_KEY || auth_key(x)) && rate_charge(x) &&
           api_fields(x, &match) && call_operation(x);
}

static void
api_count(struct exchange *x, int64_t took_us)
{
    static const struct {
        int64_t us;
        enum counter counter;
    } bounds[] = {{5000, COUNTER_WITHIN_5MS}, {20000, COUNTER_WITHIN_20MS},
        {100000, COUNTER_WITHIN_100MS}, {500000, COUNTER_WITHIN_500MS}};
    struct role *role = x->lane->role;

    role_count(role, COUNTER_REQUESTS, 1);
    role_count(role, COUNTER_REQUEST_US, (uint64_t) took_us);
    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++) {
        if (took_us <= bounds[i].us) {
            role_count(role, bounds[i].counter, 1);
        }
    }

    if (x->status == 429) {
        role_count(role, COUNTER_LIMITED, 1);
    }

    if (x->status >= 400) {
        role_count(role, x->status < 500 ? COUNTER_REFUSED : COUNTER_BROKEN, 1);
    }
}

/* One line, by the operation's name: paths and queries may hold what is secret. */
static void
api_log(const struct exchange *x, int64_t took_us)
{
    static const char *const kinds[] = {"nobody", "session", "key"};

    if (x->config->api.access_log == CONFIG_ACCESS_OFF ||
        (x->config->api.access_log == CONFIG_ACCESS_ERRORS && x->status < 500)) {
        return;
    }

    log_info("%s %.*s %s %d%s%s %s%s%s %s in=%zu out=%zu ms=%lld.%03lld", x->id,
        (int) (x->method.len < 16 ? x->method.len : 16), (const char *) x->method.data,
        x->route == NULL ? "-" : x->route->operation, x->status, x->code[0] == '\0' ? "" : " ",
        x->code, kinds[x->credential.kind], x->credential.key[0] == '\0' ? "" : " ",
        x->credential.key, x->prefix[0] == '\0' ? "-" : x->prefix, x->body.len,
        buffer_total(&x->answer), (long long) took_us / 1000, (long long) took_us % 1000);
}

static void
api_exchange(struct lane *lane, int fd)
{
    struct exchange x = {.lane = lane,
        .config = lane->role->config,
        .fd = fd,
        .begun_us = exchange_now_us(),
        .method = aff_slice_of("-")};
    int64_t took_us;

    buffer_open(&x.input, (size_t) x.config->api.max_upload, x.config->api.temp_path);
    buffer_open(&x.answer, (size_t) x.config->api.max_answer, x.config->api.temp_path);
    buffer_open(&x.headers, SCGI_HEAD_MAX, NULL);

    /* Without a status, nobody is there to be answered. */
    if (api_work(&x, clock_monotonic_ms() + x.config->api.read_timeout) || x.status != 0) {
        rate_learn(&x);
        (void) answer_send(&x);
        took_us = exchange_now_us() - x.begun_us;
        api_count(&x, took_us);
        api_log(&x, took_us);
    }

    json_decref(x.fields);
    buffer_close(&x.input);
    buffer_close(&x.answer);
    buffer_close(&x.headers);
    explicit_bzero(&x.credential, sizeof(x.credential));
    explicit_bzero(lane->input, sizeof(lane->input));
}

/* Takes one connection, if there is one: then true. */
static bool
api_accept(struct lane *lane, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0) {
        return false;
    }

    api_exchange(lane, fd);
    close(fd);
    return true;
}

static struct lane *
api_lane(struct role *role)
{
    struct lane *lane = calloc(1, sizeof(*lane));
    char error[CONFIG_ERROR_MAX];

    if (lane == NULL) {
        role_failed(role, "no memory");
        return NULL;
    }

    lane->role = role;
    if (!config_read_keys(role->config, &lane->ring, error)) {
        role_failed(role, "master keys: %s", error);
        free(lane);
        return NULL;
    }

    password_setup((size_t) role->config->api.password_memory,
        (unsigned) role->config->api.password_cost, (unsigned) (role->config->api.threads + 1) / 2);
    return lane;
}

static void
api_lane_free(struct lane *lane)
{
    PQfinish(lane->pg);
    aff_keyring_wipe(&lane->ring);
    free(lane);
}

/* Until it stops, or PostgreSQL is lost; whoever waits already is answered in either case. */
static bool
api_serve_lane(struct lane *lane, int listener)
{
    struct role *role = lane->role;

    while (!role_should_end(role)) {
        if (!api_accept(lane, listener)) {
            role_wait(role, 1000, listener);
        }

        if (lane->lost) {
            return false;
        }
    }

    if (role_stops() && listener_retire(role->config)) {
        while (api_accept(lane, listener)) {
            role_progress(role);
        }
    }

    return true;
}

static bool
api_serve(struct role *role)
{
    char error[CONFIG_ERROR_MAX];
    struct lane *lane = api_lane(role);
    int listener = lane == NULL ? -1 : listener_fd(role->config, error);
    struct pg_error pg_error;
    bool ok = false;

    if (lane == NULL) {
        return false;
    }

    if (listener < 0) {
        role_failed(role, "%s", error);
    } else if (!lane_connect(lane, &pg_error)) {
        role_failed_pg(role, "connecting", &pg_error);
    } else {
        role_up(role);
        ok = api_serve_lane(lane, listener);
    }

    api_lane_free(lane);
    return ok;
}

/* Between lives there is nobody to ask: each request tries to connect, and says if that fails. */
static void
api_pause(struct role *role, int64_t ms)
{
    char error[CONFIG_ERROR_MAX];
    int64_t end = clock_monotonic_ms() + ms;
    struct lane *lane = api_lane(role);
    int listener = lane == NULL ? -1 : listener_fd(role->config, error);

    if (listener < 0) {
        role_wait(role, ms, -1);
    }

    while (listener >= 0 && clock_monotonic_ms() < end && !role_should_end(role)) {
        if (lane->pg != NULL) {
            /* It is there again. */
            break;
        }

        if (!api_accept(lane, listener)) {
            role_wait(role, end - clock_monotonic_ms(), listener);
        }
    }

    if (lane != NULL) {
        api_lane_free(lane);
    }
}

static int64_t
api_lanes(const struct config *config)
{
    return config->api.threads;
}

const struct role_kind api_role = {.name = "api",
    .serve = api_serve,
    .counters = API_COUNTERS,
    .lanes = api_lanes,
    .pause = api_pause};
