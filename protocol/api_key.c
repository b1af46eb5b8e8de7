/* API keys: ids, and the secrets derived from them. */

#include "api_key.h"

#include "bytes.h"
#include "chars.h"

#include <openssl/crypto.h>

#define PREFIX_CHARS        8 /* "ak_live_" */
#define SECRET_PREFIX_CHARS 9 /* "aks_live_" */
#define SECRET_SEED_BYTES   32
#define INFO_LABEL_BYTES    8 /* "api_key" and its NUL */

static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/*
 * The lowest `chars` base-62 digits of the 256-bit big-endian number `bytes`, most significant
 * first. 43 of them hold it whole; of 20, all are equally likely but for one part in 2^137.
 */
static void
base62(const uint8_t bytes[32], char *out, size_t chars)
{
    uint32_t limbs[8];

    for (unsigned i = 0; i < 8; i++) {
        limbs[i] = aff_load_be32(bytes + sizeof(limbs[0]) * i);
    }

    for (size_t n = chars; n > 0; n--) {
        uint64_t rest = 0;

        for (unsigned i = 0; i < 8; i++) {
            rest = rest << 32 | limbs[i];
            limbs[i] = (uint32_t) (rest / 62);
            rest %= 62;
        }

        out[n - 1] = digits[rest];
    }

    OPENSSL_cleanse(limbs, sizeof(limbs));
}

void
aff_api_key_make(bool livemode, const uint8_t random[AFF_API_KEY_RANDOM_BYTES],
    char id[AFF_API_KEY_ID_CHARS + 1])
{
    memcpy(id, livemode ? "ak_live_" : "ak_test_", PREFIX_CHARS);
    base62(random, id + PREFIX_CHARS, AFF_API_KEY_ID_CHARS - PREFIX_CHARS);
    id[AFF_API_KEY_ID_CHARS] = '\0';
}

bool
aff_api_key_valid(struct aff_slice id, bool *livemode)
{
    if (id.len != AFF_API_KEY_ID_CHARS) {
        return false;
    }

    for (size_t i = PREFIX_CHARS; i < id.len; i++) {
        if (!aff_char_is(id.data[i], AFF_CHAR_WORD) || id.data[i] == '_' || id.data[i] == '-') {
            return false;
        }
    }

    if (memcmp(id.data, "ak_live_", PREFIX_CHARS) == 0) {
        *livemode = true;
        return true;
    }

    if (memcmp(id.data, "ak_test_", PREFIX_CHARS) == 0) {
        *livemode = false;
        return true;
    }

    return false;
}

bool
aff_api_key_secret(const struct aff_master_key *key, struct aff_slice id,
    char secret[AFF_API_KEY_SECRET_CHARS + 1])
{
    uint8_t info[INFO_LABEL_BYTES + AFF_API_KEY_ID_CHARS] = "api_key";
    uint8_t seed[SECRET_SEED_BYTES];
    bool livemode;

    if (!aff_api_key_valid(id, &livemode)) {
        return false;
    }

    memcpy(info + INFO_LABEL_BYTES, id.data, AFF_API_KEY_ID_CHARS);

    if (!aff_hkdf(key->master, aff_slice(info, sizeof(info)), seed, sizeof(seed))) {
        return false;
    }

    memcpy(secret, livemode ? "aks_live_" : "aks_test_", SECRET_PREFIX_CHARS);
    base62(seed, secret + SECRET_PREFIX_CHARS, AFF_API_KEY_SECRET_CHARS - SECRET_PREFIX_CHARS);
    secret[AFF_API_KEY_SECRET_CHARS] = '\0';
    OPENSSL_cleanse(seed, sizeof(seed));

    return true;
}
