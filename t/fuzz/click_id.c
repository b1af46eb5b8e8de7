/* Any text against the decoder; and the input's bytes as an id, which must come back genuine. */

#include "fuzz.h"

#include "click_id.h"

static void
check_text(struct aff_slice text)
{
    uint8_t bytes[AFF_CLICK_ID_BYTES];
    uint8_t uuid[AFF_UUID_BYTES];
    bool well_formed = aff_click_id_decode(text, bytes);
    enum aff_click_id_result result = aff_click_id_verify(fuzz_ring(), text, 1, true, uuid);

    require(well_formed == (result != AFF_CLICK_ID_MALFORMED));
    require(!well_formed || memcmp(bytes, uuid, sizeof(uuid)) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct aff_click_clock clock = {0};
    uint8_t random[AFF_RANDOM_BYTES] = {0};
    uint8_t uuid[AFF_UUID_BYTES];
    uint8_t next[AFF_UUID_BYTES];
    uint8_t got[AFF_UUID_BYTES];
    char text[AFF_CLICK_ID_CHARS];
    struct aff_slice id = aff_slice(text, sizeof(text));
    uint64_t merchant = 0;

    check_text(aff_slice(data, size));

    memcpy(random, data, size < sizeof(random) ? size : sizeof(random));
    for (size_t i = 8; i < size && i < 16; i++) {
        merchant = merchant << 8 | data[i];
    }

    aff_uuid_make(&clock, merchant >> 17, random, uuid);
    aff_uuid_make(&clock, merchant >> 18, random, next);
    require(memcmp(uuid, next, sizeof(uuid)) < 0);
    require(aff_uuid_ms(uuid) == merchant >> 17);

    aff_click_id_format(&fuzz_ring()->keys[0], uuid, merchant, true, text);
    require(aff_click_id_verify(fuzz_ring(), id, merchant, true, got) == AFF_CLICK_ID_OK);
    require(memcmp(uuid, got, sizeof(uuid)) == 0);
    require(
        aff_click_id_verify(fuzz_ring(), id, merchant, false, got) == AFF_CLICK_ID_WRONG_LIVEMODE);
    require(aff_click_id_verify(fuzz_ring(), id, merchant + 1, true, got) == AFF_CLICK_ID_FORGED);

    return 0;
}
