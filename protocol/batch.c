/* Batch headers: writing, reading, and the MAC over both header and frames; seals of what is
 * committed. */

#include "batch.h"

#include "bytes.h"
#include "siphash.h"

#define MAC_OFFSET 40

/* A frame is never shorter, so this bounds the records that a payload can hold. */
#define FRAME_BYTES_MIN 16

static const uint8_t magic[4] = {'A', 'F', 'B', '1'};

static uint64_t
batch_mac(const uint8_t key[AFF_MAC_KEY_BYTES], const uint8_t *header, struct aff_slice payload)
{
    struct aff_siphash hash;

    aff_siphash_init(&hash, key);
    aff_siphash_update(&hash, header, MAC_OFFSET);
    aff_siphash_update(&hash, payload.data, payload.len);

    return aff_siphash_final(&hash);
}

void
aff_batch_header(const struct aff_batch *batch, const struct aff_keyring *ring,
    uint8_t header[AFF_BATCH_HEADER_BYTES])
{
    memcpy(header, magic, sizeof(magic));
    aff_store_le32(header + 4, batch->channel);
    aff_store_le64(header + 8, batch->spool_id);
    aff_store_le64(header + 16, batch->segment);
    aff_store_le32(header + 24, batch->sequence);
    aff_store_le32(header + 28, batch->records);
    aff_store_le32(header + 32, (uint32_t) batch->payload.len);
    aff_store_le32(header + 36, 0);
    aff_store_le64(header + MAC_OFFSET, batch_mac(ring->keys[0].batch, header, batch->payload));
}

enum aff_batch_result
aff_batch_read(struct aff_slice data, const struct aff_keyring *ring, struct aff_batch *batch)
{
    const uint8_t *p = data.data;
    uint64_t mac;

    if (data.len < AFF_BATCH_HEADER_BYTES || data.len > AFF_BATCH_MAX ||
        memcmp(p, magic, sizeof(magic)) != 0 || aff_load_le32(p + 36) != 0) {
        return AFF_BATCH_MALFORMED;
    }

    batch->channel = p[4];
    batch->spool_id = aff_load_le64(p + 8);
    batch->segment = aff_load_le64(p + 16);
    batch->sequence = aff_load_le32(p + 24);
    batch->records = aff_load_le32(p + 28);
    batch->payload = aff_slice(p + AFF_BATCH_HEADER_BYTES, data.len - AFF_BATCH_HEADER_BYTES);

    if ((batch->channel != AFF_CHANNEL_CLICKS && batch->channel != AFF_CHANNEL_CONVERSIONS) ||
        p[5] != 0 || p[6] != 0 || p[7] != 0 || aff_load_le32(p + 32) != batch->payload.len ||
        batch->records > batch->payload.len / FRAME_BYTES_MIN) {
        return AFF_BATCH_MALFORMED;
    }

    batch->key = 0;

    if (ring == NULL) {
        return AFF_BATCH_OK;
    }

    mac = aff_load_le64(p + MAC_OFFSET);

    for (unsigned i = 0; i < ring->count; i++) {
        /* Two words: equal or not in one comparison, so there is no byte to time. */
        if (batch_mac(ring->keys[i].batch, p, batch->payload) == mac) {
            batch->key = (uint8_t) i;
            return AFF_BATCH_OK;
        }
    }

    return AFF_BATCH_FORGED;
}

uint64_t
aff_ack_seal(const struct aff_batch *batch, const struct aff_keyring *ring, unsigned key)
{
    uint8_t name[24];
    uint64_t mac;

    aff_store_le32(name, batch->channel);
    aff_store_le32(name + 4, batch->sequence);
    aff_store_le64(name + 8, batch->spool_id);
    aff_store_le64(name + 16, batch->segment);
    mac = aff_siphash(ring->keys[key].ack, name, sizeof(name));

    /* A string in Redis is zeros where nothing was written. */
    return mac != 0 ? mac : 1;
}

bool
aff_ack_valid(const struct aff_batch *batch, const struct aff_keyring *ring, uint64_t seal)
{
    for (unsigned i = 0; i < ring->count; i++) {
        if (aff_ack_seal(batch, ring, i) == seal) {
            return true;
        }
    }

    return false;
}
