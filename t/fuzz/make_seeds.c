/* Writes the seeds that are not text: t/fuzz/seeds/TARGET/NAME below the folder given. Run again
 * whenever a format changes. */

#include "fuzz.h"

#include "batch.h"
#include "bytes.h"
#include "click.h"
#include "conversion.h"
#include "frame.h"
#include "projection.h"
#include "refusal.h"
#include "segment.h"

#include <sys/stat.h>

_Alignas(8) static uint8_t out[65536];

static void
save(const char *root, const char *target, const char *name, size_t size)
{
    char path[4096];
    FILE *file;

    require(size > 0);
    (void) snprintf(path, sizeof(path), "%s/%s", root, target);
    (void) mkdir(path, 0755);
    (void) snprintf(path, sizeof(path), "%s/%s/%s", root, target, name);
    file = fopen(path, "wb");
    require(file != NULL && fwrite(out, 1, size, file) == size && fclose(file) == 0);
}

static struct aff_click
sample_click(void)
{
    return (struct aff_click){
        .id = {0x01, 0x9a, 0xb1, 0x2c, 0x3d, 0x4e, 0x70, 0x01, 0x80},
        .link_id = 1,
        .merchant_id = 2,
        .campaign_id = 3,
        .affiliate_id = 4,
        .visitor = 5,
        .reasons = AFF_REASON_REPEATED,
        .verdict = AFF_VERDICT_DUPLICATE,
        .livemode = true,
        .address_family = 4,
        .prefix = {192, 0, 2},
        .sub_ids = {aff_slice_of("one"), aff_slice_of("two")},
        .signals = aff_slice_of("vpn=1"),
        .user_agent = aff_slice_of("Mozilla/5.0"),
        .referrer = aff_slice_of("https://blog.example/"),
    };
}

static size_t
make_conversion(uint8_t *payload, size_t room, bool with_items)
{
    static struct aff_conversion conversion;

    conversion = (struct aff_conversion){
        .merchant_id = 2,
        .source = AFF_SOURCE_SINGLE,
        .key_id = aff_slice_of("ak_test_0123456789ABCDEFabcd"),
        .idempotency_key = aff_slice_of("NP-1001-approved"),
        .received_ms = 1764000000000,
        .order_id = aff_slice_of("NP-1001"),
        .status = AFF_STATUS_APPROVED,
        .has_amount = with_items,
        .amount_minor = 125050,
        .currency = "NPR",
        .items_count = with_items ? 2 : 0,
        .items = {{aff_slice_of("s1"), aff_slice_of("shoes"), 1, 100000},
            {aff_slice_of("s2"), aff_slice_of(""), 3, 25050}},
    };

    return aff_conversion_encode(&conversion, payload, room);
}

static size_t
make_refusal(uint8_t *payload, size_t room)
{
    const struct aff_refusal refusal = {
        .merchant_id = 2,
        .source = AFF_SOURCE_SINGLE,
        .authentic = true,
        .status = 422,
        .refused_ms = 1764000000000,
        .body_bytes = 100,
        .key_id = aff_slice_of("ak_test_0123456789ABCDEFabcd"),
        .code = aff_slice_of("validation"),
        .detail = aff_slice_of("Fields of the event are not valid."),
        .idempotency_key = aff_slice_of("NP-1001-approved"),
        .order_id = aff_slice_of("NP-1001"),
        .timestamp = aff_slice_of("1764000000"),
        .target = aff_slice_of("/v1/conversions"),
        .request_id = aff_slice_of("0123456789abcdef"),
        .errors_count = 1,
        .errors = {{aff_slice_of("/amount"), aff_slice_of("is required")}},
    };

    return aff_refusal_encode(&refusal, payload, room);
}

/* Two frames, as a log or as a batch's payload. */
static size_t
make_log(uint8_t *at, uint32_t seed)
{
    struct aff_click click = sample_click();
    size_t size = aff_click_encode(&click, at + AFF_FRAME_HEADER_BYTES, AFF_CLICK_PAYLOAD_MAX);

    size = aff_frame_seal(at, AFF_FRAME_CLICK, AFF_CLICK_VERSION, size, seed);
    click.verdict = AFF_VERDICT_VALID;
    size += aff_frame_seal(at + size, AFF_FRAME_CLICK, AFF_CLICK_VERSION,
        aff_click_encode(&click, at + size + AFF_FRAME_HEADER_BYTES, AFF_CLICK_PAYLOAD_MAX), seed);

    return size;
}

static void
save_projection(const char *root)
{
    struct aff_link link = {
        .version = 1,
        .link_id = 1,
        .merchant_id = 2,
        .state = AFF_LINK_ACTIVE,
        .code = aff_slice_of("spring"),
        .url = aff_slice_of("https://shop.example/p?x=1"),
        .param = aff_slice_of("cid"),
        .fallback = aff_slice_of("https://shop.example/"),
        .hosts_count = 1,
        .hosts = {aff_slice_of("*.shop.example")},
    };
    struct aff_key key = {
        .version = 1,
        .merchant_id = 2,
        .id = aff_slice_of("ak_test_0123456789ABCDEFabcd"),
        .master_id = aff_slice_of("fuzz"),
    };

    save(root, "projection", "link", aff_link_encode(&link, fuzz_ring(), out, sizeof(out)));
    save(root, "projection", "key", aff_key_encode(&key, fuzz_ring(), out, sizeof(out)));
}

static void
save_segment(const char *root)
{
    const struct aff_segment segment = {
        .channel = AFF_CHANNEL_CLICKS,
        .spool_id = 1,
        .number = 2,
        .made_ms = 1764000000000,
        .size = 262144,
    };

    aff_segment_seal(out, &segment);
    save(root, "segment", "used", AFF_SEGMENT_HEADER_BYTES);
    memcpy(out, AFF_SEGMENT_MARK_FREE, AFF_SEGMENT_MARK_BYTES);
    save(root, "segment", "free", AFF_SEGMENT_HEADER_BYTES);
}

static size_t
put_text(uint8_t *to, size_t at, const char *text)
{
    memcpy(to + at, text, strlen(text));
    return at + strlen(text);
}

/* What Redis says in a life of the daemon, as t/fuzz/stream.c takes it; the entry is in `out`. */
static void
save_streams(const char *root, size_t entry)
{
    static const char groups[] =
        "*1\r\n*6\r\n$4\r\nname\r\n$10\r\naffiliated\r\n$17\r\nlast-delivered-id\r\n"
        "$3\r\n5-1\r\n$3\r\nlag\r\n:3\r\n*4\r\n:2\r\n$3\r\n4-1\r\n$3\r\n5-1\r\n*0\r\n";
    static const char clock[] = "*2\r\n$10\r\n1764000000\r\n$1\r\n7\r\n";
    static const char info[] = "$35\r\nused_memory:90\r\nmaxmemory:100\r\nx:1\r\n\r\n";
    static uint8_t text[65536];
    char head[128];
    size_t at = 2, live;

    text[0] = 2; /* clicks, one stream, from the login on */
    text[1] = 0;
    at = put_text(text, at, "*3\r\n$6\r\nmaster\r\n:9\r\n*0\r\n+OK\r\n");
    at = put_text(text, at, clock);
    at = put_text(text, at, groups);
    at = put_text(text, at, ":7\r\n"); /* XLEN */
    at = put_text(text, at, clock);
    at = put_text(text, at, groups);
    at = put_text(text, at, info);
    at = put_text(text, at, info);
    at = put_text(text, at, ":40\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*0\r\n:1\r\n:0\r\n");
    at = put_text(text, at, "*3\r\n$3\r\n0-0\r\n*1\r\n$3\r\n4-1\r\n*1\r\n$3\r\n3-1\r\n");
    at = put_text(text, at, "$3\r\n1/1\r\n"); /* another PostgreSQL: a replay */
    at = put_text(text, at, clock);
    at = put_text(text, at, groups);
    at = put_text(text, at, "*0\r\n+OK\r\n");
    live = at;
    (void) snprintf(head, sizeof(head),
        "*1\r\n*2\r\n$12\r\naff:clicks:0\r\n*2\r\n*2\r\n$3\r\n6-1\r\n*2\r\n$1\r\nb\r\n$%zu\r\n",
        entry);
    at = put_text(text, at, head);
    memcpy(text + at, out, entry);
    at += entry;
    at = put_text(
        text, at, "\r\n*2\r\n$3\r\n6-2\r\n*-1\r\n*1\r\n*2\r\n$12\r\naff:clicks:0\r\n*0\r\n");
    at = put_text(text, at, "*-1\r\n*-1\r\n*-1\r\n*-1\r\n*-1\r\n*-1\r\n:0\r\n:1\r\n:2\r\n");
    memcpy(out, text, at);
    save(root, "stream", "life", at);

    /* The same without upkeep: a second thread's. */
    out[0] = 4;
    at -= live;
    memcpy(out + 2, "+OK\r\n", 5);
    memcpy(out + 7, text + live, at);
    save(root, "stream", "thread", 7 + at);
}

/* A byte of choices and one of failures, records as t/fuzz/rows.c takes them. */
static void
save_rows(const char *root)
{
    struct aff_click click = sample_click();
    size_t size;

    memset(out, 0, 4);
    size = aff_click_encode(&click, out + 6, sizeof(out) - 6);
    out[2] = AFF_FRAME_CLICK;
    out[3] = AFF_CLICK_VERSION;
    aff_store_le16(out + 4, (uint16_t) size);
    memcpy(out + 6 + size, out + 2, 4 + size);
    save(root, "rows", "clicks", 2 + 2 * (4 + size));
    out[1] = 32 | 3;
    save(root, "rows", "clicks_refused", 2 + 2 * (4 + size));

    size = make_conversion(out + 6, sizeof(out) - 6, true);
    out[0] = 1;
    out[1] = 0;
    out[2] = AFF_FRAME_CONVERSION;
    out[3] = AFF_CONVERSION_VERSION;
    aff_store_le16(out + 4, (uint16_t) size);
    save(root, "rows", "conversion", 2 + 4 + size);
    memcpy(out + 6 + size, out + 2, 4 + size);
    out[1] = 32 | 4;
    save(root, "rows", "conversions_refused", 2 + 2 * (4 + size));

    size = make_refusal(out + 6, sizeof(out) - 6);
    out[1] = 0;
    out[2] = AFF_FRAME_REFUSAL;
    out[3] = AFF_REFUSAL_VERSION;
    aff_store_le16(out + 4, (uint16_t) size);
    save(root, "rows", "refusal", 2 + 4 + size);
}

/* A byte of choices, a header, frames with and without the boundary of a batch. */
static void
save_spool(const char *root)
{
    _Alignas(8) static uint8_t log[16384];
    struct aff_segment segment = {.channel = AFF_CHANNEL_CLICKS,
        .spool_id = 1,
        .number = 2,
        .made_ms = 1764000000000,
        .size = 8192};
    uint32_t seed = aff_frame_seed(1, 2);
    size_t size = make_log(log, seed);

    aff_segment_seal(log + 12288, &segment);
    aff_store_le32(log + size + AFF_FRAME_HEADER_BYTES, 0);
    aff_store_le32(log + size + AFF_FRAME_HEADER_BYTES + 4, 2);
    size += aff_frame_seal(log + size, AFF_FRAME_BOUNDARY, 1, 8, seed);
    size += make_log(log + size, seed);
    out[0] = 0;
    memcpy(out + 1, log + 12288, AFF_SEGMENT_HEADER_BYTES);
    memcpy(out + 1 + AFF_SEGMENT_HEADER_BYTES, log, size);
    save(root, "spool", "two_batches", 1 + AFF_SEGMENT_HEADER_BYTES + size);
    out[0] = 2 << 4;
    save(root, "spool", "damaged", 1 + AFF_SEGMENT_HEADER_BYTES + size);
    memmove(out, out + 1, AFF_SEGMENT_HEADER_BYTES + size);
    save(root, "dump", "segment", AFF_SEGMENT_HEADER_BYTES + size);
}

int
main(int argc, char **argv)
{
    const char *root = argc == 2 ? argv[1] : "t/fuzz/seeds";
    struct aff_click click = sample_click();
    struct aff_batch batch = {
        .channel = AFF_CHANNEL_CLICKS,
        .spool_id = 1,
        .segment = 2,
        .sequence = 3,
        .records = 2,
    };
    size_t size;

    save(root, "click", "full", aff_click_encode(&click, out, sizeof(out)));
    save(root, "conversion", "items", make_conversion(out, sizeof(out), true));
    save(root, "conversion", "bare", make_conversion(out, sizeof(out), false));
    save(root, "refusal", "one", make_refusal(out, sizeof(out)));
    save(root, "frame", "two", make_log(out, 1));

    size = make_log(out + AFF_BATCH_HEADER_BYTES, aff_frame_seed(1, 2));
    batch.payload = aff_slice(out + AFF_BATCH_HEADER_BYTES, size);
    aff_batch_header(&batch, fuzz_ring(), out);
    save(root, "batch", "two", AFF_BATCH_HEADER_BYTES + size);

    save(root, "dump", "entry", AFF_BATCH_HEADER_BYTES + size);
    save_streams(root, AFF_BATCH_HEADER_BYTES + size);

    save_projection(root);
    save_segment(root);
    save_rows(root);
    save_spool(root);

    return 0;
}
