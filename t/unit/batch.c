/* Batches: round trip, key rotation, and every byte tampered with or cut off. */

#include "unit.h"

#include "batch.h"
#include "siphash.h"

#define PAYLOAD 96

static struct aff_keyring ring;
static uint8_t entry[AFF_BATCH_HEADER_BYTES + PAYLOAD];

static void
make_entry(const struct aff_keyring *keys)
{
    struct aff_batch batch = {
        .channel = AFF_CHANNEL_CONVERSIONS,
        .spool_id = 0x1122334455667788,
        .segment = 9,
        .sequence = 5,
        .records = 3,
        .payload = aff_slice(entry + AFF_BATCH_HEADER_BYTES, PAYLOAD),
    };

    fill_random(entry + AFF_BATCH_HEADER_BYTES, PAYLOAD);
    aff_batch_header(&batch, keys, entry);
}

static void
round_trip(void **state)
{
    struct aff_slice copy;
    struct aff_batch batch;

    (void) state;
    make_entry(&ring);
    copy = exact(entry, sizeof(entry));

    assert_memory_equal(entry, "AFB1\x02\0\0\0\x88\x77\x66\x55\x44\x33\x22\x11", 16);
    assert_int_equal(aff_batch_read(copy, &ring, &batch), AFF_BATCH_OK);
    assert_int_equal(batch.channel, AFF_CHANNEL_CONVERSIONS);
    assert_true(batch.spool_id == 0x1122334455667788);
    assert_int_equal(batch.segment, 9);
    assert_int_equal(batch.sequence, 5);
    assert_int_equal(batch.records, 3);
    assert_int_equal(batch.payload.len, PAYLOAD);
    assert_ptr_equal(batch.payload.data, copy.data + AFF_BATCH_HEADER_BYTES);
    drop(copy);
}

static void
rotation(void **state)
{
    struct aff_keyring before = ring_before(&ring);
    struct aff_batch batch;

    (void) state;
    make_entry(&before);
    assert_int_equal(aff_batch_read(aff_slice(entry, sizeof(entry)), &ring, &batch), AFF_BATCH_OK);

    make_entry(&ring);
    assert_int_equal(
        aff_batch_read(aff_slice(entry, sizeof(entry)), &before, &batch), AFF_BATCH_FORGED);
    assert_int_equal(aff_batch_read(aff_slice(entry, sizeof(entry)), NULL, &batch), AFF_BATCH_OK);
}

static void
tampered(void **state)
{
    struct aff_batch batch;

    (void) state;
    make_entry(&ring);

    for (size_t at = 0; at < sizeof(entry); at++) {
        for (unsigned flip = 1; flip < 256; flip++) {
            entry[at] ^= (uint8_t) flip;
            assert_int_not_equal(
                aff_batch_read(aff_slice(entry, sizeof(entry)), &ring, &batch), AFF_BATCH_OK);
            entry[at] ^= (uint8_t) flip;
        }
    }
}

static void
truncated(void **state)
{
    struct aff_batch batch;

    (void) state;
    make_entry(&ring);

    for (size_t len = 0; len < sizeof(entry); len++) {
        struct aff_slice copy = exact(entry, len);

        assert_int_equal(aff_batch_read(copy, &ring, &batch), AFF_BATCH_MALFORMED);
        assert_int_equal(aff_batch_read(copy, NULL, &batch), AFF_BATCH_MALFORMED);
        drop(copy);
    }
}

/* Whoever has the key still can't name a channel that there is not, or more records than bytes. */
static void
malformed(void **state)
{
    struct aff_batch batch = {
        .channel = 3,
        .payload = aff_slice(entry + AFF_BATCH_HEADER_BYTES, PAYLOAD),
    };
    struct aff_slice whole = aff_slice(entry, sizeof(entry));

    (void) state;
    aff_batch_header(&batch, &ring, entry);
    assert_int_equal(aff_batch_read(whole, &ring, &batch), AFF_BATCH_MALFORMED);

    batch.channel = AFF_CHANNEL_CLICKS;
    batch.payload = aff_slice(entry + AFF_BATCH_HEADER_BYTES, PAYLOAD);
    batch.records = PAYLOAD / 16;
    aff_batch_header(&batch, &ring, entry);
    assert_int_equal(aff_batch_read(whole, &ring, &batch), AFF_BATCH_OK);

    batch.records++;
    aff_batch_header(&batch, &ring, entry);
    assert_int_equal(aff_batch_read(whole, &ring, &batch), AFF_BATCH_MALFORMED);
}

/* Bytes that must be zero are looked at even without a key. */
static void
reserved(void **state)
{
    static const uint8_t places[] = {5, 6, 7, 36, 37, 38, 39};
    struct aff_slice whole = aff_slice(entry, sizeof(entry));
    struct aff_batch batch;

    (void) state;
    make_entry(&ring);

    for (size_t i = 0; i < COUNT(places); i++) {
        entry[places[i]] = 1;
        assert_int_equal(aff_batch_read(whole, NULL, &batch), AFF_BATCH_MALFORMED);
        entry[places[i]] = 0;
    }

    assert_int_equal(aff_batch_read(whole, NULL, &batch), AFF_BATCH_OK);
}

static void
sizes(void **state)
{
    static uint8_t large[AFF_BATCH_MAX + 1];
    struct aff_batch batch = {.channel = AFF_CHANNEL_CLICKS};
    struct aff_batch got;

    (void) state;
    aff_batch_header(&batch, &ring, large);
    assert_int_equal(
        aff_batch_read(aff_slice(large, AFF_BATCH_HEADER_BYTES), &ring, &got), AFF_BATCH_OK);
    assert_int_equal(got.payload.len, 0);

    for (size_t size = AFF_BATCH_MAX; size <= sizeof(large); size++) {
        batch.payload = aff_slice(large + AFF_BATCH_HEADER_BYTES, size - AFF_BATCH_HEADER_BYTES);
        aff_batch_header(&batch, &ring, large);
        assert_int_equal(aff_batch_read(aff_slice(large, size), &ring, &got),
            size == AFF_BATCH_MAX ? AFF_BATCH_OK : AFF_BATCH_MALFORMED);
    }
}

/* A seal is of one batch alone, and whoever rotates keys first does not matter. */
static void
seals(void **state)
{
    struct aff_keyring before = ring_before(&ring);
    struct aff_batch batch, other;
    uint8_t name[24] = "\x02\0\0\0\x05\0\0\0\x88\x77\x66\x55\x44\x33\x22\x11\x09";
    uint64_t seal;

    (void) state;
    make_entry(&before);
    assert_int_equal(aff_batch_read(aff_slice(entry, sizeof(entry)), &ring, &batch), AFF_BATCH_OK);
    assert_int_equal(batch.key, 1);

    seal = aff_ack_seal(&batch, &ring, batch.key);
    assert_true(seal == aff_siphash(before.keys[0].ack, name, sizeof(name)));
    assert_true(aff_ack_valid(&batch, &before, seal));
    assert_true(aff_ack_valid(&batch, &ring, seal));
    assert_false(aff_ack_valid(&batch, &before, aff_ack_seal(&batch, &ring, 0)));
    assert_false(aff_ack_valid(&batch, &ring, 0));
    for (unsigned bit = 0; bit < 64; bit++) {
        assert_false(aff_ack_valid(&batch, &ring, seal ^ 1ULL << bit));
    }

    for (unsigned field = 0; field < 4; field++) {
        other = batch;
        other.channel -= field == 0;
        other.spool_id ^= field == 1;
        other.segment ^= field == 2;
        other.sequence ^= field == 3;
        assert_false(aff_ack_valid(&other, &ring, seal));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(rotation),
        cmocka_unit_test(tampered),
        cmocka_unit_test(truncated),
        cmocka_unit_test(malformed),
        cmocka_unit_test(reserved),
        cmocka_unit_test(sizes),
        cmocka_unit_test(seals),
    };

    seed_random();
    ring = ring_of(KEY_FILE);
    return RUN(tests);
}
