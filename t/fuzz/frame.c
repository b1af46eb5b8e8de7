/* Walks a log as it came, then once more with every frame's crc put right; what is read seals to
 * the same bytes. */

#include "fuzz.h"

#include "bytes.h"
#include "crc32c.h"
#include "frame.h"

static void
walk(struct aff_slice data, uint32_t seed)
{
    _Alignas(8) static uint8_t sealed[AFF_FRAME_MAX];
    struct aff_frame frame;

    while (aff_frame_read(data, seed, &frame) == AFF_FRAME_OK) {
        require(frame.length % AFF_FRAME_ALIGN == 0 && frame.length <= data.len);
        require(within(frame.payload, aff_slice(data.data, frame.length)));

        memset(sealed, 0xa5, frame.length);
        memcpy(sealed + AFF_FRAME_HEADER_BYTES, frame.payload.data, frame.payload.len);
        require(aff_frame_seal(sealed, frame.type, frame.version, frame.payload.len, seed) ==
                frame.length);
        require(memcmp(sealed, data.data, frame.length) == 0);

        data = aff_slice(data.data + frame.length, data.len - frame.length);
    }
}

static void
mend(uint8_t *p, size_t len, uint32_t seed)
{
    while (len >= AFF_FRAME_HEADER_BYTES) {
        size_t length = aff_load_le32(p);

        if (length < AFF_FRAME_HEADER_BYTES || length > len) {
            return;
        }

        aff_store_le32(p + 4, aff_crc32c(seed, p + 8, length - 8));
        p += length;
        len -= length;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size + 1);

    require(copy != NULL);
    memcpy(copy, data, size);
    walk(aff_slice(data, size), 1);
    mend(copy, size, 1);
    walk(aff_slice(copy, size), 1);
    free(copy);

    return 0;
}
