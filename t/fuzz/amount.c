/* A text that parses formats to the same amount, for every number of decimals. */

#include "fuzz.h"

#include "amount.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    (void) aff_currency_decimals(aff_slice(data, size));

    for (int decimals = -1; decimals <= 5; decimals++) {
        char text[AFF_AMOUNT_TEXT_MAX];
        const char *rule = NULL;
        int64_t minor;
        int64_t again;

        if (!aff_amount_parse(aff_slice(data, size), decimals, &minor, &rule)) {
            require(rule != NULL);
            continue;
        }

        require(minor >= 0 && minor <= AFF_AMOUNT_MINOR_MAX);
        require(aff_amount_parse(
            aff_slice(text, aff_amount_format(minor, decimals, text)), decimals, &again, &rule));
        require(again == minor);
    }

    return 0;
}
