/*
 * CRC-32C. Without an instruction for it: "slicing by 8" (Kounavis, Berry, 2005), eight bytes a
 * step through eight tables.
 *
 * The tables are constants, so there is nothing to initialise and nothing to race for. A CRC is
 * linear over GF(2): entry n of a table is the XOR of its entries for the single bits of n, so
 * eight constants a table are enough for the compiler to work out the other 248.
 */

#include "crc32c.h"

#include "bytes.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

/* clang-format off */
#define ENTRY(n, b0, b1, b2, b3, b4, b5, b6, b7)                                                   \
    ((((n) & 1) ? (b0) : 0u) ^ (((n) & 2) ? (b1) : 0u) ^                                           \
     (((n) & 4) ? (b2) : 0u) ^ (((n) & 8) ? (b3) : 0u) ^                                           \
     (((n) & 16) ? (b4) : 0u) ^ (((n) & 32) ? (b5) : 0u) ^                                         \
     (((n) & 64) ? (b6) : 0u) ^ (((n) & 128) ? (b7) : 0u))

#define ROW_4(basis, n)  basis(ENTRY, (n)), basis(ENTRY, (n) + 1), basis(ENTRY, (n) + 2), basis(ENTRY, (n) + 3)
#define ROW_16(basis, n) ROW_4(basis, (n)), ROW_4(basis, (n) + 4), ROW_4(basis, (n) + 8), ROW_4(basis, (n) + 12)
#define ROW_64(basis, n) ROW_16(basis, (n)), ROW_16(basis, (n) + 16), ROW_16(basis, (n) + 32), ROW_16(basis, (n) + 48)
#define TABLE(basis)     { ROW_64(basis, 0), ROW_64(basis, 64), ROW_64(basis, 128), ROW_64(basis, 192) }

/* BASIS_k: the CRC-32C registers after a byte of one set bit (bits 0 to 7) and k zero bytes. */
#define BASIS_0(X, n) X(n, 0xf26b8303, 0xe13b70f7, 0xc79a971f, 0x8ad958cf, 0x105ec76f, 0x20bd8ede, 0x417b1dbc, 0x82f63b78)
#define BASIS_1(X, n) X(n, 0x13a29877, 0x274530ee, 0x4e8a61dc, 0x9d14c3b8, 0x3fc5f181, 0x7f8be302, 0xff17c604, 0xfbc3faf9)
#define BASIS_2(X, n) X(n, 0xa541927e, 0x4f6f520d, 0x9edea41a, 0x38513ec5, 0x70a27d8a, 0xe144fb14, 0xc76580d9, 0x8b277743)
#define BASIS_3(X, n) X(n, 0xdd45aab8, 0xbf672381, 0x7b2231f3, 0xf64463e6, 0xe964b13d, 0xd725148b, 0xaba65fe7, 0x52a0c93f)
#define BASIS_4(X, n) X(n, 0x38116fac, 0x7022df58, 0xe045beb0, 0xc5670b91, 0x8f2261d3, 0x1ba8b557, 0x37516aae, 0x6ea2d55c)
#define BASIS_5(X, n) X(n, 0xef306b19, 0xdb8ca0c3, 0xb2f53777, 0x6006181f, 0xc00c303e, 0x85f4168d, 0x0e045beb, 0x1c08b7d6)
#define BASIS_6(X, n) X(n, 0x68032cc8, 0xd0065990, 0xa5e0c5d1, 0x4e2dfd53, 0x9c5bfaa6, 0x3d5b83bd, 0x7ab7077a, 0xf56e0ef4)
#define BASIS_7(X, n) X(n, 0x493c7d27, 0x9278fa4e, 0x211d826d, 0x423b04da, 0x847609b4, 0x0d006599, 0x1a00cb32, 0x34019664)
static const uint32_t tables[8][256] = {
    TABLE(BASIS_0), TABLE(BASIS_1), TABLE(BASIS_2), TABLE(BASIS_3),
    TABLE(BASIS_4), TABLE(BASIS_5), TABLE(BASIS_6), TABLE(BASIS_7),
};
/* clang-format on */

uint32_t
aff_crc32c_tables(uint32_t crc, const void *data, size_t len)
{
    const uint8_t *p = data;

    crc = ~crc;

    for (; len >= 8; p += 8, len -= 8) {
        uint64_t x = aff_load_le64(p) ^ crc;

        crc = tables[7][x & 0xff] ^ tables[6][(x >> 8) & 0xff] ^ tables[5][(x >> 16) & 0xff] ^
              tables[4][(x >> 24) & 0xff] ^ tables[3][(x >> 32) & 0xff] ^
              tables[2][(x >> 40) & 0xff] ^ tables[1][(x >> 48) & 0xff] ^ tables[0][x >> 56];
    }

    for (; len > 0; p++, len--) {
        crc = tables[0][(crc ^ *p) & 0xff] ^ (crc >> 8);
    }

    return ~crc;
}

#if defined(__x86_64__)

__attribute__((target("sse4.2"))) static uint32_t
crc32c_sse42(uint32_t crc, const uint8_t *p, size_t len)
{
    uint64_t state = ~crc;

    for (; len >= 8; p += 8, len -= 8) {
        state = _mm_crc32_u64(state, aff_load_le64(p));
    }

    crc = (uint32_t) state;

    for (; len > 0; p++, len--) {
        crc = _mm_crc32_u8(crc, *p);
    }

    return ~crc;
}

uint32_t
aff_crc32c(uint32_t crc, const void *data, size_t len)
{
    /* The compiler's runtime has asked the processor before main(); this reads its answer. */
    if (__builtin_cpu_supports("sse4.2")) {
        return crc32c_sse42(crc, data, len);
    }

    return aff_crc32c_tables(crc, data, len);
}

#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)

uint32_t
aff_crc32c(uint32_t crc, const void *data, size_t len)
{
    const uint8_t *p = data;

    crc = ~crc;

    for (; len >= 8; p += 8, len -= 8) {
        crc = __crc32cd(crc, aff_load_le64(p));
    }

    for (; len > 0; p++, len--) {
        crc = __crc32cb(crc, *p);
    }

    return ~crc;
}

#else

uint32_t
aff_crc32c(uint32_t crc, const void *data, size_t len)
{
    return aff_crc32c_tables(crc, data, len);
}

#endif
