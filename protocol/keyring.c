/* Key files and key derivation. */

#include "keyring.h"

#include "bytes.h"
#include "chars.h"

#include <stdio.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

static struct aff_slice
trim(struct aff_slice s)
{
    while (s.len > 0 && (s.data[0] == ' ' || s.data[0] == '\t')) {
        s = aff_slice(s.data + 1, s.len - 1);
    }

    while (s.len > 0 &&
           (s.data[s.len - 1] == ' ' || s.data[s.len - 1] == '\t' || s.data[s.len - 1] == '\r')) {
        s.len--;
    }

    return s;
}

static bool
parse_hex(struct aff_slice hex, uint8_t *out, size_t out_len)
{
    if (hex.len != out_len * 2) {
        return false;
    }

    for (size_t i = 0; i < out_len; i++) {
        int high = aff_char_hex(hex.data[2 * i]);
        int low = aff_char_hex(hex.data[2 * i + 1]);

        if (high < 0 || low < 0) {
            return false;
        }

        out[i] = (uint8_t) (high << 4 | low);
    }

    return true;
}

static bool
derive(struct aff_master_key *key)
{
    return aff_hkdf(key->master, aff_slice_of("click_id"), key->click_id, sizeof(key->click_id)) &&
           aff_hkdf(
               key->master, aff_slice_of("projection"), key->projection, sizeof(key->projection)) &&
           aff_hkdf(key->master, aff_slice_of("batch"), key->batch, sizeof(key->batch)) &&
           aff_hkdf(key->master, aff_slice_of("ack"), key->ack, sizeof(key->ack)) &&
           aff_hkdf(key->master, aff_slice_of("recall"), key->recall, sizeof(key->recall));
}

/* Adds the key of one line. Returns NULL, or the rule that the line breaks. */
static const char *
parse_line(struct aff_keyring *ring, struct aff_slice line)
{
    struct aff_slice id = line;
    struct aff_slice hex;
    struct aff_master_key *key;

    for (id.len = 0; id.len < line.len; id.len++) {
        if (line.data[id.len] == ' ' || line.data[id.len] == '\t') {
            break;
        }
    }

    hex = trim(aff_slice(line.data + id.len, line.len - id.len));

    if (!aff_word_valid(id, AFF_MASTER_KEY_ID_MAX)) {
        return "the id must be 1 to 16 characters of A-Z a-z 0-9 _ -";
    }

    if (aff_keyring_find(ring, id) != NULL) {
        return "this id is there already";
    }

    if (ring->count == AFF_MASTER_KEYS_MAX) {
        return "there are more than 8 keys";
    }

    key = &ring->keys[ring->count];
    memcpy(key->id, id.data, id.len);
    key->id[id.len] = '\0';

    if (!parse_hex(hex, key->master, sizeof(key->master))) {
        return "behind the id there must be one space and 64 hexadecimal digits";
    }

    if (!derive(key)) {
        return "OpenSSL cannot derive keys (HKDF-SHA256)";
    }

    ring->count++;
    return NULL;
}

bool
aff_keyring_parse(struct aff_keyring *ring, struct aff_slice text, char *error, size_t error_size)
{
    size_t number = 0;
    size_t pos = 0;

    memset(ring, 0, sizeof(*ring));

    while (pos < text.len) {
        const uint8_t *start = text.data + pos;
        const uint8_t *end = memchr(start, '\n', text.len - pos);
        size_t len = end == NULL ? text.len - pos : (size_t) (end - start);
        struct aff_slice line = trim(aff_slice(start, len));
        const char *rule = NULL;

        pos += len + 1;
        number++;

        if (line.len > 0 && line.data[0] != '#') {
            rule = parse_line(ring, line);
        }

        if (rule != NULL) {
            (void) snprintf(error, error_size, "line %zu: %s", number, rule);
            aff_keyring_wipe(ring);
            return false;
        }
    }

    if (ring->count == 0) {
        (void) snprintf(error, error_size, "there is no key in it");
        return false;
    }

    return true;
}

const struct aff_master_key *
aff_keyring_find(const struct aff_keyring *ring, struct aff_slice id)
{
    for (unsigned i = 0; i < ring->count; i++) {
        if (aff_slice_equal(aff_slice_of(ring->keys[i].id), id)) {
            return &ring->keys[i];
        }
    }

    return NULL;
}

bool
aff_visitor_key(const struct aff_keyring *ring, uint32_t day, uint8_t key[AFF_MAC_KEY_BYTES])
{
    uint8_t info[12] = "visitor";

    aff_store_le32(info + 8, day);

    return aff_hkdf(ring->keys[0].master, aff_slice(info, sizeof(info)), key, AFF_MAC_KEY_BYTES);
}

bool
aff_hkdf(
    const uint8_t master[AFF_MASTER_KEY_BYTES], struct aff_slice info, uint8_t *out, size_t out_len)
{
    EVP_KDF *kdf;
    EVP_KDF_CTX *ctx = NULL;
    bool ok = false;

    /* OpenSSL takes its inputs as pointers to what is not const, and only reads them. */
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *) "SHA256", 0),
        OSSL_PARAM_construct_octet_string(
            OSSL_KDF_PARAM_KEY, (void *) master, AFF_MASTER_KEY_BYTES),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *) info.data, info.len),
        OSSL_PARAM_construct_end(),
    };

    /* A failure here must not turn up in the error queue of someone else's TLS connection. */
    ERR_set_mark();

    kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    if (kdf != NULL) {
        ctx = EVP_KDF_CTX_new(kdf);
    }

    if (ctx != NULL) {
        ok = EVP_KDF_derive(ctx, out, out_len, params) > 0;
    }

    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
    ERR_pop_to_mark();

    return ok;
}

void
aff_keyring_wipe(struct aff_keyring *ring)
{
    OPENSSL_cleanse(ring, sizeof(*ring));
}
