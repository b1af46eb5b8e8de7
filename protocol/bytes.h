/* Little- and big-endian loads and stores at any alignment; each compiles to one instruction or
 * two. */

#ifndef AFF_BYTES_H
#define AFF_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define AFF_LE16(v) (v)
#define AFF_LE32(v) (v)
#define AFF_LE64(v) (v)
#define AFF_BE32(v) __builtin_bswap32(v)
#define AFF_BE64(v) __builtin_bswap64(v)
#else
#define AFF_LE16(v) __builtin_bswap16(v)
#define AFF_LE32(v) __builtin_bswap32(v)
#define AFF_LE64(v) __builtin_bswap64(v)
#define AFF_BE32(v) (v)
#define AFF_BE64(v) (v)
#endif

/*
 * `n`, of which the compiler knows nothing any more. It inlines a copy whose length it can bound as
 * "rep movs", and that takes longer to start than a call of memcpy() takes for a few hundred bytes.
 */
static inline size_t
aff_opaque(size_t n)
{
    __asm__("" : "+r"(n));
    return n;
}

static inline uint16_t
aff_load_le16(const uint8_t *p)
{
    uint16_t value;

    memcpy(&value, p, sizeof(value));
    return AFF_LE16(value);
}

static inline uint32_t
aff_load_le32(const uint8_t *p)
{
    uint32_t value;

    memcpy(&value, p, sizeof(value));
    return AFF_LE32(value);
}

static inline uint64_t
aff_load_le64(const uint8_t *p)
{
    uint64_t value;

    memcpy(&value, p, sizeof(value));
    return AFF_LE64(value);
}

static inline uint32_t
aff_load_be32(const uint8_t *p)
{
    uint32_t value;

    memcpy(&value, p, sizeof(value));
    return AFF_BE32(value);
}

static inline uint64_t
aff_load_be64(const uint8_t *p)
{
    uint64_t value;

    memcpy(&value, p, sizeof(value));
    return AFF_BE64(value);
}

static inline void
aff_store_le16(uint8_t *p, uint16_t value)
{
    uint16_t wire = AFF_LE16(value);

    memcpy(p, &wire, sizeof(wire));
}

static inline void
aff_store_le32(uint8_t *p, uint32_t value)
{
    uint32_t wire = AFF_LE32(value);

    memcpy(p, &wire, sizeof(wire));
}

static inline void
aff_store_le64(uint8_t *p, uint64_t value)
{
    uint64_t wire = AFF_LE64(value);

    memcpy(p, &wire, sizeof(wire));
}

static inline void
aff_store_be64(uint8_t *p, uint64_t value)
{
    uint64_t wire = AFF_BE64(value);

    memcpy(p, &wire, sizeof(wire));
}

#endif
