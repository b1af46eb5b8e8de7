/* A payload that decodes encodes to the same bytes. */

#include "fuzz.h"

#include "refusal.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct aff_refusal refusal;
    static uint8_t out[AFF_REFUSAL_BYTES_MAX];

    if (!aff_refusal_decode(AFF_REFUSAL_VERSION, aff_slice(data, size), &refusal)) {
        return 0;
    }

    require(refusal.errors_count <= AFF_REFUSAL_ERRORS_MAX);
    require(refusal.status >= 200 && refusal.status <= 599);
    require(aff_refusal_encode(&refusal, out, sizeof(out)) == size);
    require(memcmp(out, data, size) == 0);

    return 0;
}
