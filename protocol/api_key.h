/*
 * API keys. Public id: "ak_live_" or "ak_test_" and 20 characters of [0-9A-Za-z]. Secret:
 * "aks_live_" or "aks_test_" and 43 characters of the same, from HKDF-SHA256 of the master key with
 * info "api_key" 0x00 id: shown once, stored nowhere, made again whenever it is needed.
 */

#ifndef AFF_API_KEY_H
#define AFF_API_KEY_H

#include "conversion.h"
#include "keyring.h"

#define AFF_API_KEY_ID_CHARS     28
#define AFF_API_KEY_SECRET_CHARS 52
#define AFF_API_KEY_RANDOM_BYTES 32

/* A fresh id from 32 random bytes (rejection-free: a base-62 number of them). NUL-terminated. */
void aff_api_key_make(bool livemode, const uint8_t random[AFF_API_KEY_RANDOM_BYTES],
    char id[AFF_API_KEY_ID_CHARS + 1]);

/* True if `id` has the form above; then `*livemode` tells its mode. */
bool aff_api_key_valid(struct aff_slice id, bool *livemode);

/* The secret of a well-formed id under `key`. NUL-terminated. False only when OpenSSL fails. */
bool aff_api_key_secret(const struct aff_master_key *key, struct aff_slice id,
    char secret[AFF_API_KEY_SECRET_CHARS + 1]);

#endif
