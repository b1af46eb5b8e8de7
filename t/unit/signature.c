/* Request signatures: the published vector, pieces, headers taken and refused, timestamps. */

#include "unit.h"

#include "signature.h"

#define HEX  "499c1b6f2d1c1ba9f751fd94225c81abefdd27e2934561e6d58d3dbdb084d857"
#define ONES "1111111111111111111111111111111111111111111111111111111111111111"

static const char secret[] = "aks_test_3fQ9Zr7mW2";
static const char body[] = "{\"click_id\":\"c_01J9\",\"order_id\":\"NP-1001\",\"status\":"
                           "\"approved\",\"amount\":\"1250.50\",\"currency\":\"NPR\"}";

static struct aff_signed_request
request_of(const struct aff_slice *pieces, size_t count)
{
    return (struct aff_signed_request){
        .timestamp = aff_slice_of("1764000000"),
        .method = aff_slice_of("POST"),
        .path_with_query = aff_slice_of("/v1/conversions"),
        .idempotency_key = aff_slice_of("NP-1001-approved"),
        .body = pieces,
        .body_pieces = count,
    };
}

static void
vector(void **state)
{
    struct aff_slice whole = aff_slice_of(body);
    struct aff_signed_request request = request_of(&whole, 1);
    uint8_t signature[AFF_SIGNATURE_BYTES];
    char hex[2 * AFF_SIGNATURE_BYTES];

    (void) state;
    assert_true(aff_sign(aff_slice_of(secret), &request, signature));
    aff_hex(signature, sizeof(signature), hex);
    assert_memory_equal(hex, HEX, sizeof(hex));
}

static void
pieces(void **state)
{
    uint8_t signature[AFF_SIGNATURE_BYTES];
    char hex[2 * AFF_SIGNATURE_BYTES];

    (void) state;

    for (size_t cut = 0; cut < sizeof(body); cut++) {
        struct aff_slice parts[3] = {aff_slice(body, cut), aff_slice(NULL, 0),
            aff_slice(body + cut, sizeof(body) - 1 - cut)};
        struct aff_signed_request request = request_of(parts, 3);

        assert_true(aff_sign(aff_slice_of(secret), &request, signature));
        aff_hex(signature, sizeof(signature), hex);
        assert_memory_equal(hex, HEX, sizeof(hex));
    }
}

/* Each part counts, also where bytes move from one part to the next. */
static void
every_part_counts(void **state)
{
    struct aff_slice whole = aff_slice_of(body);
    uint8_t given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES];
    uint8_t expected[AFF_SIGNATURE_BYTES];
    struct aff_signed_request requests[6];

    (void) state;
    assert_int_equal(aff_signature_parse(aff_slice_of("v1=" HEX), given), 1);

    for (size_t i = 0; i < COUNT(requests); i++) {
        requests[i] = request_of(&whole, 1);
    }
    requests[0].timestamp = aff_slice_of("1764000001");
    requests[1].method = aff_slice_of("GET");
    requests[2].path_with_query = aff_slice_of("/v1/conversions?");
    requests[3].idempotency_key = aff_slice_of("NP-1001-approve");
    requests[4].idempotency_key = aff_slice(NULL, 0);
    requests[5].body_pieces = 0;

    for (size_t i = 0; i < COUNT(requests); i++) {
        assert_true(aff_sign(aff_slice_of(secret), &requests[i], expected));
        assert_false(aff_signature_match(expected, given, 1));
    }

    requests[0] = request_of(&whole, 1);
    assert_true(aff_sign(aff_slice_of("aks_test_3fQ9Zr7mW3"), &requests[0], expected));
    assert_false(aff_signature_match(expected, given, 1));
    assert_true(aff_sign(aff_slice_of(secret), &requests[0], expected));
    assert_true(aff_signature_match(expected, given, 1));
    assert_false(aff_signature_match(expected, given, 0));

    for (unsigned at = 0; at < AFF_SIGNATURE_BYTES; at++) {
        given[0][at] ^= 1;
        assert_false(aff_signature_match(expected, given, 1));
        given[0][at] ^= 1;
    }
}

static void
headers(void **state)
{
    static const struct {
        const char *header;
        unsigned count;
    } table[] = {
        {"v1=" HEX, 1},
        {"v1=" HEX ",v1=" ONES, 2},
        {" v1=" HEX "\t, v1=" ONES " ", 2},
        {"v2=abc,v1=" HEX ",v0=x=y", 1},
        {"v1=" ONES ",v1=" ONES ",v1=" ONES ",v1=" HEX, 4},
        {"v1=" ONES ",v1=" ONES ",v1=" ONES ",v1=" ONES ",v1=" HEX, 0},
        {"v2=abc", 0},
        {"", 0},
        {" ", 0},
        {",", 0},
        {"v1=" HEX ",", 0},
        {",v1=" HEX, 0},
        {"v1=" HEX ",,v1=" HEX, 0},
        {"v1=", 0},
        {"v1", 0},
        {HEX, 0},
        {"=" HEX, 0},
        {"v1 =" HEX, 0},
        {"v1= " HEX, 0},
        {"V1=" HEX, 0},
        {"v1=" HEX "0", 0},
        {"v1=499C1b6f2d1c1ba9f751fd94225c81abefdd27e2934561e6d58d3dbdb084d857", 0},
        {"v1=g99c1b6f2d1c1ba9f751fd94225c81abefdd27e2934561e6d58d3dbdb084d857", 0},
        {"v1=" HEX ";v1=" HEX, 0},
    };

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        struct aff_slice copy = exact(table[i].header, strlen(table[i].header));
        uint8_t given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES];

        assert_int_equal(aff_signature_parse(copy, given), table[i].count);
        drop(copy);
    }
}

static void
truncated(void **state)
{
    static const char header[] = "v1=" HEX ",v1=" ONES;

    (void) state;

    for (size_t len = 0; len < sizeof(header); len++) {
        struct aff_slice copy = exact(header, len);
        uint8_t given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES];
        unsigned want = len == sizeof(header) - 1 ? 2 : len == 67;

        assert_int_equal(aff_signature_parse(copy, given), want);
        drop(copy);
    }
}

static void
rotating_merchant(void **state)
{
    uint8_t given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES];
    uint8_t expected[AFF_SIGNATURE_BYTES];
    struct aff_slice whole = aff_slice_of(body);
    struct aff_signed_request request = request_of(&whole, 1);

    (void) state;
    assert_true(aff_sign(aff_slice_of(secret), &request, expected));
    assert_int_equal(aff_signature_parse(aff_slice_of("v1=" ONES ",v1=" HEX), given), 2);
    assert_true(aff_signature_match(expected, given, 2));
    assert_false(aff_signature_match(expected, given, 1));
}

static void
timestamps(void **state)
{
    static const char *const refused[] = {
        "", "-1", "+1", " 1", "1 ", "1.0", "1e9", "0x10", "123456789012", "176400000O"};
    int64_t seconds = 0;

    (void) state;

    for (size_t i = 0; i < COUNT(refused); i++) {
        assert_false(aff_timestamp_parse(aff_slice_of(refused[i]), &seconds));
    }

    assert_true(aff_timestamp_parse(aff_slice_of("1764000000"), &seconds));
    assert_true(seconds == 1764000000);
    assert_true(aff_timestamp_parse(aff_slice_of("99999999999"), &seconds));
    assert_true(seconds == 99999999999);
    assert_true(aff_timestamp_parse(aff_slice_of("0"), &seconds));
    assert_true(seconds == 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vector),
        cmocka_unit_test(pieces),
        cmocka_unit_test(every_part_counts),
        cmocka_unit_test(headers),
        cmocka_unit_test(truncated),
        cmocka_unit_test(rotating_merchant),
        cmocka_unit_test(timestamps),
    };

    return RUN(tests);
}
