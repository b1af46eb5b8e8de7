/*
 * Time-based one-time passwords (RFC 6238: SHA-1, six digits, steps of 30 seconds), which is what
 * all authenticator programs take; and recovery codes, for who has lost theirs.
 */

#ifndef AFFILIATED_API_TOTP_H
#define AFFILIATED_API_TOTP_H

#include "worker/api/text.h"

#define TOTP_SECRET_BYTES 20
#define TOTP_STEP_S       30
#define TOTP_DIGITS       6

#define RECOVERY_CODES 10
#define RECOVERY_CHARS 19 /* xxxx-xxxx-xxxx-xxxx: 80 random bits */

/* The code of a step (unix time / TOTP_STEP_S), a number below 10^TOTP_DIGITS. */
uint32_t totp_code(const uint8_t secret[TOTP_SECRET_BYTES], int64_t step);

/*
 * True if `code` is that of the current step, the one before or the one behind it, and its step is
 * later than `last` (-1: any); then `*step` is it. A code so works once.
 */
bool totp_check(const uint8_t secret[TOTP_SECRET_BYTES], struct aff_slice code, int64_t now_s,
    int64_t last, int64_t *step);

/* Fresh codes, and what is kept of each: the hex SHA-256 of its 16 characters. False when there is
 * no randomness. */
bool recovery_make(char codes[RECOVERY_CODES][RECOVERY_CHARS + 1],
    char hashes[RECOVERY_CODES][TEXT_SHA256_CHARS + 1]);

/* What is kept of a code as somebody typed it: case, hyphens and blanks do not matter. False if it
 * can be none. */
bool recovery_hash(struct aff_slice code, char hash[TEXT_SHA256_CHARS + 1]);

#endif
