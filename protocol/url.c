/* Destinations: the check, host patterns, and merging parameters. */

#include "url.h"

#include "bytes.h"
#include "chars.h"

#include <arpa/inet.h>

#define LABEL_MAX 63

static bool
starts_with(struct aff_slice text, const char *lower)
{
    size_t len = strlen(lower);

    if (text.len < len) {
        return false;
    }

    for (size_t i = 0; i < len; i++) {
        if (aff_char_lower(text.data[i]) != (uint8_t) lower[i]) {
            return false;
        }
    }

    return true;
}

/* Eight bytes, letters in lower case. Nothing else that a URL may hold becomes one of "https://".
 */
static inline uint64_t
lower_word(const uint8_t *p)
{
    return aff_load_le64(p) | 0x2020202020202020;
}

static struct aff_slice
skip(struct aff_slice s, size_t n)
{
    return aff_slice(s.data + n, s.len - n);
}

static struct aff_slice
without_dot(struct aff_slice host)
{
    if (host.len > 0 && host.data[host.len - 1] == '.') {
        host.len--;
    }

    return host;
}

/* True if `host` reads as an address of `family`, in the form that inet_pton() takes. */
static bool
address_valid(int family, struct aff_slice host)
{
    char text[INET6_ADDRSTRLEN];
    struct in6_addr address;

    if (host.len >= sizeof(text)) {
        return false;
    }

    memcpy(text, host.data, host.len);
    text[host.len] = '\0';

    return inet_pton(family, text, &address) == 1;
}

static bool
label_valid(const uint8_t *label, size_t len)
{
    return len >= 1 && len <= LABEL_MAX && label[0] != '-' && label[len - 1] != '-';
}

/* The WHATWG's test: a host whose last label is a number is an IPv4 address, or nothing. */
static bool
label_is_number(struct aff_slice label)
{
    bool hex = label.len >= 2 && label.data[0] == '0' && (label.data[1] | 0x20) == 'x';

    for (size_t i = hex ? 2 : 0; i < label.len; i++) {
        if (hex ? aff_char_hex(label.data[i]) < 0 : !aff_char_digit(label.data[i])) {
            return false;
        }
    }

    return true;
}

/* A name or an IPv4 address; `*is_address` tells which. In one pass: every redirect asks it. */
static bool
name_valid(struct aff_slice host, bool *is_address)
{
    size_t label = 0; /* where it begins */

    host = without_dot(host);

    if (host.len > AFF_HOST_MAX) {
        return false;
    }

    for (size_t i = 0; i < host.len; i++) {
        if (host.data[i] == '.') {
            if (!label_valid(host.data + label, i - label)) {
                return false;
            }

            label = i + 1;

        } else if (!aff_char_is(host.data[i], AFF_CHAR_WORD)) {
            return false;
        }
    }

    if (!label_valid(host.data + label, host.len - label)) {
        return false;
    }

    *is_address = label_is_number(skip(host, label));

    return !*is_address || address_valid(AF_INET, host);
}

bool
aff_host_pattern_valid(struct aff_slice pattern)
{
    bool is_address = false;

    if (starts_with(pattern, "*.")) {
        return name_valid(skip(pattern, 2), &is_address) && !is_address;
    }

    if (pattern.len > 2 && pattern.data[0] == '[' && pattern.data[pattern.len - 1] == ']') {
        return address_valid(AF_INET6, aff_slice(pattern.data + 1, pattern.len - 2));
    }

    return name_valid(pattern, &is_address);
}

/* The rule that `port`, the digits behind the colon, breaks, or NULL. */
static const char *
port_rule(struct aff_slice port)
{
    unsigned value = 0;

    for (size_t i = 0; i < port.len && i < 5; i++) {
        if (!aff_char_digit(port.data[i])) {
            return "has a port that is no number";
        }

        value = value * 10 + (port.data[i] - '0');
    }

    if (port.len == 0 || port.len > 5 || value < 1 || value > 65535) {
        return "has a port outside 1..65535";
    }

    return NULL;
}

static const char *
authority_rule(struct aff_slice authority, struct aff_url_parts *parts)
{
    bool is_address = false;
    const uint8_t *end;

    parts->host = authority;
    parts->port = aff_slice(NULL, 0);

    if (authority.len == 0) {
        return "has no host";
    }

    if (memchr(authority.data, '@', authority.len) != NULL) {
        return "has user information in front of its host";
    }

    if (authority.data[0] == '[') {
        end = memchr(authority.data, ']', authority.len);

        if (end == NULL) {
            return "has a bracket that does not close";
        }

        parts->host.len = (size_t) (end - authority.data) + 1;

        if (!address_valid(AF_INET6, aff_slice(authority.data + 1, parts->host.len - 2))) {
            return "has no valid IPv6 address between its brackets";
        }

    } else {
        end = memchr(authority.data, ':', authority.len);

        if (end != NULL) {
            parts->host.len = (size_t) (end - authority.data);
        }

        if (!name_valid(parts->host, &is_address)) {
            return "has no valid host";
        }
    }

    if (parts->host.len == authority.len) {
        return NULL;
    }

    if (authority.data[parts->host.len] != ':') {
        return "has something other than a port behind its host";
    }

    parts->port = skip(authority, parts->host.len + 1);

    return port_rule(parts->port);
}

static const char *
url_rule(struct aff_slice url, struct aff_url_parts *parts)
{
    struct aff_slice authority;
    size_t len;

    if (url.len > AFF_URL_MAX) {
        return "is longer than 2000 bytes";
    }

    if (!aff_chars_url(url)) {
        return "has a byte that a URL may not hold unencoded";
    }

    if (url.len >= 8 && lower_word(url.data) == lower_word((const uint8_t *) "https://")) {
        authority = skip(url, 8);

    } else if (starts_with(url, "http://")) {
        authority = skip(url, 7);

    } else {
        return "does not begin with http:// or https://";
    }

    for (len = 0; len < authority.len; len++) {
        uint8_t c = authority.data[len];

        if (c == '/' || c == '?' || c == '#') {
            break;
        }
    }

    authority.len = len;

    return authority_rule(authority, parts);
}

bool
aff_url_check(struct aff_slice url, struct aff_url_parts *parts, const char **rule)
{
    struct aff_url_parts own;
    const char *broken = url_rule(url, parts == NULL ? &own : parts);

    if (broken != NULL) {
        *rule = broken;
        return false;
    }

    return true;
}

static bool
equal_ignoring_case(struct aff_slice a, struct aff_slice b)
{
    if (a.len != b.len) {
        return false;
    }

    for (size_t i = 0; i < a.len; i++) {
        if (aff_char_lower(a.data[i]) != aff_char_lower(b.data[i])) {
            return false;
        }
    }

    return true;
}

bool
aff_host_match(struct aff_slice host, struct aff_slice allowed)
{
    host = without_dot(host);
    allowed = without_dot(allowed);

    if (starts_with(allowed, "*.")) {
        allowed = skip(allowed, 1);

        /* The dot is compared, too, and something must stand in front of it. */
        return allowed.len > 1 && host.len > allowed.len &&
               equal_ignoring_case(skip(host, host.len - allowed.len), allowed);
    }

    return host.len > 0 && equal_ignoring_case(host, allowed);
}

bool
aff_param_name_valid(struct aff_slice name)
{
    return name.len >= 1 && name.len <= AFF_PARAM_MAX && aff_chars_unreserved(name);
}

size_t
aff_url_merge_size(struct aff_slice url, const struct aff_param *params, size_t count)
{
    size_t size = url.len;

    for (size_t i = 0; i < count; i++) {
        size += 2 + params[i].name.len + 3 * params[i].value.len;
    }

    return size;
}

/* -1 if there is no valid %xx at `p`. */
static int
percent_byte(const uint8_t *p, size_t len)
{
    int high;
    int low;

    if (len < 3 || p[0] != '%') {
        return -1;
    }

    high = aff_char_hex(p[1]);
    low = aff_char_hex(p[2]);

    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/*
 * True if `raw`, as it stands in a query, decodes to `name`. A valid name has neither % nor + nor a
 * space in it, so a malformed escape and a + simply differ.
 */
static bool
name_is(struct aff_slice raw, struct aff_slice name)
{
    size_t pos = 0;

    if (raw.len == name.len) {
        return memcmp(raw.data, name.data, name.len) == 0;
    }

    if (raw.len < name.len || raw.len > 3 * name.len) {
        return false;
    }

    for (size_t i = 0; i < name.len; i++, pos++) {
        int c;

        if (pos >= raw.len) {
            return false;
        }

        c = raw.data[pos];

        if (c == '%') {
            c = percent_byte(raw.data + pos, raw.len - pos);
            pos += 2;
        }

        if (c != name.data[i]) {
            return false;
        }
    }

    return pos == raw.len;
}

static bool
is_replaced(struct aff_slice pair, const struct aff_param *params, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct aff_slice raw = pair;
        const uint8_t *equals;

        /* Nearly every pair that stays shows it in its first byte. */
        if (pair.len == 0 || (pair.data[0] != params[i].name.data[0] && pair.data[0] != '%')) {
            continue;
        }

        equals = memchr(pair.data, '=', pair.len);
        if (equals != NULL) {
            raw.len = (size_t) (equals - pair.data);
        }

        if (name_is(raw, params[i].name)) {
            return true;
        }
    }

    return false;
}

/* Puts the mark in front of the next pair: ? for the first one, then &; 0 where one stands. */
static void
put_mark(struct aff_writer *w, char *mark)
{
    if (*mark != 0) {
        aff_put_u8(w, (uint8_t) *mark);
    }

    *mark = '&';
}

/*
 * Copies the pairs of `query` that stay. An empty query has none; otherwise an empty pair is one,
 * and where it is the last one, its mark serves the pair that follows.
 */
static void
put_kept(struct aff_writer *w, struct aff_slice query, const struct aff_param *params, size_t count,
    char *mark)
{
    bool more = query.len > 0;

    while (more) {
        const uint8_t *amp = query.len == 0 ? NULL : memchr(query.data, '&', query.len);
        struct aff_slice pair = query;

        more = amp != NULL;

        if (more) {
            pair.len = (size_t) (amp - query.data);
            query = skip(query, pair.len + 1);
        }

        if (!is_replaced(pair, params, count)) {
            put_mark(w, mark);
            aff_put_bytes(w, pair.data, pair.len);

            if (!more && pair.len == 0) {
                *mark = 0;
            }
        }
    }
}

static void
put_encoded(struct aff_writer *w, struct aff_slice value)
{
    static const char digits[] = "0123456789ABCDEF";
    size_t len = 0;
    uint8_t *p;

    if (aff_chars_unreserved(value)) {
        aff_put_bytes(w, value.data, value.len);
        return;
    }

    for (size_t i = 0; i < value.len; i++) {
        len += aff_char_is(value.data[i], AFF_CHAR_UNRESERVED) ? 1 : 3;
    }

    p = aff_room(w, len);
    if (p == NULL) {
        return;
    }

    for (size_t i = 0; i < value.len; i++) {
        uint8_t c = value.data[i];

        if (aff_char_is(c, AFF_CHAR_UNRESERVED)) {
            *p++ = c;
        } else {
            *p++ = '%';
            *p++ = (uint8_t) digits[c >> 4];
            *p++ = (uint8_t) digits[c & 15];
        }
    }
}

/* Puts the new pairs. Of several with one name the last one wins, as if merged one by one. */
static void
put_params(struct aff_writer *w, const struct aff_param *params, size_t count, char *mark)
{
    for (size_t i = 0; i < count; i++) {
        bool last = true;

        for (size_t j = i + 1; j < count; j++) {
            if (aff_slice_equal(params[i].name, params[j].name)) {
                last = false;
            }
        }

        if (last) {
            put_mark(w, mark);
            aff_put_bytes(w, params[i].name.data, params[i].name.len);
            aff_put_u8(w, '=');
            put_encoded(w, params[i].value);
        }
    }
}

size_t
aff_url_merge(
    struct aff_slice url, const struct aff_param *params, size_t count, uint8_t *out, size_t room)
{
    struct aff_writer w = {.pos = out, .end = out + room};
    struct aff_slice fragment = aff_slice(NULL, 0);
    struct aff_slice query = aff_slice(NULL, 0);
    const uint8_t *at;
    char mark = '?';

    if (url.len == 0 || count > AFF_MERGE_MAX) {
        return 0;
    }

    for (size_t i = 0; i < count; i++) {
        if (!aff_param_name_valid(params[i].name)) {
            return 0;
        }
    }

    if (count == 0) {
        aff_put_bytes(&w, url.data, url.len);
        return w.failed ? 0 : url.len;
    }

    at = memchr(url.data, '#', url.len);
    if (at != NULL) {
        fragment = skip(url, (size_t) (at - url.data));
        url.len -= fragment.len;
    }

    at = url.len == 0 ? NULL : memchr(url.data, '?', url.len);
    if (at != NULL) {
        query = skip(url, (size_t) (at - url.data) + 1);
        url.len -= query.len + 1;
    }

    aff_put_bytes(&w, url.data, url.len);
    put_kept(&w, query, params, count, &mark);
    put_params(&w, params, count, &mark);
    aff_put_bytes(&w, fragment.data, fragment.len);

    return w.failed ? 0 : (size_t) (w.pos - out);
}

bool
aff_query_next(struct aff_slice *query, struct aff_slice *name, struct aff_slice *value)
{
    const uint8_t *end;

    while (query->len > 0 && query->data[0] == '&') {
        *query = skip(*query, 1);
    }

    if (query->len == 0) {
        return false;
    }

    end = memchr(query->data, '&', query->len);
    *name = *query;

    if (end == NULL) {
        *query = skip(*query, query->len);
    } else {
        name->len = (size_t) (end - query->data);
        *query = skip(*query, name->len + 1);
    }

    *value = skip(*name, name->len);

    end = memchr(name->data, '=', name->len);
    if (end != NULL) {
        size_t name_len = (size_t) (end - name->data);

        *value = skip(*name, name_len + 1);
        name->len = name_len;
    }

    return true;
}

long
aff_query_decode(struct aff_slice text, uint8_t *out, size_t room)
{
    size_t n = 0;

    for (size_t i = 0; i < text.len; i++, n++) {
        int c = text.data[i];

        if (c == '+') {
            c = ' ';

        } else if (c == '%') {
            c = percent_byte(text.data + i, text.len - i);
            i += 2;
        }

        if (c < 0 || n >= room) {
            return -1;
        }

        out[n] = (uint8_t) c;
    }

    return (long) n;
}
