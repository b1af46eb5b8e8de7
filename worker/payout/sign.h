/* Signatures with a private key out of a PFX file (PKCS #12): SHA256withRSA, which is
 * RSASSA-PKCS1-v1_5 (RFC 8017, section 8.2) with SHA-256. */

#ifndef AFFILIATED_PAYOUT_SIGN_H
#define AFFILIATED_PAYOUT_SIGN_H

#include "protocol/slice.h"

#define SIGN_ERROR_MAX  256
#define SIGN_BASE64_MAX ((SIGN_RSA_MAX / 8 + 2UL) / 3 * 4 + 1)
#define SIGN_RSA_MIN    2048
#define SIGN_RSA_MAX    8192
#define SIGN_PFX_MAX    (64 * 1024UL)

struct sign_key; /* an EVP_PKEY */

/* Reads the key; NULL with the reason. */
struct sign_key *sign_open(const char *path, const char *password, char error[SIGN_ERROR_MAX]);
void sign_close(struct sign_key *key);

/* The signature in base64 with padding, NUL-terminated. */
bool sign_text(const struct sign_key *key, struct aff_slice text, char out[SIGN_BASE64_MAX]);

#endif
