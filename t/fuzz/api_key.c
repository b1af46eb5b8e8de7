/* Any text as an id, and the input's bytes as one, which must be valid and have a secret. */

#include "fuzz.h"

#include "api_key.h"

static void
check_secret(struct aff_slice id, bool livemode)
{
    char secret[AFF_API_KEY_SECRET_CHARS + 1] = "";

    require(aff_api_key_secret(&fuzz_ring()->keys[0], id, secret));
    require(strlen(secret) == AFF_API_KEY_SECRET_CHARS);
    require(strncmp(secret, livemode ? "aks_live_" : "aks_test_", 9) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t random[AFF_API_KEY_RANDOM_BYTES] = {0};
    char id[AFF_API_KEY_ID_CHARS + 1];
    bool livemode;

    if (aff_api_key_valid(aff_slice(data, size), &livemode)) {
        require(size == AFF_API_KEY_ID_CHARS);
        require(memcmp(data, livemode ? "ak_live_" : "ak_test_", 8) == 0);
        /* HKDF takes longer than all the rest together. */
        if (data[size - 1] == '0') {
            check_secret(aff_slice(data, size), livemode);
        }
    }

    memcpy(random, data, size < sizeof(random) ? size : sizeof(random));
    aff_api_key_make(size % 2 == 0, random, id);
    require(aff_api_key_valid(aff_slice_of(id), &livemode) && livemode == (size % 2 == 0));

    if (random[0] == 0xff) {
        check_secret(aff_slice_of(id), livemode);
    }

    return 0;
}
