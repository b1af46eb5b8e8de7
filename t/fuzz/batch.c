/* Reads a stream entry as it came, then with its MAC put right; what is read has the same header.
 */

#include "fuzz.h"

#include "batch.h"
#include "bytes.h"
#include "siphash.h"

static void
check(struct aff_slice data)
{
    uint8_t header[AFF_BATCH_HEADER_BYTES];
    struct aff_batch batch;

    if (aff_batch_read(data, fuzz_ring(), &batch) != AFF_BATCH_OK) {
        return;
    }

    require(batch.payload.len + AFF_BATCH_HEADER_BYTES == data.len);
    require(within(batch.payload, data));
    aff_batch_header(&batch, fuzz_ring(), header);
    require(memcmp(header, data.data, sizeof(header)) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *key = fuzz_ring()->keys[0].batch;
    uint8_t *copy;
    struct aff_siphash mac;
    struct aff_batch batch;

    check(aff_slice(data, size));

    if (size < AFF_BATCH_HEADER_BYTES) {
        return 0;
    }

    copy = malloc(size);
    require(copy != NULL);
    memcpy(copy, data, size);
    aff_siphash_init(&mac, key);
    aff_siphash_update(&mac, copy, 40);
    aff_siphash_update(&mac, copy + AFF_BATCH_HEADER_BYTES, size - AFF_BATCH_HEADER_BYTES);
    aff_store_le64(copy + 40, aff_siphash_final(&mac));

    /* Well-formed with and without the key are the same thing. */
    require(aff_batch_read(aff_slice(copy, size), NULL, &batch) ==
            aff_batch_read(aff_slice(copy, size), fuzz_ring(), &batch));
    check(aff_slice(copy, size));
    free(copy);

    return 0;
}
