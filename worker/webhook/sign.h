/* Standard Webhooks 1.0: what is signed, and how a secret and a signature look. */

#ifndef AFFILIATED_WEBHOOK_SIGN_H
#define AFFILIATED_WEBHOOK_SIGN_H

#include "protocol/slice.h"

#define SIGN_SECRET_BYTES 32
#define SIGN_SECRET_CHARS 50        /* "whsec_" and base64 with its padding */
#define SIGN_CHARS        47        /* "v1," and base64 with its padding */
#define SIGN_SEAL_PURPOSE "webhook" /* its owner is the merchant's id */

void sign_secret_text(const uint8_t secret[SIGN_SECRET_BYTES], char text[SIGN_SECRET_CHARS + 1]);

/* "v1,BASE64" of HMAC-SHA256(secret, id "." timestamp "." body). False when OpenSSL fails. */
bool sign_webhook(const uint8_t secret[SIGN_SECRET_BYTES], const char *id, int64_t timestamp_s,
    struct aff_slice body, char text[SIGN_CHARS + 1]);

#endif
