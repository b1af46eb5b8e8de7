/*
 * Tokens that go out by mail: to verify an address, to set a new password. No table has them: a
 * token is the row's number, nonce and expiry with a MAC (HMAC-SHA256, cut to 16 bytes, under a key
 * derived from the master key with the label "mail_token"), so who reads the tables can't make one.
 */

#ifndef AFFILIATED_TOKEN_H
#define AFFILIATED_TOKEN_H

#include "protocol/keyring.h"

#define TOKEN_NONCE_BYTES 16
#define TOKEN_CHARS       64 /* base64url */

#define TOKEN_VERIFY "verify" /* purposes */
#define TOKEN_RESET  "reset"

struct token {
    int64_t user_id;
    int64_t expires_s; /* unix */
    uint8_t nonce[TOKEN_NONCE_BYTES];
};

/* Under the current key; NUL-terminated. False only when OpenSSL fails. */
bool token_make(const struct aff_keyring *ring, const char *purpose, const struct token *token,
    char text[TOKEN_CHARS + 1]);

/* True if a key of ours made it for this purpose. Whether it is too late, or was used, is for who
 * has the row. */
bool token_parse(const struct aff_keyring *ring, const char *purpose, struct aff_slice text,
    struct token *token);

#endif
