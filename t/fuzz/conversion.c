/* A payload that decodes encodes to the same bytes. */

#include "fuzz.h"

#include "amount.h"
#include "conversion.h"
#include "frame.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct aff_conversion conversion;
    static uint8_t out[AFF_FRAME_PAYLOAD_MAX];

    if (!aff_conversion_decode(AFF_CONVERSION_VERSION, aff_slice(data, size), &conversion)) {
        return 0;
    }

    require(conversion.items_count <= AFF_ITEMS_MAX);
    require(conversion.amount_minor >= 0 && conversion.amount_minor <= AFF_AMOUNT_MINOR_MAX);
    require(aff_status_name(conversion.status) != NULL);
    require(aff_conversion_encode(&conversion, out, sizeof(out)) == size);
    require(memcmp(out, data, size) == 0);

    return 0;
}
