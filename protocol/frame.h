/*
 * A frame: one record in the spool, in a batch, in the daemon. Little-endian, aligned to 8 bytes.
 *
 *   0  u32  length   the whole frame with header and padding; a multiple of 8; 0 ends the log
 *   4  u32  crc      CRC-32C of bytes 8..length, begun with the segment's seed
 *   8  u8   type     enum aff_frame_type
 *   9  u8   version  of the payload's layout
 *  10  u16  payload  bytes of payload; the rest up to length is zero padding
 *  12  ...  payload
 *
 * The seed comes from the segment's name (spool id, number): a frame left in a recycled file by an
 * earlier segment does not verify in the next one. A writer stores length last, with release order:
 * what has a length is complete, also after kill -9 between any two instructions.
 */

#ifndef AFF_FRAME_H
#define AFF_FRAME_H

#include "slice.h"

#define AFF_FRAME_HEADER_BYTES 12
#define AFF_FRAME_ALIGN        8
#define AFF_FRAME_MAX          32768 /* the whole frame */
#define AFF_FRAME_PAYLOAD_MAX  (AFF_FRAME_MAX - AFF_FRAME_HEADER_BYTES)

enum aff_frame_type {
    AFF_FRAME_CLICK = 1,
    AFF_FRAME_CONVERSION = 2,
    AFF_FRAME_BOUNDARY =
        3, /* closes a batch in the spool: payload u32 sequence, u32 records; never shipped */
    AFF_FRAME_REFUSAL = 4, /* among conversions */
};

struct aff_frame {
    uint8_t type;
    uint8_t version;
    struct aff_slice payload; /* into the input */
    size_t length;            /* whole frame */
};

enum aff_frame_result {
    AFF_FRAME_OK,
    AFF_FRAME_END,     /* length 0, or no room for another header */
    AFF_FRAME_CORRUPT, /* bad length, crc or padding: everything from here on is not to be trusted
                        */
};

/* The seed of a segment's frames. */
uint32_t aff_frame_seed(uint64_t spool_id, uint64_t segment);

/* Whole-frame length for a payload, padding included. */
static inline size_t
aff_frame_length(size_t payload_len)
{
    return (AFF_FRAME_HEADER_BYTES + payload_len + AFF_FRAME_ALIGN - 1) &
           ~(size_t) (AFF_FRAME_ALIGN - 1);
}

/*
 * Completes the frame at `frame` (8-byte aligned), whose payload of `payload_len` bytes is already
 * in place at frame + 12: writes padding, header and crc, and length last with a release store.
 * Returns the whole length. The caller has made room of aff_frame_length(payload_len), at most
 * AFF_FRAME_MAX. If the log goes on behind this frame, the caller first zeroes the u32 that follows
 * it.
 */
size_t aff_frame_seal(
    uint8_t *frame, uint8_t type, uint8_t version, size_t payload_len, uint32_t seed);

/* Reads the frame at data[0..len); only AFF_FRAME_OK fills `frame`. */
enum aff_frame_result aff_frame_read(struct aff_slice data, uint32_t seed, struct aff_frame *frame);

#endif
