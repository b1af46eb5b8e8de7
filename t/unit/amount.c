/* Amounts of money: texts taken and refused, currencies, and both directions. */

#include "unit.h"

#include "amount.h"

static void
taken(void **state)
{
    static const struct {
        const char *text;
        int decimals;
        int64_t minor;
        const char *canonical;
    } table[] = {
        {"1250.50", 2, 125050, "1250.50"},
        {"1250.5", 2, 125050, "1250.50"},
        {"1250", 2, 125000, "1250.00"},
        {"0", 2, 0, "0.00"},
        {"0.01", 2, 1, "0.01"},
        {"0.0", 2, 0, "0.00"},
        {"7", 0, 7, "7"},
        {"1.234", 3, 1234, "1.234"},
        {"0.0001", 4, 1, "0.0001"},
        {"999999999999999.99", 2, AFF_AMOUNT_MINOR_MAX, "999999999999999.99"},
        {"99999999999999999", 0, AFF_AMOUNT_MINOR_MAX, "99999999999999999"},
    };

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        struct aff_slice copy = exact(table[i].text, strlen(table[i].text));
        const char *rule = NULL;
        char text[AFF_AMOUNT_TEXT_MAX];
        int64_t minor = -1;

        assert_true(aff_amount_parse(copy, table[i].decimals, &minor, &rule));
        assert_true(minor == table[i].minor);
        assert_int_equal(
            aff_amount_format(minor, table[i].decimals, text), strlen(table[i].canonical));
        assert_string_equal(text, table[i].canonical);
        drop(copy);
    }
}

static void
refused(void **state)
{
    static const struct {
        const char *text;
        int decimals;
        const char *rule;
    } table[] = {
        {"", 2, "is empty"},
        {".", 2, "must have digits on both"},
        {".5", 2, "must have digits on both"},
        {"5.", 2, "must have digits on both"},
        {"1.", 0, "must have digits on both"},
        {"-1", 2, "must be decimal digits"},
        {"+1", 2, "must be decimal digits"},
        {" 1", 2, "must be decimal digits"},
        {"1 ", 2, "must be decimal digits"},
        {"1,000", 2, "must be decimal digits"},
        {"1.000,00", 2, "must be decimal digits"},
        {"1e3", 2, "must be decimal digits"},
        {"1.2.3", 2, "must be decimal digits"},
        {"0x1", 2, "must be decimal digits"},
        {"\xe0\xa5\xa7", 2, "must be decimal digits"}, /* a Devanagari one */
        {"00", 2, "must not begin with a superfluous zero"},
        {"01.5", 2, "must not begin with a superfluous zero"},
        {"1.005", 2, "has more decimals"},
        {"1.0", 0, "has more decimals"},
        {"1000000000000000.00", 2, "is more than 17 digits"},
        {"100000000000000000", 0, "is more than 17 digits"},
        {"99999999999999999999999999999999", 2, "is more than 17 digits"},
        {"1", -1, "has no known currency"},
        {"1", 5, "has no known currency"},
    };

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        struct aff_slice copy = exact(table[i].text, strlen(table[i].text));
        const char *rule = NULL;
        int64_t minor;

        assert_false(aff_amount_parse(copy, table[i].decimals, &minor, &rule));
        assert_non_null(rule);
        assert_memory_equal(rule, table[i].rule, strlen(table[i].rule));
        drop(copy);
    }
}

static void
formatted(void **state)
{
    static const struct {
        int64_t minor;
        int decimals;
        const char *text;
    } table[] = {
        {-1, 2, "-0.01"},
        {-125050, 2, "-1250.50"},
        {-5, 0, "-5"},
        {INT64_MIN, 2, "-92233720368547758.08"},
        {INT64_MIN, 4, "-922337203685477.5808"},
        {INT64_MAX, 0, "9223372036854775807"},
        {100, 3, "0.100"},
    };

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        char text[AFF_AMOUNT_TEXT_MAX];

        assert_int_equal(
            aff_amount_format(table[i].minor, table[i].decimals, text), strlen(table[i].text));
        assert_string_equal(text, table[i].text);
    }
}

static void
both_ways(void **state)
{
    (void) state;

    for (unsigned i = 0; i < 20000; i++) {
        int64_t minor =
            (int64_t) ((next_random() >> (next_random() % 64)) % (AFF_AMOUNT_MINOR_MAX + 1ULL));
        int decimals = (int) (next_random() % 5);
        char text[AFF_AMOUNT_TEXT_MAX];
        size_t len = aff_amount_format(minor, decimals, text);
        const char *rule = NULL;
        int64_t got;

        assert_true(aff_amount_parse(aff_slice(text, len), decimals, &got, &rule));
        assert_true(got == minor);
    }
}

static void
currencies(void **state)
{
    static const struct {
        const char *code;
        int decimals;
    } table[] = {
        {"NPR", 2},
        {"INR", 2},
        {"USD", 2},
        {"EUR", 2},
        {"JPY", 0},
        {"KRW", 0},
        {"VND", 0},
        {"XOF", 0},
        {"KWD", 3},
        {"BHD", 3},
        {"TND", 3},
        {"CLF", 4},
        {"UYW", 4},
        {"AED", 2},
        {"ZWG", 2},
        {"XCG", 2},
        {"SLE", 2},
        {"VED", 2},
        {"XXX", -1},
        {"XAU", -1},
        {"XTS", -1},
        {"npr", -1},
        {"NP", -1},
        {"NPRX", -1},
        {"", -1},
        {"AAA", -1},
        {"ZZZ", -1},
        {"DEM", -1},
    };
    unsigned count = 0;

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        assert_int_equal(aff_currency_decimals(aff_slice_of(table[i].code)), table[i].decimals);
    }

    /* Each code of the sorted table is found, so it is sorted. */
    for (unsigned n = 0; n < 26 * 26 * 26; n++) {
        char code[4] = {(char) ('A' + n / 676), (char) ('A' + n / 26 % 26), (char) ('A' + n % 26)};

        count += aff_currency_decimals(aff_slice_of(code)) >= 0;
    }

    assert_int_equal(count, 165);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(taken),
        cmocka_unit_test(refused),
        cmocka_unit_test(formatted),
        cmocka_unit_test(both_ways),
        cmocka_unit_test(currencies),
    };

    seed_random();
    return RUN(tests);
}
