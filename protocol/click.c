/*
 * The click's payload, version 1, little-endian:
 *
 *   0  16   id
 *  16  u64  link id
 *  24  u64  merchant id
 *  32  u64  campaign id
 *  40  u64  affiliate id
 *  48  u64  visitor
 *  56  u32  reasons
 *  60  u8   verdict
 *  61  u8   livemode       0 or 1
 *  62  u8   address family 4, 6 or 0
 *  63  6    address prefix
 *  69  u8   length of each of the five sub-ids
 *  74  u16  length of signals
 *  76  u16  length of user agent
 *  78  u16  length of referrer
 *  80  ...  sub-ids, signals, user agent, referrer, one behind the other
 */

#include "click.h"

#include "bytes.h"
#include "frame.h"

#define FIXED_BYTES 80

_Static_assert(AFF_FRAME_HEADER_BYTES + FIXED_BYTES <= 120, "a click's fixed part has grown");
_Static_assert(AFF_SUB_ID_MAX <= UINT8_MAX, "a sub-id's length is one byte");
_Static_assert(FIXED_BYTES + AFF_SUB_IDS * AFF_SUB_ID_MAX + AFF_SIGNALS_MAX + AFF_USER_AGENT_MAX +
                       AFF_REFERRER_MAX <=
                   AFF_CLICK_PAYLOAD_MAX,
    "a click's strings have grown");

static const char *const verdict_names[AFF_VERDICTS] = {
    [AFF_VERDICT_VALID] = "valid",
    [AFF_VERDICT_DUPLICATE] = "duplicate",
    [AFF_VERDICT_SUSPECT] = "suspect",
    [AFF_VERDICT_PREFETCH] = "prefetch",
    [AFF_VERDICT_PREVIEW] = "preview",
    [AFF_VERDICT_BOT] = "bot",
};

static const char *const reason_names[AFF_REASONS] = {
    "bot_agent",
    "preview_agent",
    "head",
    "prefetch",
    "empty_agent",
    "not_navigation",
    "address_rate",
    "link_rate",
    "repeated",
    "signal",
};

const char *
aff_verdict_name(unsigned verdict)
{
    return verdict < AFF_VERDICTS ? verdict_names[verdict] : "unknown";
}

const char *
aff_reason_name(unsigned bit)
{
    return bit < AFF_REASONS ? reason_names[bit] : "unknown";
}

static inline size_t
cut(struct aff_slice s, size_t max)
{
    return s.len < max ? s.len : max;
}

size_t
aff_click_size(const struct aff_click *click)
{
    size_t size = FIXED_BYTES + cut(click->signals, AFF_SIGNALS_MAX) +
                  cut(click->user_agent, AFF_USER_AGENT_MAX) +
                  cut(click->referrer, AFF_REFERRER_MAX);

    for (unsigned i = 0; i < AFF_SUB_IDS; i++) {
        size += cut(click->sub_ids[i], AFF_SUB_ID_MAX);
    }

    return size;
}

/* How many bytes of an address are kept; 0 also for a family that there is not. */
static inline size_t
prefix_bytes(uint8_t family)
{
    switch (family) {
    case 4:
        return 3;
    case 6:
        return 6;
    default:
        return 0;
    }
}

static inline uint8_t *
append(uint8_t *out, struct aff_slice s, size_t len)
{
    if (len != 0) {
        memcpy(out, s.data, aff_opaque(len));
    }

    return out + len;
}

size_t
aff_click_encode(const struct aff_click *click, uint8_t *out, size_t room)
{
    size_t size = aff_click_size(click);
    size_t signals = cut(click->signals, AFF_SIGNALS_MAX);
    size_t user_agent = cut(click->user_agent, AFF_USER_AGENT_MAX);
    size_t referrer = cut(click->referrer, AFF_REFERRER_MAX);
    uint8_t *end = out + FIXED_BYTES;

    if (size > room) {
        return 0;
    }

    memcpy(out, click->id, AFF_UUID_BYTES);
    aff_store_le64(out + 16, click->link_id);
    aff_store_le64(out + 24, click->merchant_id);
    aff_store_le64(out + 32, click->campaign_id);
    aff_store_le64(out + 40, click->affiliate_id);
    aff_store_le64(out + 48, click->visitor);
    aff_store_le32(out + 56, click->reasons);
    out[60] = click->verdict;
    out[61] = click->livemode;
    out[62] = click->address_family;
    memset(out + 63, 0, sizeof(click->prefix));
    memcpy(out + 63, click->prefix, prefix_bytes(click->address_family));
    aff_store_le16(out + 74, (uint16_t) signals);
    aff_store_le16(out + 76, (uint16_t) user_agent);
    aff_store_le16(out + 78, (uint16_t) referrer);

    for (unsigned i = 0; i < AFF_SUB_IDS; i++) {
        size_t len = cut(click->sub_ids[i], AFF_SUB_ID_MAX);

        out[69 + i] = (uint8_t) len;
        end = append(end, click->sub_ids[i], len);
    }

    end = append(end, click->signals, signals);
    end = append(end, click->user_agent, user_agent);
    (void) append(end, click->referrer, referrer);

    return size;
}

static struct aff_slice
take(struct aff_reader *r, size_t len, size_t max)
{
    const uint8_t *p;

    if (len > max) {
        r->failed = true;
    }

    p = aff_take(r, len);
    return aff_slice(p, p == NULL ? 0 : len);
}

static bool
prefix_valid(const struct aff_click *click)
{
    if (click->address_family != 0 && click->address_family != 4 && click->address_family != 6) {
        return false;
    }

    for (size_t i = prefix_bytes(click->address_family); i < sizeof(click->prefix); i++) {
        if (click->prefix[i] != 0) {
            return false;
        }
    }

    return true;
}

bool
aff_click_decode(uint8_t version, struct aff_slice payload, struct aff_click *click)
{
    const uint8_t *p = payload.data;
    struct aff_reader r;

    if (version != AFF_CLICK_VERSION || payload.len < FIXED_BYTES ||
        payload.len > AFF_CLICK_PAYLOAD_MAX) {
        return false;
    }

    memcpy(click->id, p, AFF_UUID_BYTES);
    click->link_id = aff_load_le64(p + 16);
    click->merchant_id = aff_load_le64(p + 24);
    click->campaign_id = aff_load_le64(p + 32);
    click->affiliate_id = aff_load_le64(p + 40);
    click->visitor = aff_load_le64(p + 48);

    /* Bits that have no name yet are let through: a module may be upgraded before its daemon. */
    click->reasons = aff_load_le32(p + 56);
    click->verdict = p[60];
    click->livemode = p[61] != 0;
    click->address_family = p[62];
    memcpy(click->prefix, p + 63, sizeof(click->prefix));

    if (click->verdict >= AFF_VERDICTS || p[61] > 1 || !prefix_valid(click)) {
        return false;
    }

    r.pos = p + FIXED_BYTES;
    r.end = p + payload.len;
    r.failed = false;

    for (unsigned i = 0; i < AFF_SUB_IDS; i++) {
        click->sub_ids[i] = take(&r, p[69 + i], AFF_SUB_ID_MAX);
    }

    click->signals = take(&r, aff_load_le16(p + 74), AFF_SIGNALS_MAX);
    click->user_agent = take(&r, aff_load_le16(p + 76), AFF_USER_AGENT_MAX);
    click->referrer = take(&r, aff_load_le16(p + 78), AFF_REFERRER_MAX);

    return !r.failed && r.pos == r.end;
}
