#include "worker/api/seal.h"

#include "worker/api/text.h"

#include "protocol/bytes.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include <stdio.h>

#define SEAL_KEY_BYTES   32
#define SEAL_NONCE_BYTES 12
#define SEAL_TAG_BYTES   16
#define SEAL_LABEL_MAX   40
#define SEAL_BYTES_MAX   ((SEAL_TEXT_MAX - 1) / 2)

/* "seal", NUL, purpose: the key's label. With the owner behind it, what is authenticated. */
struct seal_label {
    uint8_t bytes[SEAL_LABEL_MAX + sizeof(uint64_t)];
    size_t key_len, len;
};

static struct seal_label
seal_label(const char *purpose, int64_t owner)
{
    struct seal_label label = {.bytes = "seal"};
    int len = snprintf((char *) label.bytes + 5, SEAL_LABEL_MAX - 5, "%s", purpose);

    label.key_len = 5 + (size_t) len;
    label.len = label.key_len + sizeof(uint64_t);
    aff_store_le64(label.bytes + label.key_len, (uint64_t) owner);
    return label;
}

static EVP_CIPHER_CTX *
seal_context(const struct aff_master_key *master, const struct seal_label *label,
    const uint8_t nonce[SEAL_NONCE_BYTES], int closing)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    uint8_t key[SEAL_KEY_BYTES];
    int len;
    bool ok = ctx != NULL &&
              aff_hkdf(master->master, aff_slice(label->bytes, label->key_len), key, sizeof(key)) &&
              EVP_CipherInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, nonce, closing) == 1 &&
              EVP_CipherUpdate(ctx, NULL, &len, label->bytes, (int) label->len) == 1;

    OPENSSL_cleanse(key, sizeof(key));
    if (!ok) {
        EVP_CIPHER_CTX_free(ctx);
        return NULL;
    }

    return ctx;
}

bool
seal_close(const struct aff_keyring *ring, const char *purpose, int64_t owner,
    struct aff_slice plain, char text[SEAL_TEXT_MAX])
{
    const struct aff_master_key *master = &ring->keys[0];
    struct seal_label label = seal_label(purpose, owner);
    uint8_t bytes[SEAL_BYTES_MAX];
    size_t id_len = strlen(master->id), at = 1 + id_len;
    EVP_CIPHER_CTX *ctx = NULL;
    int len = 0, rest = 0;
    bool ok;

    if (plain.len > SEAL_PLAIN_MAX) {
        return false;
    }

    ERR_set_mark();
    bytes[0] = (uint8_t) id_len;
    memcpy(bytes + 1, master->id, id_len);
    ok = RAND_bytes(bytes + at, SEAL_NONCE_BYTES) == 1 &&
         (ctx = seal_context(master, &label, bytes + at, 1)) != NULL;
    at += SEAL_NONCE_BYTES;
    ok = ok && EVP_CipherUpdate(ctx, bytes + at, &len, plain.data, (int) plain.len) == 1 &&
         EVP_CipherFinal_ex(ctx, bytes + at + len, &rest) == 1;
    at += (size_t) len + (size_t) rest;
    ok = ok && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_GET_TAG, SEAL_TAG_BYTES, bytes + at) == 1;
    EVP_CIPHER_CTX_free(ctx);
    ERR_pop_to_mark();

    text_hex(aff_slice(bytes, ok ? at + SEAL_TAG_BYTES : 0), text);
    return ok;
}

bool
seal_open(const struct aff_keyring *ring, const char *purpose, int64_t owner, struct aff_slice text,
    uint8_t plain[SEAL_PLAIN_MAX], size_t *len)
{
    struct seal_label label = seal_label(purpose, owner);
    const struct aff_master_key *master;
    uint8_t bytes[SEAL_BYTES_MAX];
    struct aff_reader in = {.pos = bytes, .end = bytes + text.len / 2};
    const uint8_t *id, *nonce, *sealed;
    uint8_t tag[SEAL_TAG_BYTES];
    EVP_CIPHER_CTX *ctx = NULL;
    size_t id_len, sealed_len;
    int n = 0, rest = 0;
    bool ok;

    if (text.len / 2 > sizeof(bytes) || !text_from_hex(text, bytes, text.len / 2)) {
        return false;
    }

    id_len = aff_get_u8(&in);
    id = aff_take(&in, id_len);
    nonce = aff_take(&in, SEAL_NONCE_BYTES);
    sealed_len = (size_t) (in.end - in.pos);
    if (in.failed || sealed_len < SEAL_TAG_BYTES || sealed_len - SEAL_TAG_BYTES > SEAL_PLAIN_MAX ||
        (master = aff_keyring_find(ring, aff_slice(id, id_len))) == NULL) {
        return false;
    }

    sealed_len -= SEAL_TAG_BYTES;
    sealed = aff_take(&in, sealed_len);
    aff_get_bytes(&in, tag, sizeof(tag));

    ERR_set_mark();
    ctx = seal_context(master, &label, nonce, 0);
    ok = ctx != NULL && EVP_CipherUpdate(ctx, plain, &n, sealed, (int) sealed_len) == 1 &&
         EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_SET_TAG, SEAL_TAG_BYTES, tag) == 1 &&
         EVP_CipherFinal_ex(ctx, plain + n, &rest) == 1;
    EVP_CIPHER_CTX_free(ctx);
    ERR_pop_to_mark();

    *len = ok ? (size_t) n + (size_t) rest : 0;
    if (!ok) {
        OPENSSL_cleanse(plain, SEAL_PLAIN_MAX);
    }

    return ok;
}
