/*
 * Master keys, and what is derived from them (HKDF-SHA256, RFC 5869: no salt, the label as info).
 *
 * A key file holds one `id hex` pair a line: id is 1..16 of [A-Za-z0-9_-], hex is 64 digits (32
 * bytes); blank lines and lines that begin with # are skipped. The first key is current: it makes
 * everything new. The others still verify what they made.
 */

#ifndef AFF_KEYRING_H
#define AFF_KEYRING_H

#include "slice.h"

#define AFF_MASTER_KEYS_MAX   8
#define AFF_MASTER_KEY_BYTES  32
#define AFF_MASTER_KEY_ID_MAX 16
#define AFF_MAC_KEY_BYTES     16 /* a SipHash key */

struct aff_master_key {
    char id[AFF_MASTER_KEY_ID_MAX + 1];
    uint8_t master[AFF_MASTER_KEY_BYTES];
    uint8_t click_id[AFF_MAC_KEY_BYTES];   /* label "click_id" */
    uint8_t projection[AFF_MAC_KEY_BYTES]; /* label "projection": link and key records in Redis */
    uint8_t batch[AFF_MAC_KEY_BYTES];      /* label "batch": batches on their way to PostgreSQL */
    uint8_t ack[AFF_MAC_KEY_BYTES];        /* label "ack": that PostgreSQL has a batch */
    uint8_t recall[AFF_MAC_KEY_BYTES];     /* label "recall": calls that were accepted, in Redis */
};

/* No pointers inside: copy it as a value. Wipe with aff_keyring_wipe() before its memory is given
 * back. */
struct aff_keyring {
    unsigned count;
    struct aff_master_key keys[AFF_MASTER_KEYS_MAX];
};

/*
 * Parses a whole key file and derives the keys. False on a bad or empty file: `error` (of
 * `error_size` bytes) then names the line and the rule, never the key's bytes.
 */
bool aff_keyring_parse(
    struct aff_keyring *ring, struct aff_slice text, char *error, size_t error_size);

/* The key with this id, or NULL. */
const struct aff_master_key *aff_keyring_find(const struct aff_keyring *ring, struct aff_slice id);

/*
 * The visitor key of one UTC day (days since 1970-01-01) under the current master key (info
 * "visitor" 0x00 and the day as 4 bytes, little-endian); a visitor's hash can't be followed from
 * one day to the next. False only when OpenSSL fails.
 */
bool aff_visitor_key(const struct aff_keyring *ring, uint32_t day, uint8_t key[AFF_MAC_KEY_BYTES]);

/* HKDF-SHA256 of `master` with `info`, `out_len` bytes (at most 255 * 32). False only when OpenSSL
 * fails. */
bool aff_hkdf(const uint8_t master[AFF_MASTER_KEY_BYTES], struct aff_slice info, uint8_t *out,
    size_t out_len);

void aff_keyring_wipe(struct aff_keyring *ring);

#endif
