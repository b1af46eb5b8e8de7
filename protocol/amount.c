/* Decimal text to minor units and back. */

#include "amount.h"

#include "chars.h"

#include <stdio.h>

#define DECIMALS_MAX 4 /* of any currency */

struct currency {
    char code[4];
    uint8_t decimals;
};

/* ISO 4217 list one, sorted, funds included; without what has no minor unit at all (gold, XDR,
 * codes for testing). */
static const struct currency currencies[] = {
    /* clang-format off */
    {"AED", 2}, {"AFN", 2}, {"ALL", 2}, {"AMD", 2}, {"AOA", 2}, {"ARS", 2}, {"AUD", 2}, {"AWG", 2},
    {"AZN", 2}, {"BAM", 2}, {"BBD", 2}, {"BDT", 2}, {"BHD", 3}, {"BIF", 0}, {"BMD", 2}, {"BND", 2},
    {"BOB", 2}, {"BOV", 2}, {"BRL", 2}, {"BSD", 2}, {"BTN", 2}, {"BWP", 2}, {"BYN", 2}, {"BZD", 2},
    {"CAD", 2}, {"CDF", 2}, {"CHE", 2}, {"CHF", 2}, {"CHW", 2}, {"CLF", 4}, {"CLP", 0}, {"CNY", 2},
    {"COP", 2}, {"COU", 2}, {"CRC", 2}, {"CUP", 2}, {"CVE", 2}, {"CZK", 2}, {"DJF", 0}, {"DKK", 2},
    {"DOP", 2}, {"DZD", 2}, {"EGP", 2}, {"ERN", 2}, {"ETB", 2}, {"EUR", 2}, {"FJD", 2}, {"FKP", 2},
    {"GBP", 2}, {"GEL", 2}, {"GHS", 2}, {"GIP", 2}, {"GMD", 2}, {"GNF", 0}, {"GTQ", 2}, {"GYD", 2},
    {"HKD", 2}, {"HNL", 2}, {"HTG", 2}, {"HUF", 2}, {"IDR", 2}, {"ILS", 2}, {"INR", 2}, {"IQD", 3},
    {"IRR", 2}, {"ISK", 0}, {"JMD", 2}, {"JOD", 3}, {"JPY", 0}, {"KES", 2}, {"KGS", 2}, {"KHR", 2},
    {"KMF", 0}, {"KPW", 2}, {"KRW", 0}, {"KWD", 3}, {"KYD", 2}, {"KZT", 2}, {"LAK", 2}, {"LBP", 2},
    {"LKR", 2}, {"LRD", 2}, {"LSL", 2}, {"LYD", 3}, {"MAD", 2}, {"MDL", 2}, {"MGA", 2}, {"MKD", 2},
    {"MMK", 2}, {"MNT", 2}, {"MOP", 2}, {"MRU", 2}, {"MUR", 2}, {"MVR", 2}, {"MWK", 2}, {"MXN", 2},
    {"MXV", 2}, {"MYR", 2}, {"MZN", 2}, {"NAD", 2}, {"NGN", 2}, {"NIO", 2}, {"NOK", 2}, {"NPR", 2},
    {"NZD", 2}, {"OMR", 3}, {"PAB", 2}, {"PEN", 2}, {"PGK", 2}, {"PHP", 2}, {"PKR", 2}, {"PLN", 2},
    {"PYG", 0}, {"QAR", 2}, {"RON", 2}, {"RSD", 2}, {"RUB", 2}, {"RWF", 0}, {"SAR", 2}, {"SBD", 2},
    {"SCR", 2}, {"SDG", 2}, {"SEK", 2}, {"SGD", 2}, {"SHP", 2}, {"SLE", 2}, {"SOS", 2}, {"SRD", 2},
    {"SSP", 2}, {"STN", 2}, {"SVC", 2}, {"SYP", 2}, {"SZL", 2}, {"THB", 2}, {"TJS", 2}, {"TMT", 2},
    {"TND", 3}, {"TOP", 2}, {"TRY", 2}, {"TTD", 2}, {"TWD", 2}, {"TZS", 2}, {"UAH", 2}, {"UGX", 0},
    {"USD", 2}, {"USN", 2}, {"UYI", 0}, {"UYU", 2}, {"UYW", 4}, {"UZS", 2}, {"VED", 2}, {"VES", 2},
    {"VND", 0}, {"VUV", 0}, {"WST", 2}, {"XAD", 2}, {"XAF", 0}, {"XCD", 2}, {"XCG", 2}, {"XOF", 0},
    {"XPF", 0}, {"YER", 2}, {"ZAR", 2}, {"ZMW", 2}, {"ZWG", 2},
    /* clang-format on */
};

int
aff_currency_decimals(struct aff_slice code)
{
    size_t low = 0;
    size_t high = sizeof(currencies) / sizeof(currencies[0]);

    if (code.len != 3) {
        return -1;
    }

    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = memcmp(code.data, currencies[middle].code, 3);

        if (order == 0) {
            return currencies[middle].decimals;
        }

        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }

    return -1;
}

/* The length of the digits that `text` begins with. */
static size_t
digits(struct aff_slice text)
{
    size_t n = 0;

    while (n < text.len && aff_char_digit(text.data[n])) {
        n++;
    }

    return n;
}

/* The rule that `text` breaks, or NULL; then `*whole` and `*fraction` are its digits. */
static const char *
split(struct aff_slice text, int decimals, struct aff_slice *whole, struct aff_slice *fraction)
{
    if (decimals < 0 || decimals > DECIMALS_MAX) {
        return "has no known currency";
    }

    *whole = aff_slice(text.data, digits(text));
    *fraction = aff_slice(NULL, 0);

    if (whole->len < text.len) {
        *fraction = aff_slice(text.data + whole->len + 1, text.len - whole->len - 1);

        if (text.data[whole->len] != '.' || digits(*fraction) != fraction->len) {
            return "must be decimal digits with at most one dot";
        }

        if (fraction->len == 0) {
            return "must have digits on both sides of the dot";
        }
    }

    if (whole->len == 0) {
        return text.len == 0 ? "is empty" : "must have digits on both sides of the dot";
    }

    if (whole->len > 1 && whole->data[0] == '0') {
        return "must not begin with a superfluous zero";
    }

    if (fraction->len > (size_t) decimals) {
        return "has more decimals than its currency";
    }

    if (whole->len + (size_t) decimals > 17) {
        return "is more than 17 digits of minor units";
    }

    return NULL;
}

bool
aff_amount_parse(struct aff_slice text, int decimals, int64_t *minor, const char **rule)
{
    struct aff_slice whole;
    struct aff_slice fraction;
    const char *broken = split(text, decimals, &whole, &fraction);
    int64_t value = 0;

    if (broken != NULL) {
        *rule = broken;
        return false;
    }

    for (size_t i = 0; i < whole.len; i++) {
        value = value * 10 + (whole.data[i] - '0');
    }

    for (size_t i = 0; i < (size_t) decimals; i++) {
        value = value * 10 + (i < fraction.len ? fraction.data[i] - '0' : 0);
    }

    *minor = value;
    return true;
}

size_t
aff_amount_format(int64_t minor, int decimals, char out[AFF_AMOUNT_TEXT_MAX])
{
    uint64_t magnitude = minor < 0 ? 0 - (uint64_t) minor : (uint64_t) minor;
    uint64_t unit = 1;
    int len;

    if (decimals < 0) {
        decimals = 0;
    }

    if (decimals > DECIMALS_MAX) {
        decimals = DECIMALS_MAX;
    }

    for (int i = 0; i < decimals; i++) {
        unit *= 10;
    }

    len = snprintf(out, AFF_AMOUNT_TEXT_MAX, "%s%llu", minor < 0 ? "-" : "",
        (unsigned long long) (magnitude / unit));

    if (decimals > 0) {
        len += snprintf(out + len, AFF_AMOUNT_TEXT_MAX - (size_t) len, ".%0*llu", decimals,
            (unsigned long long) (magnitude % unit));
    }

    return (size_t) len;
}
