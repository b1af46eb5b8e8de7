/* Headers of segments: layout, what each mark means, and every byte tampered with or cut off. */

#include "unit.h"

#include "bytes.h"
#include "crc32c.h"
#include "segment.h"

static const struct aff_segment sample = {
    .channel = AFF_CHANNEL_CONVERSIONS,
    .spool_id = 0x1112131415161718,
    .number = 7,
    .made_ms = 1764000000000,
    .size = 262144,
};

_Alignas(8) static uint8_t header[AFF_SEGMENT_HEADER_BYTES];

/* As a segment that was used before left it. */
static void
seal(const struct aff_segment *segment)
{
    memset(header, 0xa5, sizeof(header));
    aff_segment_seal(header, segment);
}

static enum aff_segment_result
result_of(size_t len)
{
    struct aff_slice copy = exact(header, len);
    struct aff_segment segment;
    enum aff_segment_result result = aff_segment_read(copy, &segment);

    drop(copy);
    return result;
}

static void
layout(void **state)
{
    static const uint8_t fields[] = {2, 0, 0, 0, 0, 0, 0, 0, /* channel */
        0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,      /* spool id */
        7, 0, 0, 0, 0, 0, 0, 0,                              /* number */
        0x00, 0xe8, 0x97, 0xb6, 0x9a, 0x01, 0, 0,            /* made */
        0, 0, 4, 0, 0, 0, 0, 0,                              /* size */
        0, 0, 0, 0, 0, 0, 0, 0};

    (void) state;
    seal(&sample);
    assert_memory_equal(header, "AFSPUSED\1\0\0", 12);
    assert_int_equal(aff_load_le32(header + 12), aff_crc32c(1, fields, sizeof(fields)));
    assert_memory_equal(header + 16, fields, sizeof(fields));
}

static void
read_back(void **state)
{
    static const struct aff_segment cases[] = {
        {AFF_CHANNEL_CLICKS, 0, 0, 0, AFF_SEGMENT_FRAMES},
        {AFF_CHANNEL_CLICKS, UINT64_MAX, UINT64_MAX, UINT64_MAX, AFF_SEGMENT_MAX},
        {AFF_CHANNEL_CONVERSIONS, 1, 2, 3, 1048576},
    };

    (void) state;

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct aff_slice copy;
        struct aff_segment segment;

        seal(&cases[i]);
        copy = exact(header, sizeof(header));
        assert_int_equal(aff_segment_read(copy, &segment), AFF_SEGMENT_USED);
        assert_int_equal(segment.channel, cases[i].channel);
        assert_int_equal(segment.spool_id, cases[i].spool_id);
        assert_int_equal(segment.number, cases[i].number);
        assert_int_equal(segment.made_ms, cases[i].made_ms);
        assert_int_equal(segment.size, cases[i].size);
        drop(copy);
    }
}

/* The mark alone decides, whatever an earlier segment left behind it. */
static void
marks(void **state)
{
    (void) state;
    seal(&sample);
    memcpy(header, AFF_SEGMENT_MARK_FREE, AFF_SEGMENT_MARK_BYTES);
    assert_int_equal(result_of(sizeof(header)), AFF_SEGMENT_FREE);
    header[20] ^= 1;
    assert_int_equal(result_of(sizeof(header)), AFF_SEGMENT_FREE);
    memset(header, 0, AFF_SEGMENT_MARK_BYTES);
    assert_int_equal(result_of(sizeof(header)), AFF_SEGMENT_BLANK);
    memcpy(header, "not ours", AFF_SEGMENT_MARK_BYTES);
    assert_int_equal(result_of(sizeof(header)), AFF_SEGMENT_FOREIGN);
}

/* Fields that no writer makes, though the crc be right. */
static void
impossible(void **state)
{
    static const struct {
        size_t offset;
        uint64_t value;
    } cases[] = {
        {16, 0},
        {16, 3},
        {16, AFF_CHANNEL_CLICKS | 1ULL << 32},
        {48, 0},
        {48, AFF_SEGMENT_FRAMES - 1},
        {48, AFF_SEGMENT_MAX + 1},
        {56, 1},
        {56, 1ULL << 63},
    };

    (void) state;

    for (size_t i = 0; i < COUNT(cases); i++) {
        seal(&sample);
        aff_store_le64(header + cases[i].offset, cases[i].value);
        aff_store_le32(header + 12, aff_crc32c(1, header + 16, 48));
        assert_int_equal(result_of(sizeof(header)), AFF_SEGMENT_CORRUPT);
    }
}

static void
tampered(void **state)
{
    (void) state;
    seal(&sample);

    for (size_t at = 0; at < sizeof(header); at++) {
        for (unsigned flip = 1; flip < 256; flip++) {
            header[at] ^= (uint8_t) flip;
            assert_int_equal(result_of(sizeof(header)), at < 8    ? AFF_SEGMENT_FOREIGN
                                                        : at < 12 ? AFF_SEGMENT_NEWER
                                                                  : AFF_SEGMENT_CORRUPT);
            header[at] ^= (uint8_t) flip;
        }
    }
}

static void
truncated(void **state)
{
    (void) state;
    seal(&sample);

    for (size_t len = 0; len < sizeof(header); len++) {
        assert_int_equal(result_of(len), AFF_SEGMENT_FOREIGN);
    }

    assert_int_equal(result_of(sizeof(header)), AFF_SEGMENT_USED);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layout),
        cmocka_unit_test(read_back),
        cmocka_unit_test(marks),
        cmocka_unit_test(impossible),
        cmocka_unit_test(tampered),
        cmocka_unit_test(truncated),
    };

    return RUN(tests);
}
