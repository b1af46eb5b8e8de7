/* Writes the seeds that are not text: t/fuzz/seeds/TARGET/NAME below the folder given. Run again
 * whenever a format changes. */

#include "fuzz.h"

#include "batch.h"
#include "click.h"
#include "conversion.h"
#include "projection.h"
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
    save(root, "frame", "two", make_log(out, 1));

    size = make_log(out + AFF_BATCH_HEADER_BYTES, aff_frame_seed(1, 2));
    batch.payload = aff_slice(out + AFF_BATCH_HEADER_BYTES, size);
    aff_batch_header(&batch, fuzz_ring(), out);
    save(root, "batch", "two", AFF_BATCH_HEADER_BYTES + size);

    save_projection(root);
    save_segment(root);

    return 0;
}
