/* Sealing and reading frames. */

#include "frame.h"

#include "bytes.h"
#include "crc32c.h"

uint32_t
aff_frame_seed(uint64_t spool_id, uint64_t segment)
{
    uint8_t name[16];

    aff_store_le64(name, spool_id);
    aff_store_le64(name + 8, segment);

    return aff_crc32c(0, name, sizeof(name));
}

size_t
aff_frame_seal(uint8_t *frame, uint8_t type, uint8_t version, size_t payload_len, uint32_t seed)
{
    size_t length = aff_frame_length(payload_len);
    size_t end = AFF_FRAME_HEADER_BYTES + payload_len;
    uint32_t *length_field = __builtin_assume_aligned(frame, AFF_FRAME_ALIGN);

    memset(frame + end, 0, length - end);

    frame[8] = type;
    frame[9] = version;
    aff_store_le16(frame + 10, (uint16_t) payload_len);
    aff_store_le32(frame + 4, aff_crc32c(seed, frame + 8, length - 8));

    __atomic_store_n(length_field, AFF_LE32((uint32_t) length), __ATOMIC_RELEASE);

    return length;
}

enum aff_frame_result
aff_frame_read(struct aff_slice data, uint32_t seed, struct aff_frame *frame)
{
    const uint8_t *p = data.data;
    size_t length;
    size_t payload_len;

    if (data.len < AFF_FRAME_HEADER_BYTES) {
        return AFF_FRAME_END;
    }

    length = aff_load_le32(p);
    payload_len = aff_load_le16(p + 10);

    if (length == 0) {
        return AFF_FRAME_END;
    }

    if (length > AFF_FRAME_MAX || length > data.len || length != aff_frame_length(payload_len)) {
        return AFF_FRAME_CORRUPT;
    }

    if (aff_crc32c(seed, p + 8, length - 8) != aff_load_le32(p + 4)) {
        return AFF_FRAME_CORRUPT;
    }

    for (size_t i = AFF_FRAME_HEADER_BYTES + payload_len; i < length; i++) {
        if (p[i] != 0) {
            return AFF_FRAME_CORRUPT;
        }
    }

    frame->type = p[8];
    frame->version = p[9];
    frame->payload = aff_slice(p + AFF_FRAME_HEADER_BYTES, payload_len);
    frame->length = length;

    return AFF_FRAME_OK;
}
