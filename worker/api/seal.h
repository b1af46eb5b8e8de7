/*
 * Secrets that PostgreSQL keeps for us and can't read: AES-256-GCM under a key derived from the
 * master key (info "seal" 0x00 purpose). In hex: one byte, the length of the master key's id; the
 * id; 12 bytes of nonce; the ciphertext; 16 bytes of tag. The purpose and the person whom the
 * secret belongs to are authenticated, too: a row moved to somebody else does not open.
 */

#ifndef AFFILIATED_API_SEAL_H
#define AFFILIATED_API_SEAL_H

#include "protocol/keyring.h"

#define SEAL_PLAIN_MAX 512

/* Characters of what seal_close() writes at most, NUL included. */
#define SEAL_TEXT_MAX (2 * (1 + AFF_MASTER_KEY_ID_MAX + 12 + SEAL_PLAIN_MAX + 16) + 1)

/* Under the current key. False when OpenSSL fails, or `plain` is too long. */
bool seal_close(const struct aff_keyring *ring, const char *purpose, int64_t owner,
    struct aff_slice plain, char text[SEAL_TEXT_MAX]);

/* Under whichever key it says. False if it is not ours, or not this owner's. */
bool seal_open(const struct aff_keyring *ring, const char *purpose, int64_t owner,
    struct aff_slice text, uint8_t plain[SEAL_PLAIN_MAX], size_t *len);

#endif
