/*
 * Projection records: what the module knows of links and keys, as the daemon writes them to Redis
 * (aff:link:CODE, aff:key:ID). Binary, little-endian, begins with
 *
 *   0  u8   kind     'L' or 'K'
 *   1  u8   layout   1
 *   2  u16  zero
 *   4  u32  zero
 *   8  u64  version  counts up with every change; a lower one never replaces a higher one
 *  16  ...  fields   see projection.c
 *  -8  u64  mac      SipHash-2-4 under label "projection" over everything before it
 *
 * The MAC covers code or id, too: whoever can write into Redis can't send buyers elsewhere, nor
 * swap two links.
 */

#ifndef AFF_PROJECTION_H
#define AFF_PROJECTION_H

#include "conversion.h"
#include "keyring.h"
#include "url.h"

#define AFF_CODE_MAX        64 /* [A-Za-z0-9_-] */
#define AFF_LINK_HOSTS_MAX  8
#define AFF_LINK_RECORD_MAX 8192
#define AFF_KEY_RECORD_MAX  256

enum aff_link_state {
    AFF_LINK_ACTIVE = 1,
    AFF_LINK_PAUSED = 2,  /* by affiliate, merchant or campaign: 410 or the fallback */
    AFF_LINK_REMOVED = 3, /* as if it had never been: 404 or the fallback */
};

struct aff_link {
    uint64_t version;
    uint64_t link_id;
    uint64_t merchant_id;
    uint64_t campaign_id;
    uint64_t affiliate_id;
    uint64_t expires_ms; /* unix ms; 0 = never */
    uint8_t state;       /* enum aff_link_state */
    bool livemode;
    struct aff_slice code;
    struct aff_slice url;   /* passes aff_url_check() */
    struct aff_slice param; /* overrides affiliate_param; may be empty */
    struct aff_slice
        fallback; /* overrides affiliate_fallback; may be empty, else passes aff_url_check() */
    unsigned hosts_count; /* where ?url= may lead, see aff_host_match() */
    struct aff_slice hosts[AFF_LINK_HOSTS_MAX];
};

struct aff_key {
    uint64_t version;
    uint64_t merchant_id;
    bool livemode;
    bool revoked;
    struct aff_slice id;
    struct aff_slice master_id; /* the master key that its secret is derived from */
};

enum aff_projection_result {
    AFF_PROJECTION_OK,
    AFF_PROJECTION_MALFORMED,
    AFF_PROJECTION_FORGED, /* no key of the ring made its MAC, or it is another code's or id's */
};

bool aff_code_valid(struct aff_slice code);

/* Return the record's bytes, 0 if a field is over its limit or invalid, or it does not fit. */
size_t aff_link_encode(
    const struct aff_link *link, const struct aff_keyring *ring, uint8_t *out, size_t room);
size_t aff_key_encode(
    const struct aff_key *key, const struct aff_keyring *ring, uint8_t *out, size_t room);

/* Decode and verify; `code` or `id` is what was asked for. Slices point into the input. What is in
 * `link` or `key` counts only after AFF_PROJECTION_OK. */
enum aff_projection_result aff_link_decode(struct aff_slice record, struct aff_slice code,
    const struct aff_keyring *ring, struct aff_link *link);
enum aff_projection_result aff_key_decode(struct aff_slice record, struct aff_slice id,
    const struct aff_keyring *ring, struct aff_key *key);

#endif
