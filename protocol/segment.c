/* Sealing and reading the headers of segments. */

#include "segment.h"

#include "bytes.h"
#include "crc32c.h"

static uint32_t
segment_crc(const uint8_t *header)
{
    return aff_crc32c(AFF_SEGMENT_VERSION, header + 16, AFF_SEGMENT_HEADER_BYTES - 16);
}

void
aff_segment_seal(uint8_t *header, const struct aff_segment *segment)
{
    uint64_t *mark_field = __builtin_assume_aligned(header, sizeof(uint64_t));
    uint64_t mark;

    aff_store_le32(header + 8, AFF_SEGMENT_VERSION);
    aff_store_le64(header + 16, segment->channel);
    aff_store_le64(header + 24, segment->spool_id);
    aff_store_le64(header + 32, segment->number);
    aff_store_le64(header + 40, segment->made_ms);
    aff_store_le64(header + 48, segment->size);
    aff_store_le64(header + 56, 0);
    aff_store_le32(header + 12, segment_crc(header));

    memcpy(&mark, AFF_SEGMENT_MARK_USED, sizeof(mark));
    __atomic_store_n(mark_field, mark, __ATOMIC_RELEASE);
}

enum aff_segment_result
aff_segment_read(struct aff_slice data, struct aff_segment *segment)
{
    const uint8_t *p = data.data;
    uint64_t channel, size;

    if (data.len < AFF_SEGMENT_HEADER_BYTES) {
        return AFF_SEGMENT_FOREIGN;
    }

    if (memcmp(p, AFF_SEGMENT_MARK_USED, AFF_SEGMENT_MARK_BYTES) != 0) {
        return memcmp(p, AFF_SEGMENT_MARK_FREE, AFF_SEGMENT_MARK_BYTES) == 0 ? AFF_SEGMENT_FREE
               : aff_load_le64(p) == 0                                       ? AFF_SEGMENT_BLANK
                                                                             : AFF_SEGMENT_FOREIGN;
    }

    if (aff_load_le32(p + 8) != AFF_SEGMENT_VERSION) {
        return AFF_SEGMENT_NEWER;
    }

    channel = aff_load_le64(p + 16);
    size = aff_load_le64(p + 48);

    if (aff_load_le32(p + 12) != segment_crc(p) ||
        (channel != AFF_CHANNEL_CLICKS && channel != AFF_CHANNEL_CONVERSIONS) ||
        size < AFF_SEGMENT_FRAMES || size > AFF_SEGMENT_MAX || aff_load_le64(p + 56) != 0) {
        return AFF_SEGMENT_CORRUPT;
    }

    segment->channel = (uint8_t) channel;
    segment->spool_id = aff_load_le64(p + 24);
    segment->number = aff_load_le64(p + 32);
    segment->made_ms = aff_load_le64(p + 40);
    segment->size = size;

    return AFF_SEGMENT_USED;
}
