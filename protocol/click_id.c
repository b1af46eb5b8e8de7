/* UUIDv7, and the click_id's text and MAC. */

#include "click_id.h"

#include "bytes.h"
#include "siphash.h"

#define UUID_MS_MASK     0xffffffffffffULL
#define UUID_RAND_A_MAX  0xfff
#define UUID_RAND_B_MASK 0x3fffffffffffffffULL

#define NO 0xff /* not a character of Crockford's base32 */

static const char alphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";

/* clang-format off */
static const uint8_t values[256] = {
    NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, /* 0x00 */
    NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, /* 0x10 */
    NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, /* 0x20 */
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, NO, NO, NO, NO, NO, NO, /* 0x30 */
    NO, 10, 11, 12, 13, 14, 15, 16, 17, 1, 18, 19, 1, 20, 21, 0, /* 0x40 */
    22, 23, 24, 25, 26, NO, 27, 28, 29, 30, 31, NO, NO, NO, NO, NO, /* 0x50 */
    NO, 10, 11, 12, 13, 14, 15, 16, 17, 1, 18, 19, 1, 20, 21, 0, /* 0x60 */
    22, 23, 24, 25, 26, NO, 27, 28, 29, 30, 31, NO, NO, NO, NO, NO, /* 0x70 */
    NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, /* 0x80 */
    NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, /* 0x90 */
    NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, /* 0xa0 */
    NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, /* 0xb0 */
    NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, /* 0xc0 */
    NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, /* 0xd0 */
    NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, /* 0xe0 */
    NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, /* 0xf0 */
};
/* clang-format on */

/*
 * Where the counter of a new millisecond starts: 0..2047, so that at least 2048 ids follow before
 * it runs over. A mix of the random word that also becomes rand_b: the start need not be
 * independent of it, only not the same in every process.
 */
static uint16_t
counter_start(uint64_t random)
{
    return (uint16_t) ((random * 0x9e3779b97f4a7c15ULL) >> 53);
}

void
aff_uuid_make(struct aff_click_clock *clock, uint64_t now_ms,
    const uint8_t random[AFF_RANDOM_BYTES], uint8_t uuid[AFF_UUID_BYTES])
{
    uint64_t word = aff_load_le64(random);

    if (now_ms > clock->last_ms) {
        clock->last_ms = now_ms;
        clock->counter = counter_start(word);

    } else if (clock->counter >= UUID_RAND_A_MAX) {
        /* The millisecond is full, or the clock stands in the past: borrow from the next one. */
        clock->last_ms++;
        clock->counter = counter_start(word);

    } else {
        clock->counter++;
    }

    aff_store_be64(uuid, (clock->last_ms << 16) | 0x7000 | clock->counter);
    aff_store_be64(uuid + 8, (word & UUID_RAND_B_MASK) | 0x8000000000000000ULL);
}

uint64_t
aff_uuid_ms(const uint8_t uuid[AFF_UUID_BYTES])
{
    return (aff_load_be64(uuid) >> 16) & UUID_MS_MASK;
}

static uint64_t
click_id_mac(const struct aff_master_key *key, const uint8_t uuid[AFF_UUID_BYTES],
    uint64_t merchant_id, bool livemode)
{
    uint8_t message[AFF_UUID_BYTES + 9];

    memcpy(message, uuid, AFF_UUID_BYTES);
    aff_store_le64(message + AFF_UUID_BYTES, merchant_id);
    message[AFF_UUID_BYTES + 8] = livemode;

    return aff_siphash(key->click_id, message, sizeof(message));
}

/* Writes the `chars` highest groups of five bits of `bits`, counted from bit 63. */
static inline __attribute__((always_inline)) void
encode_group(uint64_t bits, unsigned chars, char *out)
{
#pragma GCC unroll 12
    for (unsigned i = 0; i < chars; i++) {
        out[i] = alphabet[(bits >> (59 - 5 * i)) & 31];
    }
}

void
aff_click_id_format(const struct aff_master_key *key, const uint8_t uuid[AFF_UUID_BYTES],
    uint64_t merchant_id, bool livemode, char out[AFF_CLICK_ID_CHARS])
{
    uint64_t high = aff_load_be64(uuid);
    uint64_t low = aff_load_be64(uuid + 8);
    uint64_t mac = click_id_mac(key, uuid, merchant_id, livemode);

    /* The id is these 192 bits, most significant first; the MAC's bytes count as they are written,
     * little-endian. Twelve characters take 60 bits, so the groups begin at bits 0, 60, 120, 180.
     */
    mac = __builtin_bswap64(mac);

    encode_group(high, 12, out);
    encode_group(high << 60 | low >> 4, 12, out + 12);
    encode_group(low << 56 | mac >> 8, 12, out + 24);
    encode_group(mac << 52, 3, out + 36);
}

/* Reads `chars` characters as one number. Sets `bad` to more than 31 on a wrong one. */
static inline uint64_t
decode_group(const uint8_t *text, unsigned chars, unsigned *bad)
{
    uint64_t bits = 0;

    for (unsigned i = 0; i < chars; i++) {
        uint8_t value = values[text[i]];

        *bad |= value;
        bits = bits << 5 | (value & 31);
    }

    return bits;
}

bool
aff_click_id_decode(struct aff_slice text, uint8_t out[AFF_CLICK_ID_BYTES])
{
    uint64_t group[4];
    unsigned bad = 0;

    if (text.len != AFF_CLICK_ID_CHARS) {
        return false;
    }

    group[0] = decode_group(text.data, 12, &bad);
    group[1] = decode_group(text.data + 12, 12, &bad);
    group[2] = decode_group(text.data + 24, 12, &bad);
    group[3] = decode_group(text.data + 36, 3, &bad);

    /* 15 bits are left: twelve of the id, three of padding. */
    if (bad > 31 || (group[3] & 7) != 0) {
        return false;
    }

    aff_store_be64(out, group[0] << 4 | group[1] >> 56);
    aff_store_be64(out + 8, group[1] << 8 | group[2] >> 52);
    aff_store_be64(out + 16, group[2] << 12 | group[3] >> 3);

    return (out[6] & 0xf0) == 0x70 && (out[8] & 0xc0) == 0x80;
}

/* 1 if equal, else 0, without a branch on the bits. */
static inline unsigned
mac_equal(uint64_t a, uint64_t b)
{
    uint64_t difference = a ^ b;

    return 1 ^ (unsigned) ((difference | (0 - difference)) >> 63);
}

enum aff_click_id_result
aff_click_id_verify(const struct aff_keyring *ring, struct aff_slice text, uint64_t merchant_id,
    bool livemode, uint8_t uuid[AFF_UUID_BYTES])
{
    uint8_t bytes[AFF_CLICK_ID_BYTES];
    uint64_t mac;
    unsigned genuine = 0;
    unsigned other_mode = 0;

    if (!aff_click_id_decode(text, bytes)) {
        return AFF_CLICK_ID_MALFORMED;
    }

    memcpy(uuid, bytes, AFF_UUID_BYTES);
    mac = aff_load_le64(bytes + AFF_UUID_BYTES);

    for (unsigned i = 0; i < ring->count; i++) {
        genuine |= mac_equal(mac, click_id_mac(&ring->keys[i], bytes, merchant_id, livemode));
        other_mode |= mac_equal(mac, click_id_mac(&ring->keys[i], bytes, merchant_id, !livemode));
    }

    if (genuine) {
        return AFF_CLICK_ID_OK;
    }

    return other_mode ? AFF_CLICK_ID_WRONG_LIVEMODE : AFF_CLICK_ID_FORGED;
}
