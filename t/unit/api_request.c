/* From a head of SCGI to a route and fields, and how fast somebody may do so. */

#include "unit.h"

#include "worker/api/rate.h"
#include "worker/api/request.h"
#include "worker/api/scgi.h"

/* "N:" CONTENT ","; the content's NULs are written as |. */
static enum scgi_result
parse(const char *content, struct scgi_head *head, size_t *consumed)
{
    static char text[2048];
    int len = snprintf(text, sizeof(text), "%zu:%s,", strlen(content), content);

    for (int i = 0; i < len; i++) {
        text[i] = (char) (text[i] == '|' ? '\0' : text[i]);
    }

    return scgi_parse(aff_slice(text, (size_t) len), head, consumed);
}

static void
test_scgi(void **state)
{
    static const char protocol[] = "70:CONTENT_LENGTH\0"
                                   "27\0SCGI\0"
                                   "1\0REQUEST_METHOD\0"
                                   "POST\0REQUEST_URI\0/deepthought\0,What is the answer to life?";
    static struct scgi_head head;
    struct aff_slice value;
    size_t consumed = 0;

    (void) state;
    for (size_t len = 0; len < 74; len++) {
        assert_int_equal(scgi_parse(aff_slice(protocol, len), &head, &consumed), SCGI_MORE);
    }

    assert_int_equal(
        scgi_parse(aff_slice(protocol, sizeof(protocol) - 1), &head, &consumed), SCGI_DONE);
    assert_int_equal(consumed, 74);
    assert_int_equal(head.content_length, 27);
    assert_int_equal(scgi_find(&head, "REQUEST_URI", &value), 1);
    assert_true(aff_slice_equal(value, aff_slice_of("/deepthought")));
    assert_int_equal(scgi_find(&head, "REQUEST", &value), 0);
    assert_int_equal(value.len, 0);
}

static void
test_scgi_refused(void **state)
{
    static const struct {
        const char *content;
        enum scgi_result result;
    } cases[] = {
        {"CONTENT_LENGTH|0|SCGI|1|", SCGI_DONE},
        {"CONTENT_LENGTH|0|SCGI|1|X||X|2|", SCGI_DONE},
        {"SCGI|1|CONTENT_LENGTH|0|", SCGI_MALFORMED},
        {"CONTENT_LENGTH|0|", SCGI_MALFORMED},
        {"CONTENT_LENGTH|0|SCGI|2|", SCGI_MALFORMED},
        {"CONTENT_LENGTH|0|SCGI|1|SCGI|1|", SCGI_MALFORMED},
        {"CONTENT_LENGTH|0|CONTENT_LENGTH|0|SCGI|1|", SCGI_MALFORMED},
        {"CONTENT_LENGTH|-1|SCGI|1|", SCGI_MALFORMED},
        {"CONTENT_LENGTH|1x|SCGI|1|", SCGI_MALFORMED},
        {"CONTENT_LENGTH||SCGI|1|", SCGI_MALFORMED},
        {"CONTENT_LENGTH|1234567890123456789|SCGI|1|", SCGI_MALFORMED},
        {"CONTENT_LENGTH|0|SCGI|1", SCGI_MALFORMED},
        {"CONTENT_LENGTH|0|SCGI|1|X|", SCGI_MALFORMED},
        {"CONTENT_LENGTH|0|SCGI|1||x|", SCGI_MALFORMED},
        {"", SCGI_MALFORMED},
    };
    static struct scgi_head head;
    size_t consumed;

    (void) state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_int_equal(parse(cases[i].content, &head, &consumed), cases[i].result);
    }

    assert_int_equal(scgi_parse(aff_slice_of(":"), &head, &consumed), SCGI_MALFORMED);
    assert_int_equal(scgi_parse(aff_slice_of("01:"), &head, &consumed), SCGI_MALFORMED);
    assert_int_equal(scgi_parse(aff_slice_of("GET / HTTP/1.1"), &head, &consumed), SCGI_MALFORMED);
    assert_int_equal(scgi_parse(aff_slice_of("70000:"), &head, &consumed), SCGI_TOO_LARGE);
    assert_int_equal(scgi_parse(aff_slice_of("999999999"), &head, &consumed), SCGI_TOO_LARGE);
    assert_int_equal(scgi_parse(aff_slice_of("3:a\0b;"), &head, &consumed), SCGI_MORE);
    assert_int_equal(scgi_parse(aff_slice("3:a\0b;", 6), &head, &consumed), SCGI_MALFORMED);
}

static const char *
found(const char *method, const char *path, struct route_match *match)
{
    route_find(aff_slice_of(method), aff_slice_of(path), match);
    return match->route == NULL ? "" : match->route->operation;
}

static void
test_router(void **state)
{
    struct route_match match;

    (void) state;
    assert_string_equal(found("GET", "/api/v1/me", &match), "me_show");
    assert_string_equal(found("HEAD", "/api/v1/me", &match), "me_show");
    assert_string_equal(found("PATCH", "/api/v1/me", &match), "me_update");
    assert_string_equal(found("DELETE", "/api/v1/sessions/7%2F8", &match), "session_revoke");
    assert_int_equal(match.count, 1);
    assert_true(aff_slice_equal(match.params[0].name, aff_slice_of("session")));
    assert_true(aff_slice_equal(match.params[0].value, aff_slice_of("7%2F8")));

    assert_string_equal(found("POST", "/api/v1/me", &match), "");
    assert_string_equal(match.allow, "GET, HEAD, PATCH");
    assert_string_equal(found("GET", "/api/v1/me/", &match), "");
    assert_string_equal(match.allow, "");
    assert_string_equal(found("DELETE", "/api/v1/sessions/", &match), "");
    assert_string_equal(found("GET", "/api/v1", &match), "");
    assert_string_equal(found("GET", "", &match), "");
    assert_string_equal(found("GET", "/", &match), "");
    assert_string_equal(found("get", "/api/v1/me", &match), "");
}

static void
test_accept(void **state)
{
    static const struct {
        const char *header;
        bool offered, taken, csv;
    } cases[] = {
        {"", true, true, false},
        {"*/*", true, true, false},
        {"text/csv", true, true, true},
        {"text/csv", false, false, false},
        {"TEXT/CSV ; q=0.5, application/json;q=0.4", true, true, true},
        {"text/csv;q=0.4, application/json;q=0.5", true, true, false},
        {"text/*, */*;q=0.1", true, true, true},
        {"text/html, */*;q=0.8", true, true, false},
        {"text/html", true, false, false},
        {"application/json;q=0", true, false, false},
        {"application/*;q=0.2, text/csv;q=0", true, true, false},
        {"application/json;version=1;q=1", false, true, false},
    };
    bool csv;

    (void) state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_int_equal(
            accept_choose(aff_slice_of(cases[i].header), cases[i].offered, &csv), cases[i].taken);
        assert_int_equal(csv, cases[i].csv);
    }
}

/* The fields of a query and a body; or the code of what is wrong. */
static const char *
fields_of(const char *query, const char *body, json_t **fields)
{
    static struct request_fault fault;

    *fields = json_object();
    fault = (struct request_fault){.code = ""};
    if (!request_query(aff_slice_of(query), *fields, &fault) ||
        !request_body(aff_slice_of(body), *fields, &fault)) {
        json_decref(*fields);
        *fields = NULL;
    }

    return fault.code;
}

static void
test_fields(void **state)
{
    json_t *fields;

    (void) state;
    assert_string_equal(
        fields_of("a=1+2&b=%E0%A4%A8&c", "{\"d\": {\"D\": [1, null]}}", &fields), "");
    assert_string_equal(json_string_value(json_object_get(fields, "a")), "1 2");
    assert_string_equal(json_string_value(json_object_get(fields, "b")), "\xe0\xa4\xa8");
    assert_string_equal(json_string_value(json_object_get(fields, "c")), "");
    assert_int_equal(json_array_size(json_object_get(json_object_get(fields, "d"), "D")), 2);
    json_decref(fields);
}

static void
test_fields_refused(void **state)
{
    static const char *const cases[][3] = {
        {"a=1&a=2", "", "duplicate_parameter"},
        {"a=1", "{\"a\": 1}", "duplicate_parameter"},
        {"", "{\"a\": 1, \"a\": 2}", "malformed_json"},
        {"", "{\"a\": {\"b\": 1, \"b\": 2}}", "malformed_json"},
        {"", "[]", "malformed_json"},
        {"", "\"a\"", "malformed_json"},
        {"", "{\"a\": 1", "malformed_json"},
        {"", "{\"a\": 1} x", "malformed_json"},
        {"", "{\"a\": \"\\u0000\"}", "malformed_json"},
        {"", "{\"a\": \"\xff\"}", "malformed_json"},
        {"", "{\"a\": 123456789012345678901234567890}", "malformed_json"},
        {"", "{\"a\":[[[[[[[[1]]]]]]]]}", "malformed_json"},
        {"", "{\"_a\": 1}", "invalid_field"},
        {"", "{\"A\": 1}", "invalid_field"},
        {"", "{\"\": 1}", "invalid_field"},
        {"_token=1", "", "invalid_field"},
        {"a-b=1", "", "invalid_field"},
        {"a=%00", "", "malformed_parameter"},
        {"a=%ff", "", "malformed_parameter"},
        {"a=%f", "", "malformed_parameter"},
        {"%zz=1", "", "malformed_parameter"},
    };
    json_t *fields;

    (void) state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_string_equal(fields_of(cases[i][0], cases[i][1], &fields), cases[i][2]);
    }
}

static void
test_path_fields(void **state)
{
    struct route_match match = {.count = 1};
    struct request_fault fault;
    json_t *fields = json_object();

    (void) state;
    match.params[0] =
        (struct route_param){.name = aff_slice_of("sku"), .value = aff_slice_of("a+b%2F%20c")};
    assert_true(request_path(&match, fields, &fault));
    assert_string_equal(json_string_value(json_object_get(fields, "sku")), "a+b/ c");
    assert_false(request_path(&match, fields, &fault));
    assert_string_equal(fault.code, "duplicate_parameter");

    json_object_clear(fields);
    match.params[0].value = aff_slice_of("%2");
    assert_false(request_path(&match, fields, &fault));
    assert_string_equal(fault.code, "malformed_parameter");
    json_decref(fields);
}

static void
test_headers(void **state)
{
    struct aff_slice value;
    char prefix[REQUEST_ADDRESS_MAX];

    (void) state;
    assert_true(request_cookie(aff_slice_of("a=1; __Host-x=abc;b=2"), "__Host-x", &value));
    assert_true(aff_slice_equal(value, aff_slice_of("abc")));
    assert_false(request_cookie(aff_slice_of("__Host-x=a; __Host-x=b"), "__Host-x", &value));
    assert_false(request_cookie(aff_slice_of("a__Host-x=a; __Host-xy=b"), "__Host-x", &value));
    assert_false(request_cookie(aff_slice_of(""), "__Host-x", &value));

    assert_true(
        request_type_is(aff_slice_of("Application/JSON; charset=utf-8"), "application/json"));
    assert_true(request_type_is(aff_slice_of("text/csv"), "text/csv"));
    assert_false(request_type_is(aff_slice_of("text/csvx"), "text/csv"));
    assert_false(request_type_is(aff_slice_of("text"), "text/csv"));

    request_address_prefix(aff_slice_of("203.0.113.77"), prefix);
    assert_string_equal(prefix, "203.0.113.0/24");
    request_address_prefix(aff_slice_of("2001:db8:1:2:3::4"), prefix);
    assert_string_equal(prefix, "2001:db8:1::/48");
    request_address_prefix(aff_slice_of("unix:"), prefix);
    assert_string_equal(prefix, "");
}

#define SECOND 1000000

static void
test_rate(void **state)
{
    const struct rate_policy policy = {"test", 10, 60}, none = {"none", 0, 60};
    struct aff_slice asha = aff_slice_of("asha"), bikram = aff_slice_of("bikram");
    struct rate_state now;
    int64_t at = 1000 * (int64_t) SECOND;

    (void) state;
    for (int i = 0; i < 10; i++) {
        assert_true(rate_take(&policy, asha, 1, at, &now));
        assert_int_equal(now.left, 9 - i);
    }

    assert_false(rate_take(&policy, asha, 1, at, &now));
    assert_int_equal(now.retry_s, 6);
    assert_int_equal(now.reset_s, 60);
    assert_false(rate_take(&policy, asha, 0, at, &now));
    assert_true(rate_take(&policy, bikram, 1, at, &now));

    /* One every six seconds comes back. */
    assert_true(rate_take(&policy, asha, 0, at + 6 * SECOND, &now));
    assert_true(rate_take(&policy, asha, 1, at + 6 * SECOND, &now));
    assert_false(rate_take(&policy, asha, 1, at + 6 * SECOND, &now));
    assert_true(rate_take(&policy, asha, 1, at + 126 * (int64_t) SECOND, &now));
    assert_int_equal(now.left, 9);

    for (int i = 0; i < 1000; i++) {
        assert_true(rate_take(&none, asha, 1, at, &now));
    }
}

/* However many come: the table is bounded, and who is limited stays so among as many as it holds.
 */
static void
test_rate_many(void **state)
{
    const struct rate_policy policy = {"many", 2, 60};
    int64_t at = 5000 * (int64_t) SECOND;
    struct rate_state now;
    char name[32];

    (void) state;
    for (int i = 0; i < 2; i++) {
        assert_true(rate_take(&policy, aff_slice_of("limited"), 1, at, &now));
    }

    for (int i = 0; i < RATE_BUCKETS * 4; i++) {
        snprintf(name, sizeof(name), "somebody %d", i);
        assert_true(rate_take(&policy, aff_slice_of(name), 1, at, &now));
    }

    assert_false(rate_take(&policy, aff_slice_of("limited"), 1, at, &now));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scgi),
        cmocka_unit_test(test_scgi_refused),
        cmocka_unit_test(test_router),
        cmocka_unit_test(test_accept),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_fields_refused),
        cmocka_unit_test(test_path_fields),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_rate),
        cmocka_unit_test(test_rate_many),
    };

    return RUN(tests);
}
