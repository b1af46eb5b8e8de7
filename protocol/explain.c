/*
 * A wrong signature says nothing by itself, but there are only so many ways to get it wrong: each
 * is tried, and the one that gives the signature at hand is the answer.
 */

#include "explain.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <stdlib.h>

#define HEX_CHARS       ((size_t) 2 * AFF_SIGNATURE_BYTES)
#define BASE64_CHARS    44
#define TIMESTAMP_CHARS 11 /* of unix seconds, at most */

static const char *const line_names[AFF_EXPLAIN_LINES] = {
    "version", "timestamp", "method", "path", "idempotency_key", "body"};

const char *
aff_explain_line_name(unsigned line)
{
    return line < AFF_EXPLAIN_LINES ? line_names[line] : NULL;
}

static struct aff_slice
body_of(const struct aff_signed_request *request)
{
    return request->body_pieces == 0 ? aff_slice("", 0) : request->body[0];
}

static uint8_t
lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t) (c | 0x20) : c;
}

static bool
equal_but_case(struct aff_slice a, struct aff_slice b)
{
    if (a.len != b.len) {
        return false;
    }

    for (size_t i = 0; i < a.len; i++) {
        if (lower(a.data[i]) != lower(b.data[i])) {
            return false;
        }
    }

    return true;
}

static bool
is_space(uint8_t c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static struct aff_slice
trimmed(struct aff_slice s)
{
    while (s.len > 0 && is_space(s.data[s.len - 1])) {
        s.len--;
    }

    while (s.len > 0 && is_space(s.data[0])) {
        s.data++;
        s.len--;
    }

    return s;
}

/* Equal but for white space anywhere: JSON that was written out again. */
static bool
equal_but_space(struct aff_slice a, struct aff_slice b)
{
    size_t i = 0, j = 0;

    for (;;) {
        while (i < a.len && is_space(a.data[i])) {
            i++;
        }
        while (j < b.len && is_space(b.data[j])) {
            j++;
        }
        if (i == a.len || j == b.len) {
            return i == a.len && j == b.len;
        }
        if (a.data[i++] != b.data[j++]) {
            return false;
        }
    }
}

static struct aff_slice
until(struct aff_slice s, uint8_t end)
{
    const uint8_t *p = s.len == 0 ? NULL : memchr(s.data, end, s.len);

    return p == NULL ? s : aff_slice(s.data, (size_t) (p - s.data));
}

static bool
begins_with(struct aff_slice s, const char *with)
{
    size_t len = strlen(with);

    return s.len >= len && memcmp(s.data, with, len) == 0;
}

static bool
ends_with(struct aff_slice s, struct aff_slice with)
{
    return s.len >= with.len &&
           (with.len == 0 || memcmp(s.data + s.len - with.len, with.data, with.len) == 0);
}

static const char *
path_hint(struct aff_slice told, struct aff_slice sent)
{
    if ((begins_with(told, "http://") || begins_with(told, "https://")) && ends_with(told, sent)) {
        return "is a whole URL: sign the path and the query only";
    }

    if (aff_slice_equal(told, until(sent, '?'))) {
        return "lacks the query: sign it with the path";
    }

    if (memchr(told.data, '%', told.len) != NULL || memchr(sent.data, '%', sent.len)) {
        return "is encoded differently: sign it exactly as it is sent";
    }

    return NULL;
}

static const char *
timestamp_hint(struct aff_slice told, struct aff_slice sent)
{
    if (told.len == sent.len + 3 && begins_with(told, "1")) {
        return "is in milliseconds: sign and send unix seconds";
    }

    return "is another than the header's: take the time once, sign it and send it";
}

static const char *
body_hint(struct aff_slice told, struct aff_slice sent)
{
    if (told.len == 0) {
        return "is missing: sign the body behind the last line break";
    }

    if (equal_but_space(told, sent)) {
        return "was written out again with other white space: sign the very bytes that are sent";
    }

    return "is not what was sent: sign the very bytes that are sent";
}

static const char *
line_hint(unsigned line, struct aff_slice told, struct aff_slice sent)
{
    if (told.data == NULL) {
        return "is missing";
    }

    if (line != AFF_EXPLAIN_BODY && aff_slice_equal(trimmed(told), sent)) {
        return ends_with(told, aff_slice("\r", 1)) ? "ends with CR LF: end lines with LF alone"
                                                   : "has white space around it";
    }

    switch (line) {
    case AFF_EXPLAIN_VERSION:
        return "must be v1";
    case AFF_EXPLAIN_TIMESTAMP:
        return timestamp_hint(told, sent);
    case AFF_EXPLAIN_PATH:
        return path_hint(told, sent);
    case AFF_EXPLAIN_BODY:
        return body_hint(told, sent);
    default:
        return equal_but_case(told, sent) ? "differs in upper and lower case" : NULL;
    }
}

static size_t
first_difference(struct aff_slice a, struct aff_slice b)
{
    size_t i = 0;

    while (i < a.len && i < b.len && a.data[i] == b.data[i]) {
        i++;
    }

    return i;
}

unsigned
aff_explain_text(struct aff_slice text, const struct aff_signed_request *request,
    struct aff_explained_line lines[AFF_EXPLAIN_LINES])
{
    const struct aff_slice sent[AFF_EXPLAIN_LINES] = {aff_slice_of("v1"), request->timestamp,
        request->method, request->path_with_query, request->idempotency_key, body_of(request)};
    bool over = false;
    unsigned differ = 0;

    for (unsigned i = 0; i < AFF_EXPLAIN_LINES; i++) {
        struct aff_explained_line *line = &lines[i];
        struct aff_slice told = over ? aff_slice(NULL, 0) : text;

        if (!over && i != AFF_EXPLAIN_BODY) {
            told = until(text, '\n');
            over = told.len == text.len;
            if (!over) {
                text = aff_slice(text.data + told.len + 1, text.len - told.len - 1);
            }
        }

        line->signed_part = told;
        line->expected_part = sent[i];
        line->same = told.data != NULL && aff_slice_equal(told, sent[i]);
        line->at = first_difference(told, sent[i]);
        line->hint = line->same ? NULL : line_hint(i, told, sent[i]);
        differ += !line->same;
    }

    return differ;
}

/* --- mistakes, by the signature alone --- */

/* What some program signs, and with what. */
struct attempt {
    struct aff_slice secret, version, timestamp, method, path, key, body;
    const char *separator;
    bool ends_early; /* nothing behind the idempotency key, not even the line break */
    bool plain_hash; /* SHA-256 of secret and text instead of an HMAC */
};

static size_t
attempt_text(const struct attempt *a, uint8_t *out, size_t room)
{
    const struct aff_slice parts[AFF_EXPLAIN_LINES] = {
        a->version, a->timestamp, a->method, a->path, a->key, a->body};
    struct aff_writer w = {.pos = out, .end = out + room};
    unsigned count = a->ends_early ? AFF_EXPLAIN_BODY : AFF_EXPLAIN_LINES;

    for (unsigned i = 0; i < count; i++) {
        if (i > 0) {
            aff_put_bytes(&w, a->separator, strlen(a->separator));
        }
        aff_put_bytes(&w, parts[i].data, parts[i].len);
    }

    return w.failed ? 0 : (size_t) (w.pos - out);
}

static size_t
attempt_room(const struct attempt *a)
{
    return a->secret.len + a->version.len + a->timestamp.len + a->method.len + a->path.len +
           a->key.len + a->body.len + (size_t) 2 * AFF_EXPLAIN_LINES;
}

static bool
attempt_sign(const struct attempt *a, uint8_t signature[AFF_SIGNATURE_BYTES])
{
    size_t room = attempt_room(a), len;
    uint8_t *text = malloc(room);
    unsigned size = AFF_SIGNATURE_BYTES;
    bool ok;

    if (text == NULL) {
        return false;
    }

    if (a->plain_hash) {
        memcpy(text, a->secret.data, a->secret.len);
        len = a->secret.len + attempt_text(a, text + a->secret.len, room - a->secret.len);
        ok = EVP_Digest(text, len, signature, &size, EVP_sha256(), NULL) == 1;
    } else {
        len = attempt_text(a, text, room);
        ok = HMAC(EVP_sha256(), a->secret.data, (int) a->secret.len, text, len, signature, &size) !=
             NULL;
    }

    OPENSSL_cleanse(text, room);
    free(text);
    return ok;
}

/* Whether the header's value is this signature in lower-case hex. */
static bool
attempt_gives(const struct attempt *a, struct aff_slice hex)
{
    uint8_t signature[AFF_SIGNATURE_BYTES];
    char text[HEX_CHARS];

    if (!attempt_sign(a, signature)) {
        return false;
    }

    aff_hex(signature, sizeof(signature), text);
    return hex.len == HEX_CHARS && CRYPTO_memcmp(text, hex.data, HEX_CHARS) == 0;
}

/* Whatever the case of its digits, in a time that tells nothing of the signature. */
static bool
equal_in_hex(const uint8_t *given, const char *hex)
{
    char folded[HEX_CHARS];

    for (size_t i = 0; i < HEX_CHARS; i++) {
        folded[i] = (char) lower(given[i]);
    }

    return CRYPTO_memcmp(folded, hex, HEX_CHARS) == 0;
}

/* The right signature, written in another way. */
static const char *
wrong_form(const struct attempt *right, struct aff_slice given)
{
    uint8_t signature[AFF_SIGNATURE_BYTES];
    uint8_t base64[BASE64_CHARS + 1];
    char hex[HEX_CHARS];
    const char *mistake = NULL;

    if (!attempt_sign(right, signature)) {
        return NULL;
    }

    aff_hex(signature, sizeof(signature), hex);
    EVP_EncodeBlock(base64, signature, sizeof(signature));
    if (given.len == HEX_CHARS && equal_in_hex(given.data, hex)) {
        mistake = "The signature is right but for its form: send v1= and lower-case hex digits.";
    } else if (given.len == BASE64_CHARS && CRYPTO_memcmp(given.data, base64, BASE64_CHARS) == 0) {
        mistake = "The signature is right, but written in base64: write it in lower-case hex.";
    }

    OPENSSL_cleanse(signature, sizeof(signature));
    OPENSSL_cleanse(hex, sizeof(hex));
    OPENSSL_cleanse(base64, sizeof(base64));
    return mistake;
}

/* The secret without "aks_test_"; the key's public id; the secret and a line break. */
static const char *
wrong_secret(const struct attempt *right, struct aff_slice key_id, struct aff_slice hex)
{
    struct attempt a = *right;
    char ended[128];

    a.secret = key_id;
    if (attempt_gives(&a, hex)) {
        return "It was signed with the key's public id: sign with the secret, aks_...";
    }

    if (right->secret.len > 9) {
        a.secret = aff_slice(right->secret.data + 9, right->secret.len - 9);
        if (attempt_gives(&a, hex)) {
            return "The secret was cut: sign with all of it, aks_... included.";
        }
    }

    if (right->secret.len < sizeof(ended)) {
        bool gives;

        memcpy(ended, right->secret.data, right->secret.len);
        ended[right->secret.len] = '\n';
        a.secret = aff_slice(ended, right->secret.len + 1);
        gives = attempt_gives(&a, hex);
        OPENSSL_cleanse(ended, sizeof(ended));
        if (gives) {
            return "The secret was signed with together with a line break, as files end with one: "
                   "take it off.";
        }
    }

    return NULL;
}

/* Lines that were left out, or have another value. */
static const char *
wrong_lines(const struct attempt *right, struct aff_slice hex)
{
    const struct aff_slice none = aff_slice("", 0);
    struct aff_slice path = until(right->path, '?');
    uint8_t method[16], milliseconds[TIMESTAMP_CHARS + 3];
    struct attempt a[8];
    static const char *const mistakes[8] = {
        "The body is not signed: append it behind the last line break.",
        "The line break before the empty body is missing.",
        "The idempotency key is not signed: it is the line before the body.",
        "The query is not signed: sign it with the path.",
        "The method is signed in lower case: write it as it is sent, POST.",
        "The timestamp is signed in milliseconds: sign and send unix seconds.",
        "The body is signed without the white space around it: sign the very bytes that are sent.",
        "The body is signed with a line break behind it that is not sent.",
    };
    uint8_t *ended = malloc(right->body.len + 1);
    const char *mistake = NULL;

    if (ended == NULL) {
        return NULL;
    }

    for (unsigned i = 0; i < 8; i++) {
        a[i] = *right;
    }

    for (size_t i = 0; i < right->method.len && i < sizeof(method); i++) {
        method[i] = lower(right->method.data[i]);
    }

    if (right->timestamp.len <= TIMESTAMP_CHARS) {
        memcpy(milliseconds, right->timestamp.data, right->timestamp.len);
        memset(milliseconds + right->timestamp.len, '0', 3);
        a[5].timestamp = aff_slice(milliseconds, right->timestamp.len + 3);
    }

    memcpy(ended, right->body.data, right->body.len);
    ended[right->body.len] = '\n';

    a[0].body = none;
    a[1].ends_early = true;
    a[2].key = none;
    a[3].path = path;
    a[4].method =
        aff_slice(method, right->method.len < sizeof(method) ? right->method.len : sizeof(method));
    a[6].body = trimmed(right->body);
    a[7].body = aff_slice(ended, right->body.len + 1);

    for (unsigned i = 0; i < 8 && mistake == NULL; i++) {
        if (attempt_gives(&a[i], hex)) {
            mistake = mistakes[i];
        }
    }

    free(ended);
    return mistake;
}

/* Other ways to put the lines together. */
static const char *
wrong_frame(const struct attempt *right, struct aff_slice hex)
{
    struct attempt a = *right;

    a.separator = "\r\n";
    if (attempt_gives(&a, hex)) {
        return "The lines end with CR LF: end them with LF alone.";
    }

    a.separator = "";
    if (attempt_gives(&a, hex)) {
        return "The lines are joined without line breaks: put a LF between them.";
    }

    a.separator = "\\n";
    if (attempt_gives(&a, hex)) {
        return "The line breaks are a backslash and an n: let them be LF.";
    }

    a = *right;
    a.plain_hash = true;
    if (attempt_gives(&a, hex)) {
        return "It is a hash of secret and text: make a HMAC-SHA256 with the secret as its key.";
    }

    return NULL;
}

const char *
aff_explain_signature(struct aff_slice secret, struct aff_slice key_id,
    const struct aff_signed_request *request, struct aff_slice header)
{
    const struct attempt right = {.secret = secret,
        .version = aff_slice_of("v1"),
        .timestamp = request->timestamp,
        .method = request->method,
        .path = request->path_with_query,
        .key = request->idempotency_key,
        .body = body_of(request),
        .separator = "\n"};
    struct aff_slice given = trimmed(header);
    const char *mistake;

    if (begins_with(given, "v1=")) {
        given = trimmed(aff_slice(given.data + 3, given.len - 3));
    }

    mistake = wrong_form(&right, given);
    if (mistake == NULL) {
        mistake = wrong_secret(&right, key_id, given);
    }
    if (mistake == NULL) {
        mistake = wrong_lines(&right, given);
    }
    if (mistake == NULL) {
        mistake = wrong_frame(&right, given);
    }

    return mistake;
}
