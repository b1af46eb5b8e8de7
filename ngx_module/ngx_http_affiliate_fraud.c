
/*
 * Fraud signals at click time.
 *
 * Everything here costs a bounded number of memory accesses, whatever a client
 * sends, and nothing here refuses anybody: a reason labels the click, and the
 * books decide what a label is worth.
 *
 * What is counted is counted in three tables of the shared zone: clicks per
 * address prefix and merchant, clicks per link, and visitors seen on a link.
 * A table is an array of sets, a set is a cache line of eight 64-bit words, a
 * word is 24 bits of a keyed hash and 40 bits of time: until when the word says
 * anything.  For a rate that time is GCRA's theoretical arrival time (ITU-T
 * I.371), for a visitor the end of the window.  So a word that lies in the past
 * is as good as an empty one, a full set gives up the word that ends first, a
 * click is one compare-and-swap, and no lock is held by a worker that dies.
 * What is lost that way is lost in the visitor's favour.
 */


#include "ngx_http_affiliate_fraud.h"

#include "../protocol/bytes.h"
#include "../protocol/siphash.h"

#include <openssl/rand.h>


/*
 * A prefix is shared: carriers put thousands of telephones behind one /24, and
 * a popular post sends many of them at once.  Ten clicks a second for a
 * merchant from one such prefix, for more than a minute, is beyond that.
 */
#define NGX_HTTP_AFFILIATE_ADDRESS_RATE   600
#define NGX_HTTP_AFFILIATE_ADDRESS_BURST  600

/*
 * Long enough for double taps, reloads and the way back; short, because behind
 * one carrier's address two people with one model of telephone look the same.
 */
#define NGX_HTTP_AFFILIATE_WINDOW         60000

#define NGX_HTTP_AFFILIATE_RATE_MAX       600000      /* a minute */
#define NGX_HTTP_AFFILIATE_BURST_MAX      1000000

#define NGX_HTTP_AFFILIATE_TABLES_SHARE   8           /* of the zone: 1/8 */
#define NGX_HTTP_AFFILIATE_TABLES_MIN     4096
#define NGX_HTTP_AFFILIATE_TABLES_MAX     67108864    /* 64m */

#define NGX_HTTP_AFFILIATE_SET_WORDS      8
#define NGX_HTTP_AFFILIATE_SET_BYTES      64

/* A word's time: units of 1/256 ms, 49 days until they wrap. */
#define NGX_HTTP_AFFILIATE_TIME_BITS      40
#define NGX_HTTP_AFFILIATE_TIME_MASK                                          \
    (((uint64_t) 1 << NGX_HTTP_AFFILIATE_TIME_BITS) - 1)
#define NGX_HTTP_AFFILIATE_TIME_SHIFT     8

/* No word reaches further: 12 days; what seems to is older than the wrap. */
#define NGX_HTTP_AFFILIATE_TIME_AHEAD                                         \
    ((uint64_t) 1 << (NGX_HTTP_AFFILIATE_TIME_BITS - 2))

#define NGX_HTTP_AFFILIATE_TRIES          3

#define NGX_HTTP_AFFILIATE_AGENT_BYTES    1024        /* looked at */
#define NGX_HTTP_AFFILIATE_MEMO           4096        /* a power of two */

#define NGX_HTTP_AFFILIATE_SIGNAL_NAME    32
#define NGX_HTTP_AFFILIATE_SIGNAL_VALUE   64

#define NGX_HTTP_AFFILIATE_DAY            86400


/* Sets first .. first + count - 1 behind the beginning of the tables. */
typedef struct {
    uint32_t                            first;
    uint32_t                            count;
} ngx_http_affiliate_table_t;


/* Takes the place of the first set. */
struct ngx_http_affiliate_fraud_tables_s {
    u_char                              key[16];
    ngx_http_affiliate_table_t          addresses;
    ngx_http_affiliate_table_t          links;
    ngx_http_affiliate_table_t          visitors;
};


/* An address in the form that is hashed; never leaves this file. */
typedef struct {
    u_char                              bytes[16];
    u_char                              family;   /* 4, 6, or 0: none */
} ngx_http_affiliate_address_t;


typedef enum {
    NGX_HTTP_AFFILIATE_FETCH_UNSAID = 0,
    NGX_HTTP_AFFILIATE_FETCH_EMPTY,      /* Sec-Fetch-Dest of fetch() */
    NGX_HTTP_AFFILIATE_FETCH_RESOURCE,   /* of an image, a script, ... */
    NGX_HTTP_AFFILIATE_FETCH_NAVIGATION
} ngx_http_affiliate_fetch_e;


static void ngx_http_affiliate_fraud_address(ngx_http_request_t *r,
    ngx_http_affiliate_address_t *addr, struct aff_click *click);
static const u_char *ngx_http_affiliate_fraud_day_key(
    const struct aff_keyring *keyring);
static uint32_t ngx_http_affiliate_fraud_agent(ngx_http_request_t *r,
    const u_char *key, uint64_t *hash, struct aff_click *click);
static uint64_t ngx_http_affiliate_fraud_visitor(const u_char *key,
    uint64_t merchant_id, ngx_http_affiliate_address_t *addr, uint64_t agent);
static void ngx_http_affiliate_fraud_referrer(ngx_http_request_t *r,
    struct aff_click *click);

static uint32_t ngx_http_affiliate_fraud_headers(ngx_http_request_t *r);
static ngx_uint_t ngx_http_affiliate_fraud_ahead(ngx_str_t *value);
static ngx_uint_t ngx_http_affiliate_fraud_destination(ngx_str_t *value);
static ngx_uint_t ngx_http_affiliate_fraud_not_navigate(ngx_str_t *value);

static ngx_uint_t ngx_http_affiliate_fraud_signals(ngx_http_request_t *r,
    ngx_http_affiliate_fraud_conf_t *conf, struct aff_click *click);
static u_char *ngx_http_affiliate_fraud_signal(u_char *p, u_char *last,
    ngx_str_t *name, ngx_str_t *value);

static uint32_t ngx_http_affiliate_fraud_count(
    ngx_http_affiliate_fraud_conf_t *conf,
    ngx_http_affiliate_fraud_tables_t *tables, struct aff_click *click);
static uint64_t ngx_http_affiliate_fraud_mix(uint64_t visitor,
    uint64_t link_id);
static ngx_uint_t ngx_http_affiliate_fraud_rate(
    ngx_http_affiliate_fraud_tables_t *tables,
    ngx_http_affiliate_table_t *table, uint64_t hash, ngx_uint_t rate,
    ngx_uint_t burst);
static ngx_uint_t ngx_http_affiliate_fraud_repeated(
    ngx_http_affiliate_fraud_tables_t *tables,
    ngx_http_affiliate_table_t *table, uint64_t hash, ngx_msec_t window);
static uint64_t *ngx_http_affiliate_fraud_find(
    ngx_http_affiliate_fraud_tables_t *tables,
    ngx_http_affiliate_table_t *table, uint64_t hash, uint64_t now,
    uint64_t *seen);
static ngx_uint_t ngx_http_affiliate_fraud_verdict(uint32_t reasons);

static ngx_int_t ngx_http_affiliate_fraud_parse_rate(ngx_str_t *value,
    ngx_uint_t *rate);


/* In the order of enum aff_reason; AFF_REASON_SIGNAL has the signal's own. */
static const u_char  ngx_http_affiliate_fraud_verdicts[AFF_REASONS] = {
    AFF_VERDICT_BOT,         /* bot_agent */
    AFF_VERDICT_PREVIEW,     /* preview_agent */
    AFF_VERDICT_PREFETCH,    /* head */
    AFF_VERDICT_PREFETCH,    /* prefetch */
    AFF_VERDICT_BOT,         /* empty_agent: every browser has one */
    AFF_VERDICT_PREFETCH,    /* not_navigation */
    AFF_VERDICT_SUSPECT,     /* address_rate */
    AFF_VERDICT_SUSPECT,     /* link_rate */
    AFF_VERDICT_DUPLICATE,   /* repeated */
    AFF_VERDICT_VALID        /* signal */
};


/* Sec-Fetch-Dest of what no person can have tapped. */
static ngx_str_t  ngx_http_affiliate_fraud_resources[] = {
    ngx_string("image"),
    ngx_string("script"),
    ngx_string("style"),
    ngx_string("font"),
    ngx_string("audio"),
    ngx_string("video"),
    ngx_string("track"),
    ngx_string("embed"),
    ngx_string("object"),
    ngx_string("worker"),
    ngx_string("sharedworker"),
    ngx_string("serviceworker"),
    ngx_string("audioworklet"),
    ngx_string("paintworklet"),
    ngx_string("manifest"),
    ngx_string("report"),
    ngx_string("json"),
    ngx_string("xslt"),
    ngx_string("webidentity"),
    ngx_null_string
};


static ngx_str_t  ngx_http_affiliate_fraud_modes[] = {
    ngx_string("cors"),
    ngx_string("no-cors"),
    ngx_string("same-origin"),
    ngx_string("websocket"),
    ngx_null_string
};


/* Purpose and its kin; "instant" is said by Facebook's application. */
static ngx_str_t  ngx_http_affiliate_fraud_purposes[] = {
    ngx_string("prefetch"),
    ngx_string("prerender"),
    ngx_string("preview"),
    ngx_string("instant"),
    ngx_null_string
};


/*
 * The day's visitor key of this worker.  "made_of" tells whether the keyring is
 * still the one that it was derived from: a reload brings another.
 */
static struct {
    uint32_t                            day;
    ngx_uint_t                          valid;
    u_char                              made_of[AFF_MAC_KEY_BYTES];
    u_char                              key[AFF_MAC_KEY_BYTES];
} ngx_http_affiliate_fraud_day;


/* Classes of agents this worker has seen: 62 bits of keyed hash, class + 1. */
static uint64_t  ngx_http_affiliate_fraud_memo[NGX_HTTP_AFFILIATE_MEMO];


void
ngx_http_affiliate_fraud_judge(ngx_http_request_t *r,
    ngx_http_affiliate_fraud_conf_t *conf,
    ngx_http_affiliate_fraud_tables_t *tables,
    const struct aff_keyring *keyring, struct aff_click *click)
{
    uint32_t                       reasons;
    uint64_t                       agent;
    ngx_uint_t                     verdict, given;
    const u_char                  *key;
    ngx_http_affiliate_address_t   addr;

    key = ngx_http_affiliate_fraud_day_key(keyring);

    ngx_http_affiliate_fraud_address(r, &addr, click);
    ngx_http_affiliate_fraud_referrer(r, click);

    reasons = ngx_http_affiliate_fraud_agent(r, key, &agent, click);
    reasons |= ngx_http_affiliate_fraud_headers(r);

    if (r->method == NGX_HTTP_HEAD) {
        reasons |= AFF_REASON_HEAD;
    }

    /* without an address all visitors would look like one */

    click->visitor = 0;

    if (key != NULL && addr.family != 0) {
        click->visitor = ngx_http_affiliate_fraud_visitor(key,
                                             click->merchant_id, &addr, agent);
    }

    given = ngx_http_affiliate_fraud_signals(r, conf, click);

    if (given != AFF_VERDICT_VALID) {
        reasons |= AFF_REASON_SIGNAL;
    }

    verdict = ngx_max(ngx_http_affiliate_fraud_verdict(reasons), given);

    /*
     * What is no person's click is not counted: the person who follows a
     * prefetch must not be taken for its duplicate.
     */

    if (verdict < AFF_VERDICT_PREFETCH && tables != NULL) {
        reasons |= ngx_http_affiliate_fraud_count(conf, tables, click);
        verdict = ngx_max(ngx_http_affiliate_fraud_verdict(reasons), given);
    }

    click->reasons = reasons;
    click->verdict = (uint8_t) verdict;
}


static ngx_uint_t
ngx_http_affiliate_fraud_verdict(uint32_t reasons)
{
    ngx_uint_t  bit, verdict;

    verdict = AFF_VERDICT_VALID;

    for ( /* void */ ; reasons != 0; reasons &= reasons - 1) {
        bit = __builtin_ctz(reasons);
        verdict = ngx_max(verdict, ngx_http_affiliate_fraud_verdicts[bit]);
    }

    return verdict;
}


/* The client's address as realip left it, and what of it is recorded. */

static void
ngx_http_affiliate_fraud_address(ngx_http_request_t *r,
    ngx_http_affiliate_address_t *addr, struct aff_click *click)
{
    struct sockaddr      *sa;
    struct sockaddr_in   *sin;
#if (NGX_HAVE_INET6)
    struct sockaddr_in6  *sin6;
#endif

    ngx_memzero(addr, sizeof(ngx_http_affiliate_address_t));
    ngx_memzero(click->prefix, sizeof(click->prefix));

    sa = r->connection->sockaddr;

    switch (sa->sa_family) {

    case AF_INET:
        sin = (struct sockaddr_in *) sa;

        addr->family = 4;
        ngx_memcpy(addr->bytes, &sin->sin_addr, 4);
        break;

#if (NGX_HAVE_INET6)
    case AF_INET6:
        sin6 = (struct sockaddr_in6 *) sa;

        if (IN6_IS_ADDR_V4MAPPED(&sin6->sin6_addr)) {
            addr->family = 4;
            ngx_memcpy(addr->bytes, &sin6->sin6_addr.s6_addr[12], 4);
            break;
        }

        addr->family = 6;
        ngx_memcpy(addr->bytes, &sin6->sin6_addr, 16);
        break;
#endif

    default:
        break;
    }

    click->address_family = addr->family;

    if (addr->family == 4) {
        ngx_memcpy(click->prefix, addr->bytes, 3);

    } else if (addr->family == 6) {
        ngx_memcpy(click->prefix, addr->bytes, 6);
    }
}


/* Today's visitor key; NULL where there is no keyring, or OpenSSL fails. */

static const u_char *
ngx_http_affiliate_fraud_day_key(const struct aff_keyring *keyring)
{
    uint32_t  day;

    if (keyring == NULL || keyring->count == 0) {
        return NULL;
    }

    day = (uint32_t) (ngx_time() / NGX_HTTP_AFFILIATE_DAY);

    if (ngx_http_affiliate_fraud_day.valid
        && ngx_http_affiliate_fraud_day.day == day
        && ngx_memcmp(ngx_http_affiliate_fraud_day.made_of,
                      keyring->keys[0].click_id, AFF_MAC_KEY_BYTES)
           == 0)
    {
        return ngx_http_affiliate_fraud_day.key;
    }

    ngx_http_affiliate_fraud_day.valid = 0;

    if (!aff_visitor_key(keyring, day, ngx_http_affiliate_fraud_day.key)) {
        return NULL;
    }

    ngx_memcpy(ngx_http_affiliate_fraud_day.made_of,
               keyring->keys[0].click_id, AFF_MAC_KEY_BYTES);
    ngx_http_affiliate_fraud_day.day = day;
    ngx_http_affiliate_fraud_day.valid = 1;

    return ngx_http_affiliate_fraud_day.key;
}


/* The agent's reasons, its hash under the day's key, and its record. */

static uint32_t
ngx_http_affiliate_fraud_agent(ngx_http_request_t *r, const u_char *key,
    uint64_t *hash, struct aff_click *click)
{
    size_t       len;
    u_char      *agent;
    uint64_t    *memo;
    ngx_uint_t   class;

    *hash = 0;
    click->user_agent = aff_slice(NULL, 0);

    if (r->headers_in.user_agent == NULL
        || r->headers_in.user_agent->value.len == 0)
    {
        return AFF_REASON_EMPTY_AGENT;
    }

    agent = r->headers_in.user_agent->value.data;
    len = r->headers_in.user_agent->value.len;

    click->user_agent = aff_slice(agent, ngx_min(len, AFF_USER_AGENT_MAX));

    if (len == 1 && *agent == '-') {
        return AFF_REASON_EMPTY_AGENT;
    }

    len = ngx_min(len, NGX_HTTP_AFFILIATE_AGENT_BYTES);

    if (key == NULL) {
        class = ngx_http_affiliate_agent_classify(agent, len);

    } else {
        *hash = aff_siphash13(key, agent, len);
        memo = &ngx_http_affiliate_fraud_memo[(*hash >> 32)
                                              & (NGX_HTTP_AFFILIATE_MEMO - 1)];

        if (((*memo ^ *hash) & ~(uint64_t) 3) == 0 && (*memo & 3) != 0) {
            class = (*memo & 3) - 1;

        } else {
            class = ngx_http_affiliate_agent_classify(agent, len);
            *memo = (*hash & ~(uint64_t) 3) | (class + 1);
        }
    }

    switch (class) {

    case NGX_HTTP_AFFILIATE_AGENT_BOT:
        return AFF_REASON_BOT_AGENT;

    case NGX_HTTP_AFFILIATE_AGENT_PREVIEW:
        return AFF_REASON_PREVIEW_AGENT;

    default:
        return 0;
    }
}


static uint64_t
ngx_http_affiliate_fraud_visitor(const u_char *key, uint64_t merchant_id,
    ngx_http_affiliate_address_t *addr, uint64_t agent)
{
    u_char  text[33];

    aff_store_le64(text, merchant_id);
    aff_store_le64(text + 8, agent);
    ngx_memcpy(text + 16, addr->bytes, 16);
    text[32] = addr->family;

    return aff_siphash(key, text, sizeof(text));
}


/* Scheme, host and path; queries and names before an "@" are private. */

static void
ngx_http_affiliate_fraud_referrer(ngx_http_request_t *r,
    struct aff_click *click)
{
    size_t   len;
    u_char  *p, *data;

    click->referrer = aff_slice(NULL, 0);

    if (r->headers_in.referer == NULL) {
        return;
    }

    data = r->headers_in.referer->value.data;
    len = ngx_min(r->headers_in.referer->value.len, AFF_REFERRER_MAX);

    p = memchr(data, '?', len);
    if (p != NULL) {
        len = p - data;
    }

    p = memchr(data, '#', len);
    if (p != NULL) {
        len = p - data;
    }

    if (memchr(data, '@', len) == NULL) {
        click->referrer = aff_slice(data, len);
    }
}


/* Reasons of the headers that nginx does not look up itself, in one pass. */

static uint32_t
ngx_http_affiliate_fraud_headers(ngx_http_request_t *r)
{
    u_char           *name;
    uint32_t          reasons;
    ngx_uint_t        i, dest, other, ahead;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    reasons = 0;
    dest = NGX_HTTP_AFFILIATE_FETCH_UNSAID;
    other = 0;

    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                break;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        name = h[i].lowcase_key;

        switch (h[i].key.len) {

        case 5:
            ahead = (ngx_memcmp(name, "x-moz", 5) == 0);
            break;

        case 7:
            ahead = (name[0] == 'p' && ngx_memcmp(name, "purpose", 7) == 0);
            break;

        case 9:
            ahead = (name[0] == 'x' && ngx_memcmp(name, "x-purpose", 9) == 0);
            break;

        case 11:
            ahead = (name[0] == 's'
                     && ngx_memcmp(name, "sec-purpose", 11) == 0);
            break;

        case 14:
            if (name[0] != 's' || ngx_memcmp(name, "sec-fetch-", 10) != 0) {
                continue;
            }

            if (ngx_memcmp(name + 10, "dest", 4) == 0) {
                dest = ngx_http_affiliate_fraud_destination(&h[i].value);

            } else if (ngx_memcmp(name + 10, "mode", 4) == 0) {
                other = ngx_http_affiliate_fraud_not_navigate(&h[i].value);
            }

            continue;

        default:
            continue;
        }

        if (ahead && ngx_http_affiliate_fraud_ahead(&h[i].value)) {
            reasons |= AFF_REASON_PREFETCH;
        }
    }

    /* browsers send both: half of it is a mistake, and proves nothing */

    if (dest == NGX_HTTP_AFFILIATE_FETCH_RESOURCE
        || (dest == NGX_HTTP_AFFILIATE_FETCH_EMPTY && other))
    {
        reasons |= AFF_REASON_NOT_NAVIGATION;
    }

    return reasons;
}


/* Whether a Purpose says that nobody looks at the page yet. */

static ngx_uint_t
ngx_http_affiliate_fraud_ahead(ngx_str_t *value)
{
    size_t      len;
    ngx_str_t  *purpose;

    /* "prefetch;prerender;anonymous-client-ip" is the longest known */

    len = ngx_min(value->len, 64);

    for (purpose = ngx_http_affiliate_fraud_purposes;
         purpose->len != 0;
         purpose++)
    {
        if (ngx_strlcasestrn(value->data, value->data + len, purpose->data,
                             purpose->len - 1)
            != NULL)
        {
            return 1;
        }
    }

    return 0;
}


static ngx_uint_t
ngx_http_affiliate_fraud_destination(ngx_str_t *value)
{
    ngx_str_t  *name;

    if (value->len == 8 && ngx_memcmp(value->data, "document", 8) == 0) {
        return NGX_HTTP_AFFILIATE_FETCH_NAVIGATION;
    }

    if (value->len == 5 && ngx_memcmp(value->data, "empty", 5) == 0) {
        return NGX_HTTP_AFFILIATE_FETCH_EMPTY;
    }

    for (name = ngx_http_affiliate_fraud_resources; name->len != 0; name++) {
        if (value->len == name->len
            && ngx_memcmp(value->data, name->data, name->len) == 0)
        {
            return NGX_HTTP_AFFILIATE_FETCH_RESOURCE;
        }
    }

    /* iframe, frame, and what is not invented yet */

    return NGX_HTTP_AFFILIATE_FETCH_UNSAID;
}


/* Whether a Sec-Fetch-Mode is one of a program's, not of a navigation. */

static ngx_uint_t
ngx_http_affiliate_fraud_not_navigate(ngx_str_t *value)
{
    ngx_str_t  *name;

    if (value->len == 8 && ngx_memcmp(value->data, "navigate", 8) == 0) {
        return 0;
    }

    for (name = ngx_http_affiliate_fraud_modes; name->len != 0; name++) {
        if (value->len == name->len
            && ngx_memcmp(value->data, name->data, name->len) == 0)
        {
            return 1;
        }
    }

    return 0;
}


/* The strongest verdict of the signals that are on, and their record. */

static ngx_uint_t
ngx_http_affiliate_fraud_signals(ngx_http_request_t *r,
    ngx_http_affiliate_fraud_conf_t *conf, struct aff_click *click)
{
    u_char                       *p, *text;
    ngx_str_t                     value;
    ngx_uint_t                    i, verdict;
    ngx_http_affiliate_signal_t  *signal;

    click->signals = aff_slice(NULL, 0);
    verdict = AFF_VERDICT_VALID;

    if (conf->signals == NULL) {
        return verdict;
    }

    signal = conf->signals->elts;
    text = NULL;
    p = NULL;

    for (i = 0; i < conf->signals->nelts; i++) {

        if (ngx_http_complex_value(r, &signal[i].value, &value) != NGX_OK) {
            continue;
        }

        if (value.len == 0 || (value.len == 1 && value.data[0] == '0')) {
            continue;
        }

        verdict = ngx_max(verdict, signal[i].verdict);

        if (text == NULL) {
            text = ngx_pnalloc(r->pool, AFF_SIGNALS_MAX);
            if (text == NULL) {
                continue;
            }

            p = text;
        }

        p = ngx_http_affiliate_fraud_signal(p, text + AFF_SIGNALS_MAX,
                                            &signal[i].name, &value);
    }

    if (text != NULL) {
        click->signals = aff_slice(text, p - text);
    }

    return verdict;
}


/* Appends ";name=value" at p, if there is room for the name and the "=". */

static u_char *
ngx_http_affiliate_fraud_signal(u_char *p, u_char *last, ngx_str_t *name,
    ngx_str_t *value)
{
    u_char  c;
    size_t  i, len;

    /* the ";" is there in front of all but the first, which has more room */

    if ((size_t) (last - p) < name->len + 2) {
        return p;
    }

    if ((size_t) (last - p) < AFF_SIGNALS_MAX) {
        *p++ = ';';
    }

    p = ngx_cpymem(p, name->data, name->len);
    *p++ = '=';

    len = ngx_min(value->len, NGX_HTTP_AFFILIATE_SIGNAL_VALUE);
    len = ngx_min(len, (size_t) (last - p));

    for (i = 0; i < len; i++) {
        c = value->data[i];

        if (c <= ' ' || c >= 0x7f || c == ';' || c == '=' || c == '"'
            || c == '\\')
        {
            c = '_';
        }

        *p++ = c;
    }

    return p;
}


/* Counts a person's click, and tells what the tables hold against it. */

static uint32_t
ngx_http_affiliate_fraud_count(ngx_http_affiliate_fraud_conf_t *conf,
    ngx_http_affiliate_fraud_tables_t *tables, struct aff_click *click)
{
    u_char    text[16];
    uint32_t  reasons;

    reasons = 0;

    if (conf->address_rate != 0 && click->address_family != 0) {
        aff_store_le64(text, click->merchant_id);
        ngx_memcpy(text + 8, click->prefix, 6);
        text[14] = click->address_family;
        text[15] = click->livemode;

        if (ngx_http_affiliate_fraud_rate(tables, &tables->addresses,
                                  aff_siphash13(tables->key, text, sizeof(text)),
                                  conf->address_rate, conf->address_burst))
        {
            reasons |= AFF_REASON_ADDRESS_RATE;
        }
    }

    if (conf->link_rate != 0) {
        aff_store_le64(text, click->link_id);

        if (ngx_http_affiliate_fraud_rate(tables, &tables->links,
                                          aff_siphash13(tables->key, text, 8),
                                          conf->link_rate, conf->link_burst))
        {
            reasons |= AFF_REASON_LINK_RATE;
        }
    }

    if (conf->duplicate_window != 0 && click->visitor != 0
        && ngx_http_affiliate_fraud_repeated(tables, &tables->visitors,
                            ngx_http_affiliate_fraud_mix(click->visitor,
                                                         click->link_id),
                            conf->duplicate_window))
    {
        reasons |= AFF_REASON_REPEATED;
    }

    return reasons;
}


/*
 * Spreads a visitor's links over the table.  The visitor is a keyed hash that
 * nobody outside knows, so this needs no key of its own.  (The finalizer of
 * Vigna's splitmix64.)
 */

static uint64_t
ngx_http_affiliate_fraud_mix(uint64_t visitor, uint64_t link_id)
{
    uint64_t  x;

    x = visitor + link_id * 0x9e3779b97f4a7c15;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;

    return x ^ (x >> 31);
}


#define ngx_http_affiliate_fraud_now()                                        \
    (((uint64_t) ngx_current_msec << NGX_HTTP_AFFILIATE_TIME_SHIFT)           \
     & NGX_HTTP_AFFILIATE_TIME_MASK)

/* Never 0, so that an empty word is nobody's. */
#define ngx_http_affiliate_fraud_tag(hash)                                    \
    (((hash) >> NGX_HTTP_AFFILIATE_TIME_BITS) | 1)

#define ngx_http_affiliate_fraud_word(hash, time)                             \
    (ngx_http_affiliate_fraud_tag(hash) << NGX_HTTP_AFFILIATE_TIME_BITS       \
     | ((time) & NGX_HTTP_AFFILIATE_TIME_MASK))


/* How far a word's time lies ahead; 0 if it is over. */

static ngx_inline uint64_t
ngx_http_affiliate_fraud_left(uint64_t word, uint64_t now)
{
    uint64_t  left;

    left = (word - now) & NGX_HTTP_AFFILIATE_TIME_MASK;

    return left <= NGX_HTTP_AFFILIATE_TIME_AHEAD ? left : 0;
}


/*
 * Whether this click comes sooner than rate and burst allow.  Unlike a limit's,
 * the meter takes in what is too much as well, up to one click beyond the
 * burst: so all of a flood is labelled, not what a limit would have refused of
 * it, and the label goes with the flood.
 */

static ngx_uint_t
ngx_http_affiliate_fraud_rate(ngx_http_affiliate_fraud_tables_t *tables,
    ngx_http_affiliate_table_t *table, uint64_t hash, ngx_uint_t rate,
    ngx_uint_t burst)
{
    uint64_t    now, interval, depth, seen, left, *word;
    ngx_uint_t  n;

    now = ngx_http_affiliate_fraud_now();

    /* 32 bits hold both, and divide several times faster than 64 */

    interval = ((60000u << NGX_HTTP_AFFILIATE_TIME_SHIFT)
                + (uint32_t) rate / 2)
               / (uint32_t) rate;
    depth = ngx_min(interval * burst,
                    NGX_HTTP_AFFILIATE_TIME_AHEAD - interval);

    for (n = 0; n < NGX_HTTP_AFFILIATE_TRIES; n++) {

        word = ngx_http_affiliate_fraud_find(tables, table, hash, now, &seen);

        left = 0;

        if (seen >> NGX_HTTP_AFFILIATE_TIME_BITS
            == ngx_http_affiliate_fraud_tag(hash))
        {
            left = ngx_http_affiliate_fraud_left(seen, now);
            left = ngx_min(left, depth + interval);
        }

        if (__atomic_compare_exchange_n(word, &seen,
                          ngx_http_affiliate_fraud_word(hash,
                                       now + ngx_min(left, depth) + interval),
                          0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        {
            return left > depth;
        }
    }

    return 0;
}


/*
 * Whether the visitor was seen within the window.  The window begins with the
 * click that is not labelled, so that one click in a window counts.
 */

static ngx_uint_t
ngx_http_affiliate_fraud_repeated(ngx_http_affiliate_fraud_tables_t *tables,
    ngx_http_affiliate_table_t *table, uint64_t hash, ngx_msec_t window)
{
    uint64_t    now, length, seen, left, *word;
    ngx_uint_t  n;

    now = ngx_http_affiliate_fraud_now();

    length = (uint64_t) window << NGX_HTTP_AFFILIATE_TIME_SHIFT;
    length = ngx_min(length, NGX_HTTP_AFFILIATE_TIME_AHEAD);

    for (n = 0; n < NGX_HTTP_AFFILIATE_TRIES; n++) {

        word = ngx_http_affiliate_fraud_find(tables, table, hash, now, &seen);

        if (seen >> NGX_HTTP_AFFILIATE_TIME_BITS
            == ngx_http_affiliate_fraud_tag(hash))
        {
            left = ngx_http_affiliate_fraud_left(seen, now);

            if (left > 0) {
                return 1;
            }
        }

        if (__atomic_compare_exchange_n(word, &seen,
                          ngx_http_affiliate_fraud_word(hash, now + length),
                          0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        {
            return 0;
        }
    }

    return 0;
}


/* The hash's word, or else the one that ends first, and what was read of it. */

static uint64_t *
ngx_http_affiliate_fraud_find(ngx_http_affiliate_fraud_tables_t *tables,
    ngx_http_affiliate_table_t *table, uint64_t hash, uint64_t now,
    uint64_t *seen)
{
    uint64_t    word, left, least, *set, *found;
    ngx_uint_t  i, n;

    n = table->first + (((hash & 0xffffffff) * table->count) >> 32);
    set = (uint64_t *) ((u_char *) tables + n * NGX_HTTP_AFFILIATE_SET_BYTES);

    found = NULL;
    least = 0;

    for (i = 0; i < NGX_HTTP_AFFILIATE_SET_WORDS; i++) {
        word = __atomic_load_n(&set[i], __ATOMIC_RELAXED);

        if (word >> NGX_HTTP_AFFILIATE_TIME_BITS
            == ngx_http_affiliate_fraud_tag(hash))
        {
            *seen = word;
            return &set[i];
        }

        left = ngx_http_affiliate_fraud_left(word, now);

        if (found == NULL || left < least) {
            found = &set[i];
            least = left;
            *seen = word;
        }
    }

    return found;
}


size_t
ngx_http_affiliate_fraud_size(size_t zone_size)
{
    size_t  size;

    size = NGX_HTTP_AFFILIATE_TABLES_MIN;

    while (size < NGX_HTTP_AFFILIATE_TABLES_MAX
           && size * 2 <= zone_size / NGX_HTTP_AFFILIATE_TABLES_SHARE)
    {
        size *= 2;
    }

    return size;
}


ngx_http_affiliate_fraud_tables_t *
ngx_http_affiliate_fraud_init(void *mem, size_t size)
{
    size_t                              i;
    uint32_t                            sets;
    ngx_http_affiliate_fraud_tables_t  *tables;

    tables = mem;

    if (RAND_bytes(tables->key, sizeof(tables->key)) != 1) {

        /* still unknown to visitors, who could else choose their sets */

        for (i = 0; i < sizeof(tables->key); i++) {
            tables->key[i] = (u_char) (ngx_random() >> 7);
        }
    }

    /* the first set is this structure; visitors need as much as the others */

    sets = (uint32_t) (size / NGX_HTTP_AFFILIATE_SET_BYTES) - 1;

    tables->addresses.first = 1;
    tables->addresses.count = sets / 4;

    tables->links.first = tables->addresses.first + tables->addresses.count;
    tables->links.count = sets / 4;

    tables->visitors.first = tables->links.first + tables->links.count;
    tables->visitors.count = sets - 2 * (sets / 4);

    return tables;
}


char *
ngx_http_affiliate_signal_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    char  *p = conf;

    u_char                             c;
    size_t                             i;
    ngx_str_t                         *value;
    ngx_array_t                      **signals;
    ngx_http_affiliate_signal_t       *signal;
    ngx_http_compile_complex_value_t   ccv;

    signals = (ngx_array_t **) (p + cmd->offset);
    value = cf->args->elts;

    if (cf->args->nelts == 2) {

        if (ngx_strcmp(value[1].data, "off") != 0) {
            return "needs a name and a value, or \"off\"";
        }

        if (*signals != NULL) {
            return "is duplicate";
        }
    }

    if (*signals == NULL) {
        *signals = ngx_array_create(cf->pool, 4,
                                    sizeof(ngx_http_affiliate_signal_t));
        if (*signals == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    if (cf->args->nelts == 2) {
        return NGX_CONF_OK;
    }

    for (i = 0; i < value[1].len; i++) {
        c = value[1].data[i];

        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_')) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid signal name \"%V\": only a-z, 0-9 "
                               "and \"_\" are allowed", &value[1]);
            return NGX_CONF_ERROR;
        }
    }

    if (value[1].len == 0 || value[1].len > NGX_HTTP_AFFILIATE_SIGNAL_NAME) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "signal name \"%V\" must have 1 to %d characters",
                           &value[1], NGX_HTTP_AFFILIATE_SIGNAL_NAME);
        return NGX_CONF_ERROR;
    }

    signal = ngx_array_push(*signals);
    if (signal == NULL) {
        return NGX_CONF_ERROR;
    }

    signal->name = value[1];
    signal->verdict = AFF_VERDICT_SUSPECT;

    for (i = AFF_VERDICT_DUPLICATE; i < AFF_VERDICTS; i++) {
        if (ngx_strcmp(value[1].data, aff_verdict_name((unsigned) i)) == 0) {
            signal->verdict = i;
        }
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

    ccv.cf = cf;
    ccv.value = &value[2];
    ccv.complex_value = &signal->value;

    if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


char *
ngx_http_affiliate_rate_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    char  *rule, *p = conf;

    ngx_int_t    n;
    ngx_str_t   *value, s;
    ngx_uint_t   i, *rate, *burst;

    rate = (ngx_uint_t *) (p + cmd->offset);
    burst = rate + 1;

    if (*rate != NGX_CONF_UNSET_UINT) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (cf->args->nelts == 2 && ngx_strcmp(value[1].data, "off") == 0) {
        *rate = 0;
        *burst = 0;
        return NGX_CONF_OK;
    }

    for (i = 1; i < cf->args->nelts; i++) {

        rule = "is neither \"off\" alone, nor \"rate=\" or \"burst=\" given once";

        if (ngx_strncmp(value[i].data, "rate=", 5) == 0
            && *rate == NGX_CONF_UNSET_UINT)
        {
            s.data = value[i].data + 5;
            s.len = value[i].len - 5;

            if (ngx_http_affiliate_fraud_parse_rate(&s, rate) == NGX_OK) {
                continue;
            }

            rule = "must be 1r/m to 600000r/m, or 1r/s to 10000r/s";

        } else if (ngx_strncmp(value[i].data, "burst=", 6) == 0
                   && *burst == NGX_CONF_UNSET_UINT)
        {
            n = ngx_atoi(value[i].data + 6, value[i].len - 6);

            if (n >= 0 && n <= NGX_HTTP_AFFILIATE_BURST_MAX) {
                *burst = n;
                continue;
            }

            rule = "must be 0 to 1000000";
        }

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" %s", &value[i],
                           rule);
        return NGX_CONF_ERROR;
    }

    if (*rate == NGX_CONF_UNSET_UINT) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" must have \"rate\" parameter", &value[0]);
        return NGX_CONF_ERROR;
    }

    if (*burst == NGX_CONF_UNSET_UINT) {
        *burst = *rate;   /* a minute's clicks at once */
    }

    return NGX_CONF_OK;
}


/* "10r/s" or "600r/m" to clicks a minute. */

static ngx_int_t
ngx_http_affiliate_fraud_parse_rate(ngx_str_t *value, ngx_uint_t *rate)
{
    ngx_int_t   n;
    ngx_uint_t  scale;

    if (value->len < 4) {
        return NGX_ERROR;
    }

    if (ngx_memcmp(value->data + value->len - 3, "r/s", 3) == 0) {
        scale = 60;

    } else if (ngx_memcmp(value->data + value->len - 3, "r/m", 3) == 0) {
        scale = 1;

    } else {
        return NGX_ERROR;
    }

    n = ngx_atoi(value->data, value->len - 3);

    if (n <= 0 || (ngx_uint_t) n > NGX_HTTP_AFFILIATE_RATE_MAX / scale) {
        return NGX_ERROR;
    }

    *rate = (ngx_uint_t) n * scale;

    return NGX_OK;
}


void
ngx_http_affiliate_fraud_unset(ngx_http_affiliate_fraud_conf_t *conf)
{
    conf->address_rate = NGX_CONF_UNSET_UINT;
    conf->address_burst = NGX_CONF_UNSET_UINT;
    conf->link_rate = NGX_CONF_UNSET_UINT;
    conf->link_burst = NGX_CONF_UNSET_UINT;
    conf->duplicate_window = NGX_CONF_UNSET_MSEC;
    conf->signals = NULL;
}


void
ngx_http_affiliate_fraud_merge(ngx_http_affiliate_fraud_conf_t *prev,
    ngx_http_affiliate_fraud_conf_t *conf)
{
    /* a rate's setter sets its burst, too: they are inherited together */

    ngx_conf_merge_uint_value(conf->address_rate, prev->address_rate,
                              NGX_HTTP_AFFILIATE_ADDRESS_RATE);
    ngx_conf_merge_uint_value(conf->address_burst, prev->address_burst,
                              NGX_HTTP_AFFILIATE_ADDRESS_BURST);

    ngx_conf_merge_uint_value(conf->link_rate, prev->link_rate, 0);
    ngx_conf_merge_uint_value(conf->link_burst, prev->link_burst, 0);

    ngx_conf_merge_msec_value(conf->duplicate_window, prev->duplicate_window,
                              NGX_HTTP_AFFILIATE_WINDOW);

    if (conf->signals == NULL) {
        conf->signals = prev->signals;
    }
}
