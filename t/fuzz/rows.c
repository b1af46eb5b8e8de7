/*
 * A batch of our own key, of any records. A byte of choices, one for PostgreSQL's failures; then
 * records: type, version, length (2), payload; and what is left is the batch's unreadable end.
 * Every record that was accepted is a row or a dead letter.
 */

#include "daemon.h"

#include "bytes.h"

#define RECORDS_MAX 64

static uint8_t entry[AFF_BATCH_MAX];
static uint8_t replies[AFF_BATCH_MAX + 1024];

/* Frames of the records; `*frames` is how many can be read. */
static size_t
make_frames(struct aff_slice data, uint8_t *out, uint32_t seed, unsigned *frames)
{
    size_t len = 0;

    *frames = 0;
    while (data.len >= 4 && *frames < RECORDS_MAX) {
        size_t payload = aff_load_le16(data.data + 2);

        if (payload > data.len - 4 || payload > AFF_FRAME_PAYLOAD_MAX) {
            break;
        }

        memcpy(out + len + AFF_FRAME_HEADER_BYTES, data.data + 4, payload);
        len += aff_frame_seal(out + len, data.data[0], data.data[1], payload, seed);
        data = aff_slice(data.data + 4 + payload, data.len - 4 - payload);
        (*frames)++;
    }

    if (data.len > 0 && data.len < 1024) {
        /* A length of 0 makes of it an end that nothing follows. */
        memcpy(out + len, data.data, data.len);
        len += data.len;
    }

    return len;
}

static struct aff_slice
make_replies(const char *stream, size_t len)
{
    int head = snprintf((char *) replies, sizeof(replies),
        "+OK\r\n*1\r\n*2\r\n$%zu\r\n%s\r\n*0\r\n" /* nothing of ours is pending */
        "*1\r\n*2\r\n$%zu\r\n%s\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$%zu\r\n%s\r\n$%zu\r\n",
        strlen(stream), stream, strlen(stream), stream, strlen(AFF_STREAM_FIELD), AFF_STREAM_FIELD,
        len);
    size_t at = (size_t) head;

    memcpy(replies + at, entry, len);
    at += len;
    /* No more for now, while this one is applied; then SETBIT, EXPIRE, XACK. */
    at += (size_t) snprintf((char *) replies + at, sizeof(replies) - at,
        "\r\n*-1\r\n*-1\r\n*-1\r\n*-1\r\n*-1\r\n*-1\r\n:0\r\n:1\r\n:1\r\n");
    return aff_slice(replies, at);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct aff_batch batch = {.spool_id = 1, .segment = 2, .sequence = 3};
    struct daemon_life life = {.lane = 1, .streams = 1, .sqlstate = "22021"};
    unsigned frames;
    size_t len;

    if (size < 2 || size > AFF_BATCH_MAX / 4) {
        return 0;
    }

    life.conversions = (data[0] & 1) != 0;
    life.fail_at = data[1] & 31;
    life.fail_again = (data[1] & 32) != 0;

    len = make_frames(aff_slice(data + 2, size - 2), entry + AFF_BATCH_HEADER_BYTES,
        aff_frame_seed(batch.spool_id, batch.segment), &frames);
    batch.channel = life.conversions ? AFF_CHANNEL_CONVERSIONS : AFF_CHANNEL_CLICKS;
    batch.records = frames + (data[0] >> 1 & 1);
    batch.payload = aff_slice(entry + AFF_BATCH_HEADER_BYTES, len);
    aff_batch_header(&batch, fuzz_ring(), entry);

    (void) daemon_live(&life, make_replies(life.conversions ? "aff:conversions:0" : "aff:clicks:0",
                                  AFF_BATCH_HEADER_BYTES + len));

    if (life.fail_at == 0 && postgres.commits > 0) {
        require(postgres.dead_rest <= 1);
        require(postgres.rows + postgres.dead >= frames || postgres.dead_rest == 1);
        require(postgres.rows + postgres.dead <= RECORDS_MAX + 1);
    }

    return 0;
}
