/* A header that parses, written anew from its signatures, parses to the same ones. */

#include "fuzz.h"

#include "signature.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t given[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES] = {{0}};
    uint8_t again[AFF_SIGNATURES_MAX][AFF_SIGNATURE_BYTES] = {{0}};
    char header[AFF_SIGNATURES_MAX * (2 * AFF_SIGNATURE_BYTES + 4)];
    unsigned count = aff_signature_parse(aff_slice(data, size), given);
    size_t len = 0;
    int64_t seconds;

    require(count <= AFF_SIGNATURES_MAX);

    if (aff_timestamp_parse(aff_slice(data, size), &seconds)) {
        require(seconds >= 0 && seconds <= 99999999999);
    }

    for (unsigned i = 0; i < count; i++) {
        memcpy(header + len, ",v1=", 4);
        aff_hex(given[i], AFF_SIGNATURE_BYTES, header + len + 4);
        len += 4 + 2 * AFF_SIGNATURE_BYTES;
        require(aff_signature_match(given[i], given, count));
    }

    if (count > 0) {
        require(aff_signature_parse(aff_slice(header + 1, len - 1), again) == count);
        require(memcmp(given, again, sizeof(given)) == 0);
    }

    return 0;
}
