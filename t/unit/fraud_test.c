/*
 * The judge: verdicts and reasons of whole requests, the visitor's hash, and the shared tables
 * under a clock of the test's own. nginx's few functions that it calls stand here in their simplest
 * form.
 */

#include "unit.h"

#include <pthread.h>

#include "chars.h"

#include "../../ngx_module/ngx_http_affiliate_fraud.c"

/* ---- nginx ---- */

static ngx_time_t cached_time;
volatile ngx_time_t *ngx_cached_time = &cached_time;
volatile ngx_msec_t ngx_current_msec;

static unsigned conf_errors;
static u_char pool_memory[AFF_SIGNALS_MAX];
static bool pool_empty;

void *
ngx_pnalloc(ngx_pool_t *pool, size_t size)
{
    (void) pool;
    assert_true(size <= sizeof(pool_memory));
    return pool_empty ? NULL : pool_memory;
}

u_char *
ngx_strlcasestrn(u_char *s1, u_char *last, u_char *s2, size_t n)
{
    for (; s1 + n < last; s1++) {
        if (strncasecmp((char *) s1, (char *) s2, n + 1) == 0) {
            return s1;
        }
    }

    return NULL;
}

ngx_int_t
ngx_atoi(u_char *line, size_t n)
{
    ngx_int_t value = 0;

    if (n == 0 || n > 18) {
        return NGX_ERROR;
    }

    for (; n > 0; n--, line++) {
        if (*line < '0' || *line > '9') {
            return NGX_ERROR;
        }
        value = value * 10 + (*line - '0');
    }

    return value;
}

ngx_array_t *
ngx_array_create(ngx_pool_t *p, ngx_uint_t n, size_t size)
{
    ngx_array_t *array = calloc(1, sizeof(*array));

    array->elts = calloc(n, size);
    array->size = size;
    array->nalloc = n;
    array->pool = p;
    return array;
}

void *
ngx_array_push(ngx_array_t *a)
{
    assert_true(a->nelts < a->nalloc);
    return (u_char *) a->elts + a->size * a->nelts++;
}

void ngx_cdecl
ngx_conf_log_error(ngx_uint_t level, ngx_conf_t *cf, ngx_err_t err, const char *fmt, ...)
{
    (void) level;
    (void) cf;
    (void) err;
    (void) fmt;
    conf_errors++;
}

/* A complex value is its text; "$fail" can't be had. */
ngx_int_t
ngx_http_compile_complex_value(ngx_http_compile_complex_value_t *ccv)
{
    ccv->complex_value->value = *ccv->value;
    return NGX_OK;
}

ngx_int_t
ngx_http_complex_value(ngx_http_request_t *r, ngx_http_complex_value_t *val, ngx_str_t *value)
{
    (void) r;
    *value = val->value;
    return value->len == 5 && memcmp(value->data, "$fail", 5) == 0 ? NGX_ERROR : NGX_OK;
}

/* ---- requests ---- */

#define BROWSER                                                                                    \
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) "                   \
    "Chrome/131.0.0.0 Mobile Safari/537.36"

struct request {
    ngx_http_request_t r;
    ngx_connection_t connection;
    struct sockaddr_storage address;
    ngx_table_elt_t headers[16];
    char names[16][32];
    ngx_http_affiliate_fraud_conf_t conf;
    ngx_http_affiliate_fraud_tables_t *tables;
    struct aff_keyring ring;
    struct aff_click click;
};

static void
set_address(struct request *q, const char *text)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *) &q->address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *) &q->address;

    memset(&q->address, 0, sizeof(q->address));

    if (text == NULL) {
        q->address.ss_family = AF_UNIX;
    } else if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
    } else {
        assert_int_equal(inet_pton(AF_INET6, text, &v6->sin6_addr), 1);
        v6->sin6_family = AF_INET6;
    }
}

static ngx_table_elt_t *
add_header(struct request *q, const char *name, const char *value)
{
    ngx_list_part_t *part = &q->r.headers_in.headers.part;
    ngx_table_elt_t *h = &q->headers[part->nelts];
    char *lower = q->names[part->nelts];

    assert_true(part->nelts < COUNT(q->headers));
    part->nelts++;

    h->key = (ngx_str_t){strlen(name), (u_char *) name};
    h->value = (ngx_str_t){strlen(value), (u_char *) value};

    for (size_t i = 0; i <= strlen(name); i++) {
        lower[i] = (char) aff_char_lower((uint8_t) name[i]);
    }

    h->lowcase_key = (u_char *) lower;
    h->hash = 1;
    return h;
}

/* A telephone's tap, with the defaults, and tables of their own. */
static struct request *
new_request(void)
{
    struct request *q = calloc(1, sizeof(*q));
    ngx_http_affiliate_fraud_conf_t prev;

    assert_non_null(q);
    q->ring = ring_of(KEY_FILE);
    q->connection.sockaddr = (struct sockaddr *) &q->address;
    q->r.connection = &q->connection;
    q->r.method = NGX_HTTP_GET;
    q->r.headers_in.headers.part.elts = q->headers;
    q->click.merchant_id = 7;
    q->click.link_id = 70;
    q->click.livemode = true;
    set_address(q, "203.0.113.9");

    add_header(q, "Host", "go.example");
    q->r.headers_in.user_agent = add_header(q, "User-Agent", BROWSER);
    add_header(q, "Accept", "text/html");
    add_header(q, "Sec-Fetch-Site", "cross-site");

    ngx_http_affiliate_fraud_unset(&prev);
    ngx_http_affiliate_fraud_unset(&q->conf);
    ngx_http_affiliate_fraud_merge(&prev, &q->conf);

    q->tables = ngx_http_affiliate_fraud_init(calloc(1, 1 << 20), 1 << 20);
    return q;
}

static void
free_request(struct request *q)
{
    free(q->tables);
    free(q);
}

static void
judge(struct request *q)
{
    ngx_http_affiliate_fraud_judge(&q->r, &q->conf, q->tables, &q->ring, &q->click);
}

/* ---- tests ---- */

static void
one_person(void **state)
{
    struct request *q = new_request();

    (void) state;
    q->r.headers_in.referer = add_header(q, "Referer", "https://blog.example/post/1?secret=1#part");
    judge(q);

    assert_int_equal(q->click.verdict, AFF_VERDICT_VALID);
    assert_int_equal(q->click.reasons, 0);
    assert_int_equal(q->click.address_family, 4);
    assert_memory_equal(q->click.prefix, "\xcb\x00\x71\x00\x00\x00", 6);
    assert_true(q->click.visitor != 0);
    assert_int_equal(q->click.signals.len, 0);
    assert_slice(q->click.user_agent, BROWSER);
    assert_slice(q->click.referrer, "https://blog.example/post/1");
    free_request(q);
}

static void
declared(void **state)
{
    static const struct {
        const char *name, *value;
        uint32_t reasons;
        enum aff_verdict verdict;
    } cases[] = {
        {"User-Agent", "curl/7.88.1", AFF_REASON_BOT_AGENT, AFF_VERDICT_BOT},
        {"User-Agent", "WhatsApp/2.24", AFF_REASON_PREVIEW_AGENT, AFF_VERDICT_PREVIEW},
        {"User-Agent", "", AFF_REASON_EMPTY_AGENT, AFF_VERDICT_BOT},
        {"User-Agent", "-", AFF_REASON_EMPTY_AGENT, AFF_VERDICT_BOT},
        {"Purpose", "prefetch", AFF_REASON_PREFETCH, AFF_VERDICT_PREFETCH},
        {"Sec-Purpose", "prefetch;prerender", AFF_REASON_PREFETCH, AFF_VERDICT_PREFETCH},
        {"Sec-Purpose", "Prerender", AFF_REASON_PREFETCH, AFF_VERDICT_PREFETCH},
        {"X-Moz", "prefetch", AFF_REASON_PREFETCH, AFF_VERDICT_PREFETCH},
        {"X-Purpose", "preview", AFF_REASON_PREFETCH, AFF_VERDICT_PREFETCH},
        {"x-purpose", "instant", AFF_REASON_PREFETCH, AFF_VERDICT_PREFETCH},
        {"X-Purpose", "shopping", 0, AFF_VERDICT_VALID},
        {"Referes", "prefetch", 0, AFF_VERDICT_VALID},
        {"Sec-Fetch-Dest", "image", AFF_REASON_NOT_NAVIGATION, AFF_VERDICT_PREFETCH},
        {"Sec-Fetch-Dest", "script", AFF_REASON_NOT_NAVIGATION, AFF_VERDICT_PREFETCH},
        {"Sec-Fetch-Dest", "document", 0, AFF_VERDICT_VALID},
        {"Sec-Fetch-Dest", "iframe", 0, AFF_VERDICT_VALID},
        {"Sec-Fetch-Dest", "empty", 0, AFF_VERDICT_VALID},
        {"Sec-Fetch-Mode", "no-cors", 0, AFF_VERDICT_VALID},
        {"Sec-Fetch-Mode", "navigate", 0, AFF_VERDICT_VALID},
    };

    (void) state;

    for (unsigned i = 0; i < COUNT(cases); i++) {
        struct request *q = new_request();

        if (strcmp(cases[i].name, "User-Agent") == 0) {
            q->r.headers_in.user_agent->value =
                (ngx_str_t){strlen(cases[i].value), (u_char *) cases[i].value};
        } else {
            add_header(q, cases[i].name, cases[i].value);
        }

        judge(q);

        if (q->click.reasons != cases[i].reasons || q->click.verdict != cases[i].verdict) {
            fail_msg("%s: %s: verdict %u, reasons %x", cases[i].name, cases[i].value,
                q->click.verdict, q->click.reasons);
        }

        free_request(q);
    }
}

static void
together(void **state)
{
    struct request *q = new_request();
    ngx_list_part_t second = {0};
    ngx_table_elt_t *h;

    (void) state;
    add_header(q, "Sec-Fetch-Mode", "cors");
    h = add_header(q, "Sec-Fetch-Dest", "empty");

    /* The last header in a part of its own. */
    q->r.headers_in.headers.part.nelts--;
    q->r.headers_in.headers.part.next = &second;
    second.elts = h;
    second.nelts = 1;
    judge(q);
    assert_int_equal(q->click.reasons, AFF_REASON_NOT_NAVIGATION);

    q->r.method = NGX_HTTP_HEAD;
    q->r.headers_in.user_agent = NULL;
    judge(q);
    assert_int_equal(
        q->click.reasons, AFF_REASON_NOT_NAVIGATION | AFF_REASON_HEAD | AFF_REASON_EMPTY_AGENT);
    assert_int_equal(q->click.verdict, AFF_VERDICT_BOT);
    assert_int_equal(q->click.user_agent.len, 0);
    free_request(q);
}

static void
strings_are_cut(void **state)
{
    struct request *q = new_request();
    static char agent[3000];
    static char referrer[3000];

    (void) state;
    memset(agent, 'a', sizeof(agent));
    memset(referrer, 'r', sizeof(referrer));
    q->r.headers_in.user_agent->value = (ngx_str_t){sizeof(agent), (u_char *) agent};
    q->r.headers_in.referer = add_header(q, "Referer", "");
    q->r.headers_in.referer->value = (ngx_str_t){sizeof(referrer), (u_char *) referrer};
    judge(q);
    assert_int_equal(q->click.user_agent.len, AFF_USER_AGENT_MAX);
    assert_int_equal(q->click.referrer.len, AFF_REFERRER_MAX);

    referrer[100] = '@';
    judge(q);
    assert_int_equal(q->click.referrer.len, 0);

    referrer[50] = '#';
    judge(q);
    assert_int_equal(q->click.referrer.len, 50);
    free_request(q);
}

static void
visitors(void **state)
{
    struct request *q = new_request();
    uint64_t first;

    (void) state;
    judge(q);
    first = q->click.visitor;
    judge(q);
    assert_true(q->click.visitor == first);

    set_address(q, "::ffff:203.0.113.9");
    judge(q);
    assert_true(q->click.visitor == first);
    assert_int_equal(q->click.address_family, 4);

    set_address(q, "203.0.113.10");
    judge(q);
    assert_true(q->click.visitor != first);

    set_address(q, "2001:db8:1:2::3");
    judge(q);
    assert_int_equal(q->click.address_family, 6);
    assert_memory_equal(q->click.prefix, "\x20\x01\x0d\xb8\x00\x01", 6);

    set_address(q, "203.0.113.9");
    q->click.merchant_id++;
    judge(q);
    assert_true(q->click.visitor != first);
    q->click.merchant_id--;

    /* Another day, and another master key. */
    cached_time.sec += 86400;
    judge(q);
    assert_true(q->click.visitor != first);
    cached_time.sec -= 86400;
    judge(q);
    assert_true(q->click.visitor == first);
    q->ring = ring_before(&q->ring);
    judge(q);
    assert_true(q->click.visitor != first);

    /* Without an address, or a key, nobody is a visitor, and nobody comes twice. */
    set_address(q, NULL);
    judge(q);
    judge(q);
    assert_int_equal(q->click.visitor, 0);
    assert_int_equal(q->click.address_family, 0);
    assert_int_equal(q->click.reasons, 0);

    set_address(q, "203.0.113.9");
    ngx_http_affiliate_fraud_judge(&q->r, &q->conf, q->tables, NULL, &q->click);
    ngx_http_affiliate_fraud_judge(&q->r, &q->conf, NULL, NULL, &q->click);
    assert_int_equal(q->click.visitor, 0);
    assert_int_equal(q->click.verdict, AFF_VERDICT_VALID);
    free_request(q);
}

static void
duplicates(void **state)
{
    struct request *q = new_request();

    (void) state;
    ngx_current_msec = 5000;

    /* A prefetch is not counted: the tap that follows is the first. */
    q->r.method = NGX_HTTP_HEAD;
    judge(q);
    q->r.method = NGX_HTTP_GET;
    judge(q);
    assert_int_equal(q->click.verdict, AFF_VERDICT_VALID);

    ngx_current_msec += 59999;
    judge(q);
    assert_int_equal(q->click.verdict, AFF_VERDICT_DUPLICATE);
    assert_int_equal(q->click.reasons, AFF_REASON_REPEATED);

    /* The window began with the first. */
    ngx_current_msec += 1;
    judge(q);
    assert_int_equal(q->click.verdict, AFF_VERDICT_VALID);

    q->click.link_id++;
    judge(q);
    assert_int_equal(q->click.verdict, AFF_VERDICT_VALID);

    q->conf.duplicate_window = 0;
    judge(q);
    assert_int_equal(q->click.verdict, AFF_VERDICT_VALID);
    free_request(q);
}

/* `clicks` clicks `ms` apart: how many are over the rate. */
static unsigned
burst(struct request *q, unsigned clicks, unsigned ms, uint32_t reason)
{
    unsigned over = 0;

    for (unsigned i = 0; i < clicks; i++) {
        judge(q);
        over += (q->click.reasons & reason) != 0;
        ngx_current_msec += ms;
    }

    return over;
}

static void
rates(void **state)
{
    struct request *q = new_request();

    (void) state;
    q->conf.duplicate_window = 0;
    q->conf.address_rate = 60;
    q->conf.address_burst = 9;

    /* One and the burst; then all of a flood; then, slower than the rate, none. */
    assert_int_equal(burst(q, 15, 0, AFF_REASON_ADDRESS_RATE), 5);
    assert_int_equal(burst(q, 100, 900, AFF_REASON_ADDRESS_RATE), 100);
    assert_int_equal(q->click.verdict, AFF_VERDICT_SUSPECT);
    ngx_current_msec += 1000;
    assert_int_equal(burst(q, 20, 1000, AFF_REASON_ADDRESS_RATE), 0);

    /* The prefix counts, not the address; another merchant and the sandbox have their own. */
    ngx_current_msec += 20000;
    assert_int_equal(burst(q, 10, 0, AFF_REASON_ADDRESS_RATE), 0);
    set_address(q, "203.0.113.200");
    assert_int_equal(burst(q, 1, 0, AFF_REASON_ADDRESS_RATE), 1);
    q->click.livemode = false;
    assert_int_equal(burst(q, 1, 0, AFF_REASON_ADDRESS_RATE), 0);
    q->click.livemode = true;
    q->click.merchant_id++;
    assert_int_equal(burst(q, 1, 0, AFF_REASON_ADDRESS_RATE), 0);
    q->click.merchant_id--;
    set_address(q, "203.0.114.200");
    assert_int_equal(burst(q, 1, 0, AFF_REASON_ADDRESS_RATE), 0);

    q->conf.address_rate = 0;
    q->conf.link_rate = 600000;
    q->conf.link_burst = 0;
    assert_int_equal(burst(q, 5, 0, AFF_REASON_LINK_RATE), 4);
    ngx_current_msec += 1;
    assert_int_equal(burst(q, 50, 1, AFF_REASON_LINK_RATE), 0);
    free_request(q);
}

/* The clock's 40 bits wrap without anybody's being taken for a guest of 49 days ago. */
static void
clock_wraps(void **state)
{
    struct request *q = new_request();
    ngx_msec_t wrap = (ngx_msec_t) 1 << (NGX_HTTP_AFFILIATE_TIME_BITS - 8);

    (void) state;
    ngx_current_msec = wrap - 30000;
    judge(q);
    assert_int_equal(q->click.reasons, 0);
    ngx_current_msec = wrap + 29999;
    judge(q);
    assert_int_equal(q->click.reasons, AFF_REASON_REPEATED);
    ngx_current_msec = wrap + 30001;
    judge(q);
    assert_int_equal(q->click.reasons, 0);

    for (unsigned i = 1; i < 40; i++) {
        ngx_current_msec += wrap / 20;
        q->click.link_id = 7000 + i;
        judge(q);
        q->click.link_id = 70;
        judge(q);
        assert_int_equal(q->click.reasons, 0);
    }

    free_request(q);
}

/* More visitors than words: some are forgotten, nobody is accused who came once. */
static void
tables_overflow(void **state)
{
    struct request *q = new_request();
    unsigned again = 0;

    (void) state;
    ngx_current_msec = 1000000;
    free(q->tables);
    q->tables = ngx_http_affiliate_fraud_init(calloc(1, 4096), 4096);
    q->conf.address_rate = 0;

    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 20000; i++) {
            q->click.link_id = i;
            judge(q);
            if (round == 0) {
                assert_int_equal(q->click.reasons, 0);
            }
            again += q->click.reasons != 0;
        }
    }

    assert_true(again < 20000);

    /* Just seen is still known. */
    judge(q);
    assert_int_equal(q->click.reasons, AFF_REASON_REPEATED);
    free_request(q);
}

#define THREADS 4
#define ROUNDS  50000

struct hammer {
    ngx_http_affiliate_fraud_tables_t *tables;
    unsigned first, over;
};

static void *
hammer(void *data)
{
    struct hammer *h = data;

    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t hash = aff_siphash(h->tables->key, &i, sizeof(i));

        h->first +=
            !ngx_http_affiliate_fraud_repeated(h->tables, &h->tables->visitors, hash, 60000);
        h->over += ngx_http_affiliate_fraud_rate(h->tables, &h->tables->links, 42, 60, 9999);
    }

    return NULL;
}

/* Threads for workers: every visitor is new once, every click is counted. */
static void
workers_share(void **state)
{
    struct request *q = new_request();
    struct hammer hammers[THREADS] = {{0}};
    pthread_t threads[THREADS];
    unsigned first = 0;
    unsigned over = 0;

    (void) state;
    free(q->tables);
    q->tables = ngx_http_affiliate_fraud_init(calloc(1, 16 << 20), 16 << 20);

    for (unsigned i = 0; i < THREADS; i++) {
        hammers[i].tables = q->tables;
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, &hammers[i]), 0);
    }

    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        first += hammers[i].first;
        over += hammers[i].over;
    }

    /* A compare-and-swap lost three times running is given up in the visitor's favour. */
    assert_in_range(first, ROUNDS, ROUNDS + ROUNDS / 50);
    assert_in_range(over, (THREADS * ROUNDS - 10000) / 2, THREADS * ROUNDS - 10000);
    free_request(q);
}

/* ---- directives ---- */

static char *
directive(char *(*setter)(ngx_conf_t *, ngx_command_t *, void *),
    ngx_http_affiliate_fraud_conf_t *conf, size_t offset, const char *a, const char *b)
{
    ngx_str_t args[3] = {ngx_string("directive"), {strlen(a), (u_char *) a}, {0, NULL}};
    ngx_array_t array = {.elts = args, .nelts = b == NULL ? 2 : 3};
    ngx_conf_t cf = {.args = &array};
    ngx_command_t cmd = {.offset = offset};

    if (b != NULL) {
        args[2] = (ngx_str_t){strlen(b), (u_char *) b};
    }

    return setter(&cf, &cmd, conf);
}

static char *
rate(ngx_http_affiliate_fraud_conf_t *conf, const char *a, const char *b)
{
    ngx_http_affiliate_fraud_unset(conf);
    return directive(ngx_http_affiliate_rate_directive, conf,
        offsetof(ngx_http_affiliate_fraud_conf_t, link_rate), a, b);
}

static void
rate_directive(void **state)
{
    static const char *const wrong[][2] = {
        {"rate=", NULL},
        {"rate=r/s", NULL},
        {"rate=0r/s", NULL},
        {"rate=10", NULL},
        {"rate=10r/h", NULL},
        {"rate=-1r/s", NULL},
        {"rate=10001r/s", NULL},
        {"burst=5", NULL},
        {"rate=1r/s", "burst=x"},
        {"rate=1r/s", "rate=2r/s"},
        {"rate=1r/s", "nodelay"},
        {"on", NULL},
        {"rate=1r/s", "burst=1000001"},
        {"rate=1r/s", "off"},
    };
    ngx_http_affiliate_fraud_conf_t conf;
    ngx_http_affiliate_fraud_conf_t child;

    (void) state;
    assert_null(rate(&conf, "rate=10r/s", "burst=7"));
    assert_int_equal(conf.link_rate, 600);
    assert_int_equal(conf.link_burst, 7);
    assert_null(rate(&conf, "burst=0", "rate=90r/m"));
    assert_int_equal(conf.link_rate, 90);
    assert_int_equal(conf.link_burst, 0);
    assert_null(rate(&conf, "rate=90r/m", NULL));
    assert_int_equal(conf.link_burst, 90);
    assert_string_equal(directive(ngx_http_affiliate_rate_directive, &conf,
                            offsetof(ngx_http_affiliate_fraud_conf_t, link_rate), "off", NULL),
        "is duplicate");

    ngx_http_affiliate_fraud_unset(&child);
    ngx_http_affiliate_fraud_merge(&conf, &child);
    assert_int_equal(child.link_rate, 90);
    assert_int_equal(child.address_rate, 600);
    assert_int_equal(child.address_burst, 600);
    assert_int_equal(child.duplicate_window, 60000);

    assert_null(rate(&conf, "off", NULL));
    assert_int_equal(conf.link_rate, 0);

    for (unsigned i = 0; i < COUNT(wrong); i++) {
        conf_errors = 0;
        if (rate(&conf, wrong[i][0], wrong[i][1]) != NGX_CONF_ERROR || conf_errors != 1) {
            fail_msg("%s %s passes", wrong[i][0], wrong[i][1] == NULL ? "" : wrong[i][1]);
        }
    }
}

static char *
signal_of(struct request *q, const char *a, const char *b)
{
    return directive(ngx_http_affiliate_signal_directive, &q->conf,
        offsetof(ngx_http_affiliate_fraud_conf_t, signals), a, b);
}

static void
drop_signals(struct request *q)
{
    free(q->conf.signals->elts);
    free(q->conf.signals);
    q->conf.signals = NULL;
}

static void
signals(void **state)
{
    struct request *q = new_request();
    char longest[100];

    (void) state;
    assert_null(signal_of(q, "proxy", "tor exit;\"1\"\n"));
    assert_null(signal_of(q, "unset", ""));
    assert_null(signal_of(q, "zero", "0"));
    assert_null(signal_of(q, "broken", "$fail"));
    judge(q);
    assert_int_equal(q->click.verdict, AFF_VERDICT_SUSPECT);
    assert_int_equal(q->click.reasons, AFF_REASON_SIGNAL);
    assert_slice(q->click.signals, "proxy=tor_exit__1__");
    drop_signals(q);

    assert_null(signal_of(q, "duplicate", "1"));
    judge(q);
    assert_int_equal(q->click.verdict, AFF_VERDICT_DUPLICATE);
    assert_null(signal_of(q, "prefetch", "00"));
    judge(q);
    assert_int_equal(q->click.verdict, AFF_VERDICT_PREFETCH);
    assert_null(signal_of(q, "bot", "asn"));
    assert_null(signal_of(q, "valid", "1"));
    judge(q);
    assert_int_equal(q->click.verdict, AFF_VERDICT_BOT);
    assert_slice(q->click.signals, "duplicate=1;prefetch=00;bot=asn;valid=1");
    assert_string_equal(signal_of(q, "off", NULL), "is duplicate");

    pool_empty = true;
    judge(q);
    assert_int_equal(q->click.verdict, AFF_VERDICT_BOT);
    assert_int_equal(q->click.signals.len, 0);
    pool_empty = false;
    drop_signals(q);

    memset(longest, 'v', sizeof(longest));
    longest[99] = '\0';
    assert_null(signal_of(q, "abcdefghijklmnopqrstuvwxyz_01234", longest));
    assert_null(signal_of(q, "abcdefghijklmnopqrstuvwxyz_01234", longest));
    assert_null(signal_of(q, "abcdefghijklmnopqrstuvwxyz_01234", longest));
    assert_null(signal_of(q, "bot", longest));
    judge(q);
    assert_int_equal(q->click.signals.len, AFF_SIGNALS_MAX);
    assert_int_equal(q->click.verdict, AFF_VERDICT_BOT);
    drop_signals(q);

    assert_null(signal_of(q, "off", NULL));
    assert_int_equal(q->conf.signals->nelts, 0);
    judge(q);
    drop_signals(q);

    assert_non_null(signal_of(q, "on", NULL));
    assert_non_null(signal_of(q, "A", "1"));
    drop_signals(q);
    assert_non_null(signal_of(q, "", "1"));
    drop_signals(q);
    assert_non_null(signal_of(q, "abcdefghijklmnopqrstuvwxyz_012345", "1"));
    drop_signals(q);
    free_request(q);
}

static void
sizes(void **state)
{
    (void) state;
    assert_int_equal(ngx_http_affiliate_fraud_size(0), 4096);
    assert_int_equal(ngx_http_affiliate_fraud_size(1 << 20), 1 << 17);
    assert_int_equal(ngx_http_affiliate_fraud_size(10 << 20), 1 << 20);
    assert_int_equal(ngx_http_affiliate_fraud_size((size_t) 1 << 40), 64 << 20);

    for (size_t size = 4096; size <= 1 << 20; size *= 2) {
        void *memory = calloc(1, size);
        ngx_http_affiliate_fraud_tables_t *t = ngx_http_affiliate_fraud_init(memory, size);

        assert_int_equal(t->addresses.first, 1);
        assert_int_equal(t->links.first, 1 + t->addresses.count);
        assert_int_equal(t->visitors.first, t->links.first + t->links.count);
        assert_int_equal((size_t) (t->visitors.first + t->visitors.count) * 64, size);
        free(memory);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_person),
        cmocka_unit_test(declared),
        cmocka_unit_test(together),
        cmocka_unit_test(strings_are_cut),
        cmocka_unit_test(visitors),
        cmocka_unit_test(duplicates),
        cmocka_unit_test(rates),
        cmocka_unit_test(clock_wraps),
        cmocka_unit_test(tables_overflow),
        cmocka_unit_test(workers_share),
        cmocka_unit_test(rate_directive),
        cmocka_unit_test(signals),
        cmocka_unit_test(sizes),
    };

    cached_time.sec = 1764000000;
    return RUN(tests);
}
