#include "worker/token.h"

#include "worker/api/text.h"

#include "protocol/bytes.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#define TOKEN_BYTES     48
#define TOKEN_SIGNED    32 /* of them */
#define TOKEN_MAC_BYTES 16
#define TOKEN_PURPOSE   16

_Static_assert(TEXT_BASE64_CHARS(TOKEN_BYTES) == TOKEN_CHARS, "48 bytes are 64 characters");

static bool
token_mac(const struct aff_master_key *key, const char *purpose, const uint8_t bytes[TOKEN_SIGNED],
    uint8_t mac[TOKEN_MAC_BYTES])
{
    uint8_t message[TOKEN_PURPOSE + TOKEN_SIGNED] = {0};
    uint8_t derived[32], digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    bool ok;

    memcpy(message, purpose, strnlen(purpose, TOKEN_PURPOSE));
    memcpy(message + TOKEN_PURPOSE, bytes, TOKEN_SIGNED);
    ok = aff_hkdf(key->master, aff_slice_of("mail_token"), derived, sizeof(derived)) &&
         HMAC(EVP_sha256(), derived, sizeof(derived), message, sizeof(message), digest, &len) !=
             NULL;
    memcpy(mac, digest, TOKEN_MAC_BYTES);
    OPENSSL_cleanse(derived, sizeof(derived));
    return ok;
}

bool
token_make(const struct aff_keyring *ring, const char *purpose, const struct token *token,
    char text[TOKEN_CHARS + 1])
{
    uint8_t bytes[TOKEN_BYTES];

    aff_store_le64(bytes, (uint64_t) token->user_id);
    aff_store_le64(bytes + 8, (uint64_t) token->expires_s);
    memcpy(bytes + 16, token->nonce, TOKEN_NONCE_BYTES);
    if (!token_mac(&ring->keys[0], purpose, bytes, bytes + TOKEN_SIGNED)) {
        return false;
    }

    text_base64(aff_slice(bytes, sizeof(bytes)), true, text);
    return true;
}

bool
token_parse(
    const struct aff_keyring *ring, const char *purpose, struct aff_slice text, struct token *token)
{
    uint8_t bytes[TOKEN_BYTES], mac[TOKEN_MAC_BYTES];
    bool ours = false;

    if (!text_from_base64(text, true, bytes, sizeof(bytes))) {
        return false;
    }

    for (unsigned i = 0; i < ring->count; i++) {
        ours = (token_mac(&ring->keys[i], purpose, bytes, mac) &&
                   CRYPTO_memcmp(mac, bytes + TOKEN_SIGNED, sizeof(mac)) == 0) ||
               ours;
    }

    if (ours) {
        token->user_id = (int64_t) aff_load_le64(bytes);
        token->expires_s = (int64_t) aff_load_le64(bytes + 8);
        memcpy(token->nonce, bytes + 16, TOKEN_NONCE_BYTES);
    }

    return ours;
}
