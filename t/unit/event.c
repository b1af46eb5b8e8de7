/* Events: times by RFC 3339, nesting, and every rule of every field, with the pointer and the
 * number of its errors. */

#include "unit.h"

#include "click_id.h"
#include "event.h"

#define NOW_MS   1764000000000ULL
#define TTL_MS   (90ULL * 86400 * 1000)
#define MERCHANT 7

static struct aff_keyring ring;
static struct aff_conversion conversion;
static struct aff_event_errors errors;

static void
click_id(char text[AFF_CLICK_ID_CHARS + 1], uint64_t ms, uint64_t merchant, bool livemode)
{
    struct aff_click_clock clock = {0};
    uint8_t random[AFF_RANDOM_BYTES];
    uint8_t uuid[AFF_UUID_BYTES];

    fill_random(random, sizeof(random));
    aff_uuid_make(&clock, ms, random, uuid);
    aff_click_id_format(&ring.keys[0], uuid, merchant, livemode, text);
    text[AFF_CLICK_ID_CHARS] = '\0';
}

/* Reads `json`, in which @ stands for a genuine click_id and ' for ". */
static enum aff_event_result
read_click(const char *json, const char *click, bool items)
{
    static json_t *event; /* the conversion points into it */
    struct aff_event_rules rules = {.keyring = &ring,
        .merchant_id = MERCHANT,
        .items = items,
        .now_ms = NOW_MS,
        .click_ttl_ms = TTL_MS};
    char text[8192];
    size_t len = 0;

    for (const char *p = json; *p != '\0'; p++) {
        assert_true(len < sizeof(text) - AFF_CLICK_ID_CHARS - 1);
        if (*p == '@') {
            memcpy(text + len, click, strlen(click));
            len += strlen(click);
        } else {
            text[len++] = *p == '\'' ? '"' : *p;
        }
    }

    json_decref(event);
    event = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, NULL);
    assert_non_null(event);

    return aff_event_read(event, &rules, "/events/3", &conversion, &errors);
}

static enum aff_event_result
read_event(const char *json)
{
    char click[AFF_CLICK_ID_CHARS + 1];

    click_id(click, NOW_MS - 1000, MERCHANT, false);
    return read_click(json, click, true);
}

#define HEAD "{'click_id':'@','order_id':'NP-1',"
#define FULL HEAD "'status':'approved','amount':'1250.50','currency':'NPR'"

static void
accepted(void **state)
{
    uint8_t out[4096];
    size_t size;

    (void) state;
    assert_int_equal(
        read_event(FULL ",'occurred_at':'2025-11-24T18:30:00.25+05:45','customer':'new',"
                        "'reason':'ok','items':[{'sku':'S','category':'c','quantity':2,"
                        "'amount':'600.25'},{'category':'d','amount':'0'}]}"),
        AFF_EVENT_OK);
    assert_int_equal(conversion.merchant_id, MERCHANT);
    assert_int_equal(conversion.status, AFF_STATUS_APPROVED);
    assert_int_equal(conversion.amount_minor, 125050);
    assert_string_equal(conversion.currency, "NPR");
    assert_int_equal(conversion.customer, AFF_CUSTOMER_NEW);
    assert_int_equal(conversion.occurred_ms, 1763988300250);
    assert_int_equal(conversion.items_count, 2);
    assert_int_equal(conversion.items[0].quantity, 2);
    assert_int_equal(conversion.items[0].amount_minor, 60025);
    assert_int_equal(conversion.items[1].quantity, 1);
    assert_int_equal(conversion.items[1].sku.len, 0);

    /* What was promised is what the encoder takes, to the byte. */
    conversion.source = AFF_SOURCE_SINGLE;
    conversion.key_id = aff_slice_of("ak_test_AAAAAAAAAAAAAAAAAAAA");
    conversion.idempotency_key = aff_slice_of("k");
    size = aff_event_size(&conversion);
    assert_int_equal(aff_conversion_encode(&conversion, out, size), size);
    assert_int_equal(aff_conversion_encode(&conversion, out, size - 1), 0);

    assert_int_equal(read_event(HEAD "'status':'cancelled'}"), AFF_EVENT_OK);
    assert_false(conversion.has_amount);
    assert_int_equal(conversion.items_count, 0);
    assert_int_equal(read_event(HEAD "'status':'refunded'}"), AFF_EVENT_OK);
    assert_int_equal(read_event(HEAD "'status':'returned','amount':'1','currency':'JPY',"
                                     "'refund_id':'R'}"),
        AFF_EVENT_OK);
    assert_int_equal(conversion.amount_minor, 1);
}

static void
refused(void **state)
{
    /* clang-format off */
    static const struct { const char *json; const char *pointer; unsigned count; } cases[] = {
        {"5", "/events/3", 1},
        {"null", "/events/3", 1},
        {"[]", "/events/3", 1},
        {"{}", "/events/3/click_id", 3},
        {FULL ",'x':1}", "/events/3/x", 1},
        {FULL ",'a/b~c':1}", "/events/3/a~1b~0c", 1},
        {HEAD "'status':'Approved','amount':'1','currency':'NPR'}", "/events/3/status", 1},
        {HEAD "'status':'approved','amount':1,'currency':'NPR'}", "/events/3/amount", 1},
        {HEAD "'status':'approved','amount':'1,0','currency':'NPR'}", "/events/3/amount", 1},
        {HEAD "'status':'approved','amount':'+1','currency':'NPR'}", "/events/3/amount", 1},
        {HEAD "'status':'approved','amount':'1.005','currency':'NPR'}", "/events/3/amount", 1},
        {HEAD "'status':'approved','amount':'1.0','currency':'JPY'}", "/events/3/amount", 1},
        {HEAD "'status':'approved','amount':'1','currency':'npr'}", "/events/3/currency", 1},
        {HEAD "'status':'approved','amount':'1'}", "/events/3/amount", 1},
        {HEAD "'status':'pending','currency':'NPR'}", "/events/3/amount", 1},
        {HEAD "'status':'refunded','amount':'0.00','currency':'NPR'}", "/events/3/amount", 1},
        {FULL ",'refund_id':'R'}", "/events/3/refund_id", 1},
        {FULL ",'reason':''}", "/events/3/reason", 1},
        {FULL ",'reason':null}", "/events/3/reason", 1},
        {FULL ",'reason':'a\\u0007'}", "/events/3/reason", 1},
        {FULL ",'customer':'old'}", "/events/3/customer", 1},
        {FULL ",'occurred_at':'2025-11-24'}", "/events/3/occurred_at", 1},
        {FULL ",'occurred_at':'2025-11-24T16:05:01Z'}", "/events/3/occurred_at", 1}, /* 301 s ahead */
        {FULL ",'items':{}}", "/events/3/items", 1},
        {FULL ",'items':[]}", "/events/3/items", 1},
        {FULL ",'items':[1]}", "/events/3/items/0", 1},
        {FULL ",'items':[{'amount':'1'}]}", "/events/3/items/0", 1},
        {FULL ",'items':[{'sku':'s'}]}", "/events/3/items/0/amount", 1},
        {FULL ",'items':[{'sku':'s','amount':'1','quantity':0}]}", "/events/3/items/0/quantity", 1},
        {FULL ",'items':[{'sku':'s','amount':'1','quantity':1.0}]}", "/events/3/items/0/quantity", 1},
        {FULL ",'items':[{'sku':'s','amount':'1','price':1}]}", "/events/3/items/0/price", 1},
        {FULL ",'items':[{'sku':'s','amount':'999999999999999.99'},{'sku':'s','amount':'0.01'}]}",
            "/events/3/items", 1},
    };
    /* clang-format on */

    (void) state;

    for (size_t i = 0; i < COUNT(cases); i++) {
        if (read_event(cases[i].json) != AFF_EVENT_INVALID || errors.count != cases[i].count ||
            strcmp(errors.error[0].pointer, cases[i].pointer) != 0) {
            fail_msg("%s: %u errors, first %s %s", cases[i].json, errors.count,
                errors.error[0].pointer, errors.error[0].detail);
        }
    }

    /* Where items are not taken, they are a field like any unknown one. */
    assert_int_equal(read_click(FULL ",'items':[]}", "", false), AFF_EVENT_INVALID);
    assert_string_equal(errors.error[0].pointer, "/events/3/items");
    assert_string_equal(errors.error[0].detail, "is not a known field");
}

static void
bounded(void **state)
{
    char json[4096] = FULL;
    size_t len;

    (void) state;

    for (unsigned i = 0; i < AFF_EVENT_ERRORS + 5; i++) {
        len = strlen(json);
        (void) snprintf(json + len, sizeof(json) - len, ",'u%u':1", i);
    }

    (void) strcat(json, "}");
    assert_int_equal(read_event(json), AFF_EVENT_INVALID);
    assert_int_equal(errors.count, AFF_EVENT_ERRORS);
    assert_int_equal(errors.more, 5);

    /* A name of any length, of what becomes longer in a pointer, cut between characters. */
    (void) snprintf(json, sizeof(json), "%s,'", FULL);
    memset(json + strlen(json) + 600, '\0', 1);
    memset(json + strlen(json), '~', 600);
    (void) strcat(json, "':1}");
    assert_int_equal(read_event(json), AFF_EVENT_INVALID);
    assert_true(strlen(errors.error[0].pointer) < AFF_EVENT_POINTER);
}

static void
clicks(void **state)
{
    char click[AFF_CLICK_ID_CHARS + 1];

    (void) state;
    assert_int_equal(read_click(FULL "}", "c_01J9", true), AFF_EVENT_CLICK_MALFORMED);
    assert_string_equal(errors.error[0].pointer, "/events/3/click_id");

    click_id(click, NOW_MS, MERCHANT + 1, false);
    assert_int_equal(read_click(FULL "}", click, true), AFF_EVENT_CLICK_UNKNOWN);

    click_id(click, NOW_MS, MERCHANT, true);
    assert_int_equal(read_click(FULL "}", click, true), AFF_EVENT_CLICK_MODE);

    click_id(click, NOW_MS - TTL_MS, MERCHANT, false);
    assert_int_equal(read_click(FULL "}", click, true), AFF_EVENT_OK);

    click_id(click, NOW_MS - TTL_MS - 1, MERCHANT, false);
    assert_int_equal(read_click(FULL "}", click, true), AFF_EVENT_CLICK_EXPIRED);

    /* Money that goes back has no term. */
    assert_int_equal(read_click(HEAD "'status':'refunded'}", click, true), AFF_EVENT_OK);
    assert_int_equal(read_click(HEAD "'status':'cancelled'}", click, true), AFF_EVENT_OK);

    /* Fields come first. */
    assert_int_equal(read_click(HEAD "'status':'x'}", "bad", true), AFF_EVENT_INVALID);
}

static void
times(void **state)
{
    /* clang-format off */
    static const struct { const char *text; int64_t ms; } cases[] = {
        {"1970-01-01T00:00:00Z", 0},
        {"1970-01-01T05:45:00+05:45", 0},
        {"2000-02-29T23:59:59.999Z", 951868799999},
        {"2025-11-24T18:30:00+05:45", 1763988300000},
        {"2025-11-24t12:45:00.123456789z", 1763988300123},
        {"2025-11-24T12:45:00-00:00", 1763988300000},
        {"2025-11-24T00:45:00.5-12:00", 1763988300500},
        {"2016-12-31T23:59:60Z", 1483228800000},
        {"9999-12-31T23:59:59Z", 253402300799000},
        {"1969-12-31T23:59:59Z", -1}, {"1970-01-01T00:00:00+00:01", -1},
        {"2025-02-29T00:00:00Z", -1}, {"1900-02-29T00:00:00Z", -1}, {"2100-02-29T00:00:00Z", -1},
        {"2025-04-31T00:00:00Z", -1}, {"2025-13-01T00:00:00Z", -1}, {"2025-00-01T00:00:00Z", -1},
        {"2025-11-24T24:00:00Z", -1}, {"2025-11-24T23:60:00Z", -1}, {"2025-11-24T23:00:61Z", -1},
        {"2025-11-24 12:45:00Z", -1}, {"2025-11-24T12:45:00", -1}, {"2025-11-24T12:45Z", -1},
        {"2025-11-24T12:45:00.Z", -1}, {"2025-11-24T12:45:00.5", -1}, {"2025-11-24T12:45:00,5Z", -1},
        {"2025-11-24T12:45:00+0545", -1}, {"2025-11-24T12:45:00+24:00", -1},
        {"2025-11-24T12:45:00+05:60", -1}, {"2025-11-24T12:45:00ZZ", -1},
        {"+025-11-24T12:45:00Z", -1}, {"", -1},
    };
    /* clang-format on */

    (void) state;

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct aff_slice text = exact(cases[i].text, strlen(cases[i].text));
        uint64_t ms = 0;
        bool ok = aff_time_parse(text, &ms);

        if (ok != (cases[i].ms >= 0) || (ok && ms != (uint64_t) cases[i].ms)) {
            fail_msg("%s: %d %llu", cases[i].text, ok, (unsigned long long) ms);
        }

        free((void *) text.data);
    }
}

/* No text, whole or cut anywhere, is read beyond its end. */
static void
times_cut(void **state)
{
    static const char whole[] = "2025-11-24T18:30:00.25+05:45";

    (void) state;

    for (size_t len = 0; len < sizeof(whole) - 1; len++) {
        struct aff_slice text = exact(whole, len);
        uint64_t ms;

        assert_false(aff_time_parse(text, &ms));
        free((void *) text.data);
    }
}

static void
nesting(void **state)
{
    /* clang-format off */
    static const struct { const char *json; bool deep; } cases[] = {
        {"", false}, {"{}", false}, {"[[[]]]", false}, {"[[[[]]]]", true}, {"{\"a\":[{\"b\":[]}]}", true},
        {"[],[],[],[]", false}, {"\"[[[[\"", false}, {"\"\\\"[[[[\"", false}, {"\"\\\\\"[[[[", true},
        {"]]]][[[", false}, {"\"\\", false},
    };
    /* clang-format on */

    (void) state;

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct aff_slice text = exact(cases[i].json, strlen(cases[i].json));

        if (aff_json_deep(text.data, text.len, 3) != cases[i].deep) {
            fail_msg("%s", cases[i].json);
        }

        free((void *) text.data);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepted),
        cmocka_unit_test(refused),
        cmocka_unit_test(bounded),
        cmocka_unit_test(clicks),
        cmocka_unit_test(times),
        cmocka_unit_test(times_cut),
        cmocka_unit_test(nesting),
    };

    seed_random();
    ring = ring_of(KEY_FILE);
    return RUN(tests);
}
