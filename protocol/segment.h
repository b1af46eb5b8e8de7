/*
 * A segment: a file of the spool, of fixed size. A page that begins with this header, then frames
 * (frame.h). Little-endian.
 *
 *   0  8    mark       "AFSPUSED", or "AFSPFREE": nothing in the file matters any more
 *   8  u32  version    of this layout
 *  12  u32  crc        CRC-32C of bytes 16..64, begun with the version
 *  16  u64  channel    enum aff_channel
 *  24  u64  spool id   random, one for each log that a worker opens
 *  32  u64  number     counts up within a spool id
 *  40  u64  made       unix ms of its beginning
 *  48  u64  size       of the file
 *  56  u64  zero
 *
 * A writer stores the mark last, with release order: what is marked used has a whole header, also
 * after kill -9 between any two instructions.
 */

#ifndef AFF_SEGMENT_H
#define AFF_SEGMENT_H

#include "batch.h"

#define AFF_SEGMENT_VERSION      1
#define AFF_SEGMENT_HEADER_BYTES 64
#define AFF_SEGMENT_FRAMES       4096     /* where the first frame is */
#define AFF_SEGMENT_MAX          67108864 /* 64 MiB; the whole file */
#define AFF_SEGMENT_MARK_BYTES   8
#define AFF_SEGMENT_MARK_USED    "AFSPUSED"
#define AFF_SEGMENT_MARK_FREE    "AFSPFREE"

struct aff_segment {
    uint8_t channel;
    uint64_t spool_id;
    uint64_t number;
    uint64_t made_ms;
    uint64_t size;
};

enum aff_segment_result {
    AFF_SEGMENT_USED,
    AFF_SEGMENT_FREE,
    AFF_SEGMENT_BLANK,   /* the mark is zero: allocated, and its header never reached the disk */
    AFF_SEGMENT_FOREIGN, /* no segment, or less than a header of one */
    AFF_SEGMENT_NEWER,   /* of a version that is not known here */
    AFF_SEGMENT_CORRUPT, /* marked used, but its crc or a field is wrong */
};

/*
 * Makes the file that begins at `header` (8-byte aligned) this segment: writes every field, and the
 * mark last with a release store. The caller has zeroed the first frame's length before.
 */
void aff_segment_seal(uint8_t *header, const struct aff_segment *segment);

/*
 * Reads the header at data[0..len), of which the first 64 bytes are looked at; only
 * AFF_SEGMENT_USED fills `segment`. Whether the file has the size that it says is the caller's
 * to compare.
 */
enum aff_segment_result aff_segment_read(struct aff_slice data, struct aff_segment *segment);

#endif
