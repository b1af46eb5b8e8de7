/* Frames: layout, walking a log, and every byte tampered with or cut off. */

#include "unit.h"

#include "bytes.h"
#include "crc32c.h"
#include "frame.h"

_Alignas(8) static uint8_t log_bytes[3 * AFF_FRAME_MAX];

static size_t
seal(uint8_t *at, size_t payload_len, uint32_t seed)
{
    /* What an earlier use of the place may have left behind. */
    memset(at, 0xa5, aff_frame_length(payload_len));
    fill_random(at + AFF_FRAME_HEADER_BYTES, payload_len);

    return aff_frame_seal(at, AFF_FRAME_CLICK, 1, payload_len, seed);
}

static void
layout(void **state)
{
    static const uint8_t want[] = {
        24, 0, 0, 0, 0, 0, 0, 0, 2, 9, 7, 0, 'p', 'a', 'y', 'l', 'o', 'a', 'd', 0, 0, 0, 0, 0};

    (void) state;
    memset(log_bytes, 0xff, 32);
    memcpy(log_bytes + 12, "payload", 7);
    assert_int_equal(aff_frame_seal(log_bytes, AFF_FRAME_CONVERSION, 9, 7, 1), 24);
    assert_memory_equal(log_bytes, want, 4);
    assert_memory_equal(log_bytes + 8, want + 8, 16);
    assert_int_equal(log_bytes[24], 0xff);
}

static void
every_size(void **state)
{
    static const size_t sizes[] = {AFF_FRAME_PAYLOAD_MAX, AFF_FRAME_PAYLOAD_MAX - 1, 4096, 1000};

    (void) state;

    for (size_t i = 0; i < 64 + COUNT(sizes); i++) {
        size_t len = i < 64 ? i : sizes[i - 64];
        size_t length = seal(log_bytes, len, 5);
        struct aff_slice copy = exact(log_bytes, length);
        struct aff_frame frame;

        assert_int_equal(length % 8, 0);
        assert_int_equal(length, aff_frame_length(len));
        assert_int_equal(aff_frame_read(copy, 5, &frame), AFF_FRAME_OK);
        assert_int_equal(frame.type, AFF_FRAME_CLICK);
        assert_int_equal(frame.version, 1);
        assert_int_equal(frame.length, length);
        assert_int_equal(frame.payload.len, len);
        assert_ptr_equal(frame.payload.data, copy.data + 12);
        drop(copy);
    }
}

static void
walk(void **state)
{
    uint32_t seed = aff_frame_seed(77, 3);
    struct aff_slice data;
    struct aff_frame frame;
    size_t end = 0;
    unsigned count = 0;

    (void) state;

    for (unsigned i = 0; i < 40; i++) {
        end += seal(log_bytes + end, 10 + i, seed);
    }
    memset(log_bytes + end, 0, 16);

    data = aff_slice(log_bytes, end + 16);
    while (aff_frame_read(data, seed, &frame) == AFF_FRAME_OK) {
        assert_int_equal(frame.payload.len, 10 + count);
        data = aff_slice(data.data + frame.length, data.len - frame.length);
        count++;
    }

    assert_int_equal(count, 40);
    assert_ptr_equal(data.data, log_bytes + end);
    assert_int_equal(aff_frame_read(data, seed, &frame), AFF_FRAME_END);
    assert_int_equal(aff_frame_read(aff_slice(data.data, 0), seed, &frame), AFF_FRAME_END);
}

/* A frame that an earlier segment left in a recycled file is no frame of the new one. */
static void
seeds(void **state)
{
    struct aff_frame frame;
    size_t length = seal(log_bytes, 50, aff_frame_seed(1, 1));

    (void) state;

    for (uint64_t segment = 0; segment < 10000; segment++) {
        enum aff_frame_result want = segment == 1 ? AFF_FRAME_OK : AFF_FRAME_CORRUPT;

        assert_int_equal(
            aff_frame_read(aff_slice(log_bytes, length), aff_frame_seed(1, segment), &frame), want);
    }

    assert_int_not_equal(aff_frame_seed(1, 2), aff_frame_seed(2, 1));
}

static void
tampered(void **state)
{
    size_t length = seal(log_bytes, 37, 9);
    struct aff_frame frame;

    (void) state;

    for (size_t at = 0; at < length; at++) {
        for (unsigned flip = 1; flip < 256; flip++) {
            struct aff_slice copy;

            log_bytes[at] ^= (uint8_t) flip;
            copy = exact(log_bytes, length);
            assert_int_equal(aff_frame_read(copy, 9, &frame),
                at == 0 && log_bytes[0] == 0 ? AFF_FRAME_END : AFF_FRAME_CORRUPT);
            drop(copy);
            log_bytes[at] ^= (uint8_t) flip;
        }
    }
}

/* Padding that is not zero is no frame, though its crc be right. */
static void
padding(void **state)
{
    size_t length = seal(log_bytes, 37, 9);
    struct aff_frame frame;

    (void) state;
    assert_int_equal(length, 56);

    for (size_t at = AFF_FRAME_HEADER_BYTES + 37; at < length; at++) {
        log_bytes[at] = 1;
        aff_store_le32(log_bytes + 4, aff_crc32c(9, log_bytes + 8, length - 8));
        assert_int_equal(
            aff_frame_read(aff_slice(log_bytes, length), 9, &frame), AFF_FRAME_CORRUPT);
        log_bytes[at] = 0;
    }
}

static void
truncated(void **state)
{
    size_t length = seal(log_bytes, 37, 9);
    struct aff_frame frame;

    (void) state;

    for (size_t len = 0; len < length; len++) {
        struct aff_slice copy = exact(log_bytes, len);

        assert_int_equal(aff_frame_read(copy, 9, &frame),
            len < AFF_FRAME_HEADER_BYTES ? AFF_FRAME_END : AFF_FRAME_CORRUPT);
        drop(copy);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layout),
        cmocka_unit_test(every_size),
        cmocka_unit_test(walk),
        cmocka_unit_test(seeds),
        cmocka_unit_test(tampered),
        cmocka_unit_test(padding),
        cmocka_unit_test(truncated),
    };

    seed_random();
    return RUN(tests);
}
