/* A key file that parses, written anew from its keys, parses to the same ring; an error names a
 * rule. */

#include "fuzz.h"

#include "signature.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct aff_keyring ring;
    struct aff_keyring again;
    char file[AFF_MASTER_KEYS_MAX * (AFF_MASTER_KEY_ID_MAX + 2 * AFF_MASTER_KEY_BYTES + 3)];
    char error[96] = "";
    size_t len = 0;

    if (!aff_keyring_parse(&ring, aff_slice(data, size), error, sizeof(error))) {
        require(error[0] != '\0' && ring.count == 0);
        return 0;
    }

    require(ring.count >= 1 && ring.count <= AFF_MASTER_KEYS_MAX);

    for (unsigned i = 0; i < ring.count; i++) {
        const struct aff_master_key *key = &ring.keys[i];
        size_t id_len = strlen(key->id);

        require(aff_keyring_find(&ring, aff_slice_of(key->id)) == key);
        memcpy(file + len, key->id, id_len);
        file[len + id_len] = ' ';
        len += id_len + 1;
        aff_hex(key->master, AFF_MASTER_KEY_BYTES, file + len);
        len += (size_t) 2 * AFF_MASTER_KEY_BYTES;
        file[len++] = '\n';
    }

    require(aff_keyring_parse(&again, aff_slice(file, len), error, sizeof(error)));
    require(memcmp(&ring, &again, sizeof(ring)) == 0);

    return 0;
}
