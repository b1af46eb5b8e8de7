/* CRC-32C: known values, and processor, tables and a bit-by-bit model against each other. */

#include "unit.h"

#include "crc32c.h"

static uint32_t
model(uint32_t crc, const uint8_t *p, size_t len)
{
    crc = ~crc;

    for (size_t i = 0; i < len; i++) {
        crc ^= p[i];

        for (unsigned bit = 0; bit < 8; bit++) {
            crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
        }
    }

    return ~crc;
}

static void
known_values(void **state)
{
    /* RFC 3720, appendix B.4; the last one is an iSCSI SCSI Read (10) command. */
    static const uint8_t command[48] = {
        0x01, 0xc0, [16] = 0x14, [22] = 0x04, [27] = 0x14, [31] = 0x18, [32] = 0x28, [40] = 0x02};
    uint8_t bytes[32];

    (void) state;

    assert_int_equal(aff_crc32c(0, "", 0), 0);
    assert_int_equal(aff_crc32c(0, "123456789", 9), 0xe3069283);

    memset(bytes, 0, sizeof(bytes));
    assert_int_equal(aff_crc32c(0, bytes, sizeof(bytes)), 0x8a9136aa);

    memset(bytes, 0xff, sizeof(bytes));
    assert_int_equal(aff_crc32c(0, bytes, sizeof(bytes)), 0x62a8ab43);

    for (unsigned i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t) i;
    }
    assert_int_equal(aff_crc32c(0, bytes, sizeof(bytes)), 0x46dd794e);

    for (unsigned i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t) (31 - i);
    }
    assert_int_equal(aff_crc32c(0, bytes, sizeof(bytes)), 0x113fdb5c);

    assert_int_equal(aff_crc32c(0, command, sizeof(command)), 0xd9963a56);
    assert_int_equal(aff_crc32c_tables(0, command, sizeof(command)), 0xd9963a56);
}

static void
every_length_and_alignment(void **state)
{
    uint8_t bytes[300];

    (void) state;
    fill_random(bytes, sizeof(bytes));

    for (size_t offset = 0; offset < 8; offset++) {
        for (size_t len = 0; len + offset <= sizeof(bytes); len++) {
            uint32_t seed = (uint32_t) next_random();
            uint32_t want = model(seed, bytes + offset, len);

            assert_int_equal(aff_crc32c(seed, bytes + offset, len), want);
            assert_int_equal(aff_crc32c_tables(seed, bytes + offset, len), want);
        }
    }
}

static void
in_pieces(void **state)
{
    uint8_t bytes[100];
    uint32_t whole;

    (void) state;
    fill_random(bytes, sizeof(bytes));
    whole = aff_crc32c(7, bytes, sizeof(bytes));

    for (size_t cut = 0; cut <= sizeof(bytes); cut++) {
        uint32_t crc = aff_crc32c(7, bytes, cut);

        assert_int_equal(aff_crc32c(crc, bytes + cut, sizeof(bytes) - cut), whole);
        crc = aff_crc32c_tables(7, bytes, cut);
        assert_int_equal(aff_crc32c_tables(crc, bytes + cut, sizeof(bytes) - cut), whole);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_values),
        cmocka_unit_test(every_length_and_alignment),
        cmocka_unit_test(in_pieces),
    };

    seed_random();
    return RUN(tests);
}
