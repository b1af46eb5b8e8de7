/* Reads a link or key record as it came, then with its MAC put right; what is read encodes to the
 * same bytes. */

#include "fuzz.h"

#include "bytes.h"
#include "projection.h"
#include "siphash.h"

static void
check_link(struct aff_slice record)
{
    uint8_t out[AFF_LINK_RECORD_MAX];
    struct aff_link link = {0};
    enum aff_projection_result result;
    const char *rule;

    /* First ask for a code that it is not, to learn the code that it is. */
    result = aff_link_decode(record, aff_slice(NULL, 0), fuzz_ring(), &link);
    require(result != AFF_PROJECTION_OK);

    if (result == AFF_PROJECTION_FORGED &&
        aff_link_decode(record, link.code, fuzz_ring(), &link) == AFF_PROJECTION_OK) {
        require(aff_url_check(link.url, NULL, &rule));
        require(aff_code_valid(link.code));
        require(aff_link_encode(&link, fuzz_ring(), out, sizeof(out)) == record.len);
        require(memcmp(out, record.data, record.len) == 0);
    }
}

static void
check_key(struct aff_slice record)
{
    uint8_t out[AFF_KEY_RECORD_MAX];
    struct aff_key key = {0};
    enum aff_projection_result result;

    result = aff_key_decode(record, aff_slice(NULL, 0), fuzz_ring(), &key);
    require(result != AFF_PROJECTION_OK);

    if (result == AFF_PROJECTION_FORGED &&
        aff_key_decode(record, key.id, fuzz_ring(), &key) == AFF_PROJECTION_OK) {
        require(aff_key_encode(&key, fuzz_ring(), out, sizeof(out)) == record.len);
        require(memcmp(out, record.data, record.len) == 0);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy;

    check_link(aff_slice(data, size));
    check_key(aff_slice(data, size));

    if (size < 8) {
        return 0;
    }

    copy = malloc(size);
    require(copy != NULL);
    memcpy(copy, data, size);
    aff_store_le64(copy + size - 8, aff_siphash(fuzz_ring()->keys[0].projection, copy, size - 8));
    check_link(aff_slice(copy, size));
    check_key(aff_slice(copy, size));
    free(copy);

    return 0;
}
