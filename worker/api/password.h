/*
 * Passwords, kept as "$scrypt$ln=15,r=8,p=3$SALT$HASH" (RFC 7914; salt of 16 and hash of 32 bytes
 * in base64 without padding). Hashing takes megabytes and a fraction of a second: how many do so at
 * once is bounded, and who would have to wait too long is told to come again.
 */

#ifndef AFFILIATED_API_PASSWORD_H
#define AFFILIATED_API_PASSWORD_H

#include "protocol/slice.h"

#define PASSWORD_STORED_MAX 160 /* bytes of the kept form, NUL included */
#define PASSWORD_MIN        10  /* characters of a new one */
#define PASSWORD_MAX        256 /* bytes of any */

enum password_result {
    PASSWORD_RIGHT,
    PASSWORD_WRONG,
    PASSWORD_BUSY,   /* too many wait already */
    PASSWORD_FAILED, /* no memory, or a kept form that is none */
};

/* `memory` bytes for all hashes at a time, 2^cost blocks for each new one, and so many `threads` at
 * most that hash or wait for it. At any time, from any thread. */
void password_setup(size_t memory, unsigned cost, unsigned threads);

/* PASSWORD_RIGHT with the form to keep, PASSWORD_BUSY or PASSWORD_FAILED. */
enum password_result password_hash(struct aff_slice password, char stored[PASSWORD_STORED_MAX]);

/*
 * `stored` NULL: nobody has it, which takes as long as if somebody had. `*outdated` tells that a
 * new hash should take the place of this one.
 */
enum password_result password_verify(struct aff_slice password, const char *stored, bool *outdated);

#endif
