/* The signature debugger: which line differs, and which mistake makes a signature. */

#include "unit.h"

#include "explain.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

static const char secret[] = "aks_test_3fQ9Zr7mW2";
static const char key_id[] = "ak_test_0123456789ABCDEFabcd";
static struct aff_slice body;

static struct aff_signed_request
request(const char *text)
{
    body = aff_slice_of(text);
    return (struct aff_signed_request){.timestamp = aff_slice_of("1764000000"),
        .method = aff_slice_of("POST"),
        .path_with_query = aff_slice_of("/v1/conversions?a=b"),
        .idempotency_key = aff_slice_of("NP-1001-approved"),
        .body = &body,
        .body_pieces = 1};
}

/* "line at hint" of each that differs, one after the other. */
static const char *
differences(const char *text, const struct aff_signed_request *signed_request)
{
    static char out[1024];
    struct aff_explained_line lines[AFF_EXPLAIN_LINES];
    unsigned differ = aff_explain_text(aff_slice_of(text), signed_request, lines);

    out[0] = '\0';
    for (unsigned i = 0; i < AFF_EXPLAIN_LINES; i++) {
        if (!lines[i].same) {
            size_t len = strlen(out);

            snprintf(out + len, sizeof(out) - len, "%s%s %zu %s", len > 0 ? "; " : "",
                aff_explain_line_name(i), lines[i].at, lines[i].hint == NULL ? "" : lines[i].hint);
            differ--;
        }
    }

    assert_int_equal(differ, 0);
    return out;
}

static void
lines_are_compared(void **state)
{
    static const char head[] = "v1\n1764000000\nPOST\n/v1/conversions?a=b\nNP-1001-approved\n";
    struct aff_signed_request r = request("{\"a\": 1}\nx");
    char text[512];

    (void) state;
    snprintf(text, sizeof(text), "%s%s", head, "{\"a\": 1}\nx");
    assert_string_equal(differences(text, &r), "");
    snprintf(text, sizeof(text), "%s%s", head, "{\"a\":1}x");
    assert_string_equal(differences(text, &r),
        "body 5 was written out again with other white space: sign the very bytes that are sent");
    snprintf(text, sizeof(text), "%s%s", head, "{\"a\":2}");
    assert_string_equal(
        differences(text, &r), "body 5 is not what was sent: sign the very bytes that are sent");
    assert_string_equal(
        differences(head, &r), "body 0 is missing: sign the body behind the last line break");
    assert_string_equal(
        differences("v1\n1764000000\nPOST\n/v1/conversions?a=b\nNP-1001-approved", &r),
        "body 0 is missing");
    assert_string_equal(differences("1764000000\npost\n/v1/conversions\nNP-1001-approved\n{}", &r),
        "version 0 must be v1; timestamp 0 is another than the header's: take the time once, sign "
        "it and send it; method 0 ; path 0 ; idempotency_key 0 ; body 0 is missing");

    r = request("{}");
    assert_string_equal(
        differences("v1\r\n1764000000000\npost\nhttps://x.example/v1/conversions?a=b\n"
                    "np-1001-approved\n{}",
            &r),
        "version 2 ends with CR LF: end lines with LF alone; timestamp 10 is in milliseconds: sign "
        "and send unix seconds; method 0 differs in upper and lower case; path 0 is a whole URL: "
        "sign the path and the query only; idempotency_key 0 differs in upper and lower case");
    assert_string_equal(
        differences("v1 \n1764000001\nPOST\n/v1/conversions\nNP-1001-approved\n{}", &r),
        "version 2 has white space around it; timestamp 9 is another than the header's: take the "
        "time once, sign it and send it; path 15 lacks the query: sign it with the path");
    assert_string_equal(
        differences("v1\n1764000000\nPOST\n/v1/conversions?a=%62\nNP-1001-approved\n{}", &r),
        "path 18 is encoded differently: sign it exactly as it is sent");
    assert_string_equal(differences("", &r),
        "version 0 must be v1; timestamp 0 is missing; method 0 is missing; path 0 is missing; "
        "idempotency_key 0 is missing; body 0 is missing");
    assert_null(aff_explain_line_name(AFF_EXPLAIN_LINES));
}

/* The header that a program makes of a text. */
static const char *
header_of(const char *key, const char *text, const char *form)
{
    static char out[256];
    uint8_t signature[AFF_SIGNATURE_BYTES];
    char hex[2 * AFF_SIGNATURE_BYTES + 1] = "";
    unsigned size = sizeof(signature);

    HMAC(EVP_sha256(), key, (int) strlen(key), (const uint8_t *) text, strlen(text), signature,
        &size);
    aff_hex(signature, sizeof(signature), hex);
    snprintf(out, sizeof(out), form, hex);
    return out;
}

static const char *
mistake(const char *header, const struct aff_signed_request *r)
{
    const char *told =
        aff_explain_signature(aff_slice_of(secret), aff_slice_of(key_id), r, aff_slice_of(header));

    return told == NULL ? "none" : told;
}

#define TOLD(key, text, part)                                                                      \
    do {                                                                                           \
        const char *told = mistake(header_of(key, text, "v1=%s"), &r);                             \
        if (strstr(told, part) == NULL) {                                                          \
            fail_msg("%s, not %s", told, part);                                                    \
        }                                                                                          \
    } while (0)

static void
mistakes_are_found(void **state)
{
    static const char head[] = "v1\n1764000000\nPOST\n/v1/conversions?a=b\nNP-1001-approved\n";
    struct aff_signed_request r = request("{} ");
    char right[256], other[512], upper[256];

    (void) state;
    snprintf(right, sizeof(right), "%s{} ", head);
    TOLD(secret, head, "The body is not signed");
    TOLD(secret, "v1\n1764000000\nPOST\n/v1/conversions?a=b\nNP-1001-approved",
        "before the empty body");
    TOLD(secret, "v1\n1764000000\nPOST\n/v1/conversions?a=b\n\n{} ",
        "idempotency key is not signed");
    TOLD(secret, "v1\n1764000000\nPOST\n/v1/conversions\nNP-1001-approved\n{} ",
        "The query is not signed");
    TOLD(secret, "v1\n1764000000\npost\n/v1/conversions?a=b\nNP-1001-approved\n{} ", "lower case");
    TOLD(secret, "v1\n1764000000000\nPOST\n/v1/conversions?a=b\nNP-1001-approved\n{} ",
        "milliseconds");
    snprintf(other, sizeof(other), "%s{}", head);
    TOLD(secret, other, "white space around it");
    snprintf(other, sizeof(other), "%s\n", right);
    TOLD(secret, other, "not sent");
    TOLD(key_id, right, "public id");
    TOLD(secret + 9, right, "was cut");
    snprintf(other, sizeof(other), "%s\n", secret);
    TOLD(other, right, "together with a line break");
    TOLD(secret, "v1\r\n1764000000\r\nPOST\r\n/v1/conversions?a=b\r\nNP-1001-approved\r\n{} ",
        "CR LF");
    TOLD(secret, "v11764000000POST/v1/conversions?a=bNP-1001-approved{} ", "without line breaks");
    TOLD(secret, "v1\\n1764000000\\nPOST\\n/v1/conversions?a=b\\nNP-1001-approved\\n{} ",
        "backslash");
    TOLD("another", right, "none");
    TOLD(secret, "something else", "none");

    snprintf(upper, sizeof(upper), "%s", header_of(secret, right, "v1=%s"));
    for (char *p = upper + 3; *p != '\0'; p++) {
        *p = *p >= 'a' && *p <= 'f' ? (char) (*p - 32) : *p;
    }
    assert_non_null(strstr(mistake(upper, &r), "lower-case hex"));
    assert_non_null(strstr(mistake(header_of(secret, right, "%s"), &r), "send v1="));
    assert_string_equal(mistake("", &r), "none");
    assert_string_equal(mistake("v1=", &r), "none");
}

static void
other_forms(void **state)
{
    struct aff_signed_request r = request("{}");
    uint8_t signature[AFF_SIGNATURE_BYTES];
    char hex[2 * AFF_SIGNATURE_BYTES + 1] = "", header[128];
    unsigned size = sizeof(signature);
    static const char hashed[] =
        "aks_test_3fQ9Zr7mW2v1\n1764000000\nPOST\n/v1/conversions?a=b\nNP-1001-approved\n{}";

    (void) state;
    assert_true(aff_sign(aff_slice_of(secret), &r, signature));
    snprintf(header, sizeof(header), "v1=");
    EVP_EncodeBlock((uint8_t *) header + 3, signature, sizeof(signature));
    assert_non_null(strstr(mistake(header, &r), "base64"));

    EVP_Digest(hashed, strlen(hashed), signature, &size, EVP_sha256(), NULL);
    aff_hex(signature, sizeof(signature), hex);
    snprintf(header, sizeof(header), "v1=%s", hex);
    assert_non_null(strstr(mistake(header, &r), "HMAC-SHA256"));
}

/* Texts of any bytes, which only must not be read beyond their ends. */
static void
random_texts(void **state)
{
    static const char alphabet[] = "v1\nPOST/?=% \r{}";
    struct aff_explained_line lines[AFF_EXPLAIN_LINES];

    (void) state;
    for (unsigned i = 0; i < 2000; i++) {
        struct aff_signed_request r = request("{ }");
        uint8_t bytes[40];
        struct aff_slice text;

        fill_random(bytes, sizeof(bytes));
        for (size_t j = 1; j < sizeof(bytes); j++) {
            bytes[j] = (uint8_t) alphabet[bytes[j] % (sizeof(alphabet) - 1)];
        }
        text = exact(bytes + 1, bytes[0] % (sizeof(bytes) - 1));
        assert_true(aff_explain_text(text, &r, lines) <= AFF_EXPLAIN_LINES);
        (void) aff_explain_signature(aff_slice_of(secret), aff_slice_of(key_id), &r, text);
        drop(text);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_are_compared),
        cmocka_unit_test(mistakes_are_found),
        cmocka_unit_test(other_forms),
        cmocka_unit_test(random_texts),
    };

    seed_random();
    return RUN(tests);
}
