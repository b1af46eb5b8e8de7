/*
 * The click_id: UUIDv7 (RFC 9562, 16 bytes) followed by an 8-byte MAC, as 39 lower-case Crockford
 * base32 characters. The 192 bits are written most significant first, padded with three zero bits
 * at the end: text sorts as the ids do, so by time.
 *
 * MAC = SipHash-2-4 under the key derived with label "click_id", over UUID, merchant id (8 bytes,
 * little-endian) and livemode (1 byte); its eight bytes little-endian. Whoever lacks the master key
 * can't make one, and an id made for one merchant, or for test mode, does not verify for another,
 * or for live.
 */

#ifndef AFF_CLICK_ID_H
#define AFF_CLICK_ID_H

#include "keyring.h"

#define AFF_UUID_BYTES     16
#define AFF_CLICK_ID_BYTES 24
#define AFF_CLICK_ID_CHARS 39
#define AFF_RANDOM_BYTES   8 /* what one UUID takes */

/*
 * What keeps the ids of one process in order within a millisecond: rand_a (12 bits) counts up from
 * a random start (below 2048), and the clock never runs back (RFC 9562, 6.2, method 1): a full
 * counter borrows the next millisecond. Zero it to begin; one per thread that makes ids.
 */
struct aff_click_clock {
    uint64_t last_ms;
    uint16_t counter;
};

enum aff_click_id_result {
    AFF_CLICK_ID_OK,
    AFF_CLICK_ID_MALFORMED, /* not 39 Crockford characters with zero padding, or not a UUIDv7 */
    AFF_CLICK_ID_WRONG_LIVEMODE, /* genuine and this merchant's, but of the other mode */
    AFF_CLICK_ID_FORGED, /* no key made it for this merchant: forged, or another merchant's */
};

/* A fresh UUIDv7 for `now_ms` (unix milliseconds), from 8 bytes of cryptographic randomness. */
void aff_uuid_make(struct aff_click_clock *clock, uint64_t now_ms,
    const uint8_t random[AFF_RANDOM_BYTES], uint8_t uuid[AFF_UUID_BYTES]);

/* Unix milliseconds inside a UUIDv7. */
uint64_t aff_uuid_ms(const uint8_t uuid[AFF_UUID_BYTES]);

/* Writes the 39 characters (no NUL) of this UUID's click_id, under `key`. */
void aff_click_id_format(const struct aff_master_key *key, const uint8_t uuid[AFF_UUID_BYTES],
    uint64_t merchant_id, bool livemode, char out[AFF_CLICK_ID_CHARS]);

/*
 * Checks a click_id that came from outside and gives its UUID. Upper case and Crockford's aliases
 * (o for 0, i and l for 1) are taken as their lower-case selves. Every key of the ring is tried;
 * comparison is constant-time. `uuid` is written unless the result is MALFORMED.
 */
enum aff_click_id_result aff_click_id_verify(const struct aff_keyring *ring, struct aff_slice text,
    uint64_t merchant_id, bool livemode, uint8_t uuid[AFF_UUID_BYTES]);

/* Decodes without verifying: 24 bytes into `out`. False if malformed. */
bool aff_click_id_decode(struct aff_slice text, uint8_t out[AFF_CLICK_ID_BYTES]);

#endif
