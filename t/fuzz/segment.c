/* Reads a segment's header as it came, then with mark, version and crc put right; what is read
 * seals to the same bytes. */

#include "fuzz.h"

#include "bytes.h"
#include "crc32c.h"
#include "segment.h"

static void
check(struct aff_slice data)
{
    _Alignas(8) uint8_t sealed[AFF_SEGMENT_HEADER_BYTES];
    struct aff_segment segment;

    if (aff_segment_read(data, &segment) != AFF_SEGMENT_USED) {
        return;
    }

    require(segment.size >= AFF_SEGMENT_FRAMES && segment.size <= AFF_SEGMENT_MAX);
    memset(sealed, 0xa5, sizeof(sealed));
    aff_segment_seal(sealed, &segment);
    require(memcmp(sealed, data.data, sizeof(sealed)) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t copy[AFF_SEGMENT_HEADER_BYTES];

    check(aff_slice(data, size));

    if (size < sizeof(copy)) {
        return 0;
    }

    memcpy(copy, data, sizeof(copy));
    memcpy(copy, AFF_SEGMENT_MARK_USED, AFF_SEGMENT_MARK_BYTES);
    aff_store_le32(copy + 8, AFF_SEGMENT_VERSION);
    aff_store_le32(copy + 12, aff_crc32c(AFF_SEGMENT_VERSION, copy + 16, sizeof(copy) - 16));
    check(aff_slice(copy, sizeof(copy)));

    return 0;
}
