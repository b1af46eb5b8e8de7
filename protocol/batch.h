/*
 * A batch: what one Redis stream entry holds, in its one field "b". A 48-byte header, then frames
 * exactly as they stand in the spool (their crc seed comes from spool id and segment).
 *
 *   0  4    "AFB1"
 *   4  u8   channel    enum aff_channel
 *   5  u8   zero
 *   6  u16  zero
 *   8  u64  spool id   random, one for each log that a worker opens
 *  16  u64  segment    counts up within a spool id
 *  24  u32  sequence   counts up from 0 within a segment
 *  28  u32  records
 *  32  u32  payload    bytes of frames behind the header
 *  36  u32  zero
 *  40  u64  mac        SipHash-2-4 under label "batch", over bytes 0..40 and the payload
 *
 * (spool id, segment, sequence) names a batch for ever: whoever sends it again sends the same
 * records, because the spool marks where a batch ends (AFF_FRAME_BOUNDARY) before the batch is
 * sent. The MAC keeps whoever can write into Redis from making clicks or orders.
 *
 * That PostgreSQL has committed a batch is told by its seal: a u64, little-endian, at 8 * sequence
 * in the string aff:acked:<spool id, 16 hex digits>:<segment>; none is zeros. A batch that has no
 * seal of its own name stays in the spool.
 */

#ifndef AFF_BATCH_H
#define AFF_BATCH_H

#include "frame.h"
#include "keyring.h"

#define AFF_BATCH_HEADER_BYTES 48
#define AFF_BATCH_MAX          1048576 /* 1 MiB; header and payload; what a reader accepts */
#define AFF_STREAM_FIELD       "b"
#define AFF_STREAMS_MAX        64 /* a channel is spread over; what a reader reads */

enum aff_channel {
    AFF_CHANNEL_CLICKS = 1,
    AFF_CHANNEL_CONVERSIONS = 2,
};

struct aff_batch {
    uint8_t channel;
    uint64_t spool_id;
    uint64_t segment;
    uint32_t sequence;
    uint32_t records;
    uint8_t key;              /* of the ring, that made its MAC; set by reading */
    struct aff_slice payload; /* frames */
};

enum aff_batch_result {
    AFF_BATCH_OK,
    AFF_BATCH_MALFORMED, /* not a batch, or lengths or counts that cannot be */
    AFF_BATCH_FORGED,    /* no key of the ring made its MAC */
};

/* Writes the header for batch->payload (which follows it on the wire), under the current key. */
void aff_batch_header(const struct aff_batch *batch, const struct aff_keyring *ring,
    uint8_t header[AFF_BATCH_HEADER_BYTES]);

#define AFF_ACK_BYTES 8

/*
 * The seal of a batch (channel, spool id, segment, sequence count) by the ring's key `key`, never
 * 0. The key is to be the batch's own: whoever sent it has that one, also while keys are being
 * rotated.
 */
uint64_t aff_ack_seal(const struct aff_batch *batch, const struct aff_keyring *ring, unsigned key);

/* Whether some key of the ring made this seal for this batch. */
bool aff_ack_valid(const struct aff_batch *batch, const struct aff_keyring *ring, uint64_t seal);

/*
 * Reads and verifies a whole stream entry. A ring of NULL skips the MAC (a dump without the key).
 * The frames inside are not checked here: walk them with aff_frame_read().
 */
enum aff_batch_result aff_batch_read(
    struct aff_slice data, const struct aff_keyring *ring, struct aff_batch *batch);

#endif
