/* SipHash-2-4 and -1-3. The state lives in four locals while words are absorbed; the structure only
 * carries it from call to call. */

#include "siphash.h"

#include "bytes.h"

static inline uint64_t
rotate(uint64_t x, unsigned bits)
{
    return (x << bits) | (x >> (64 - bits));
}

static inline __attribute__((always_inline)) void
sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = rotate(v[1], 13);
    v[1] ^= v[0];
    v[0] = rotate(v[0], 32);
    v[2] += v[3];
    v[3] = rotate(v[3], 16);
    v[3] ^= v[2];
    v[0] += v[3];
    v[3] = rotate(v[3], 21);
    v[3] ^= v[0];
    v[2] += v[1];
    v[1] = rotate(v[1], 17);
    v[1] ^= v[2];
    v[2] = rotate(v[2], 32);
}

static inline __attribute__((always_inline)) void
sip_begin(uint64_t v[4], const uint8_t key[16])
{
    uint64_t k0 = aff_load_le64(key);
    uint64_t k1 = aff_load_le64(key + 8);

    /* "somepseudorandomlygeneratedbytes" */
    v[0] = k0 ^ 0x736f6d6570736575;
    v[1] = k1 ^ 0x646f72616e646f6d;
    v[2] = k0 ^ 0x6c7967656e657261;
    v[3] = k1 ^ 0x7465646279746573;
}

static inline __attribute__((always_inline)) void
sip_word(uint64_t v[4], uint64_t word, unsigned rounds)
{
    v[3] ^= word;

#pragma GCC unroll 2
    for (unsigned i = 0; i < rounds; i++) {
        sip_round(v);
    }

    v[0] ^= word;
}

/* `tail`: the bytes behind the last whole word; only its low byte of the length counts. */
static inline __attribute__((always_inline)) uint64_t
sip_end(uint64_t v[4], uint64_t tail, uint64_t total, unsigned rounds)
{
    sip_word(v, tail | (total << 56), rounds);
    v[2] ^= 0xff;

#pragma GCC unroll 4
    for (unsigned i = 0; i < rounds + 2; i++) {
        sip_round(v);
    }

    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* The `len` < 8 bytes at `p` as a little-endian number. */
static inline uint64_t
load_tail(const uint8_t *p, size_t len)
{
    uint64_t tail = 0;
    size_t at = 0;

    if (len & 4) {
        tail = aff_load_le32(p);
        at = 4;
    }

    if (len & 2) {
        tail |= (uint64_t) aff_load_le16(p + at) << (8 * at);
        at += 2;
    }

    if (len & 1) {
        tail |= (uint64_t) p[at] << (8 * at);
    }

    return tail;
}

void
aff_siphash_init(struct aff_siphash *s, const uint8_t key[16])
{
    sip_begin(s->v, key);
    s->tail = 0;
    s->total = 0;
}

void
aff_siphash_update(struct aff_siphash *s, const void *data, size_t len)
{
    const uint8_t *p = data;
    unsigned have = s->total & 7;
    uint64_t v[4] = {s->v[0], s->v[1], s->v[2], s->v[3]};

    s->total += len;

    if (have != 0) {
        for (; have < 8 && len > 0; have++, len--) {
            s->tail |= (uint64_t) *p++ << (8 * have);
        }

        if (have < 8) {
            return;
        }

        sip_word(v, s->tail, 2);
    }

    for (; len >= 8; p += 8, len -= 8) {
        sip_word(v, aff_load_le64(p), 2);
    }

    s->tail = load_tail(p, len);
    memcpy(s->v, v, sizeof(v));
}

uint64_t
aff_siphash_final(struct aff_siphash *s)
{
    return sip_end(s->v, s->tail, s->total, 2);
}

static inline __attribute__((always_inline)) uint64_t
sip(const uint8_t key[16], const void *data, size_t len, unsigned rounds)
{
    const uint8_t *p = data;
    size_t left = len;
    uint64_t v[4];

    sip_begin(v, key);

    for (; left >= 8; p += 8, left -= 8) {
        sip_word(v, aff_load_le64(p), rounds);
    }

    return sip_end(v, load_tail(p, left), len, rounds);
}

uint64_t
aff_siphash(const uint8_t key[16], const void *data, size_t len)
{
    return sip(key, data, len, 2);
}

uint64_t
aff_siphash13(const uint8_t key[16], const void *data, size_t len)
{
    return sip(key, data, len, 1);
}
