/*
 * Link and key records. Behind the 16 bytes that projection.h describes, little-endian, a string
 * being a u16 length and its bytes:
 *
 *   link:  u64 link id, merchant id, campaign id, affiliate id, expires ms
 *          u8 state, u8 livemode, u8 hosts, u8 zero
 *          strings code, url, param, fallback, each host
 *   key:   u64 merchant id, u8 livemode, u8 revoked, strings id, master id
 */

#include "projection.h"

#include "api_key.h"
#include "bytes.h"
#include "chars.h"
#include "siphash.h"

#define LAYOUT       1
#define HEADER_BYTES 16
#define MAC_BYTES    8
#define PATTERN_MAX  (AFF_HOST_MAX + 2) /* "*." and a host */

_Static_assert(HEADER_BYTES + 44 + (2 + AFF_CODE_MAX) + 2 * (2 + AFF_URL_MAX) +
                       (2 + AFF_PARAM_MAX) + AFF_LINK_HOSTS_MAX * (2 + PATTERN_MAX) + MAC_BYTES <=
                   AFF_LINK_RECORD_MAX,
    "the largest link does not fit its record");
_Static_assert(
    HEADER_BYTES + 10 + (2 + AFF_API_KEY_ID_CHARS) + (2 + AFF_MASTER_KEY_ID_MAX) + MAC_BYTES <=
        AFF_KEY_RECORD_MAX,
    "the largest key does not fit its record");

bool
aff_code_valid(struct aff_slice code)
{
    return aff_word_valid(code, AFF_CODE_MAX);
}

static bool
link_valid(const struct aff_link *link)
{
    const char *rule;

    if (link->state < AFF_LINK_ACTIVE || link->state > AFF_LINK_REMOVED ||
        link->hosts_count > AFF_LINK_HOSTS_MAX || !aff_code_valid(link->code) ||
        !aff_url_check(link->url, NULL, &rule)) {
        return false;
    }

    if (link->param.len != 0 && !aff_param_name_valid(link->param)) {
        return false;
    }

    if (link->fallback.len != 0 && !aff_url_check(link->fallback, NULL, &rule)) {
        return false;
    }

    for (unsigned i = 0; i < link->hosts_count; i++) {
        if (!aff_host_pattern_valid(link->hosts[i])) {
            return false;
        }
    }

    return true;
}

static bool
key_valid(const struct aff_key *key)
{
    bool livemode;

    return aff_api_key_valid(key->id, &livemode) && livemode == key->livemode &&
           aff_word_valid(key->master_id, AFF_MASTER_KEY_ID_MAX);
}

static void
put_header(struct aff_writer *w, uint8_t kind, uint64_t version)
{
    aff_put_u8(w, kind);
    aff_put_u8(w, LAYOUT);
    aff_put_u16(w, 0);
    aff_put_u32(w, 0);
    aff_put_u64(w, version);
}

/* Puts the MAC behind what was written from `out` on. Returns the record's bytes, 0 on a failure.
 */
static size_t
put_mac(struct aff_writer *w, const struct aff_keyring *ring, const uint8_t *out)
{
    if (w->failed) {
        return 0;
    }

    aff_put_u64(w, aff_siphash(ring->keys[0].projection, out, (size_t) (w->pos - out)));

    return w->failed ? 0 : (size_t) (w->pos - out);
}

size_t
aff_link_encode(
    const struct aff_link *link, const struct aff_keyring *ring, uint8_t *out, size_t room)
{
    struct aff_writer w = {.pos = out, .end = out + room};

    if (!link_valid(link)) {
        return 0;
    }

    put_header(&w, 'L', link->version);
    aff_put_u64(&w, link->link_id);
    aff_put_u64(&w, link->merchant_id);
    aff_put_u64(&w, link->campaign_id);
    aff_put_u64(&w, link->affiliate_id);
    aff_put_u64(&w, link->expires_ms);
    aff_put_u8(&w, link->state);
    aff_put_u8(&w, link->livemode);
    aff_put_u8(&w, link->hosts_count);
    aff_put_u8(&w, 0);
    aff_put_slice(&w, link->code);
    aff_put_slice(&w, link->url);
    aff_put_slice(&w, link->param);
    aff_put_slice(&w, link->fallback);

    for (unsigned i = 0; i < link->hosts_count; i++) {
        aff_put_slice(&w, link->hosts[i]);
    }

    return put_mac(&w, ring, out);
}

size_t
aff_key_encode(const struct aff_key *key, const struct aff_keyring *ring, uint8_t *out, size_t room)
{
    struct aff_writer w = {.pos = out, .end = out + room};

    if (!key_valid(key)) {
        return 0;
    }

    put_header(&w, 'K', key->version);
    aff_put_u64(&w, key->merchant_id);
    aff_put_u8(&w, key->livemode);
    aff_put_u8(&w, key->revoked);
    aff_put_slice(&w, key->id);
    aff_put_slice(&w, key->master_id);

    return put_mac(&w, ring, out);
}

/* Reads the header into `*version` and leaves `r` at the fields, ending in front of the MAC. */
static bool
get_header(
    struct aff_reader *r, struct aff_slice record, size_t max, uint8_t kind, uint64_t *version)
{
    if (record.len < HEADER_BYTES + MAC_BYTES || record.len > max) {
        return false;
    }

    r->pos = record.data + HEADER_BYTES;
    r->end = record.data + record.len - MAC_BYTES;
    r->failed = false;
    *version = aff_load_le64(record.data + 8);

    return record.data[0] == kind && record.data[1] == LAYOUT &&
           aff_load_le16(record.data + 2) == 0 && aff_load_le32(record.data + 4) == 0;
}

/* Only 0 and 1 are taken, so that one record has one encoding. */
static bool
get_bool(struct aff_reader *r)
{
    uint8_t value = aff_get_u8(r);

    if (value > 1) {
        r->failed = true;
    }

    return value == 1;
}

static bool
mac_valid(struct aff_slice record, const struct aff_keyring *ring)
{
    size_t len = record.len - MAC_BYTES;
    uint64_t mac = aff_load_le64(record.data + len);

    for (unsigned i = 0; i < ring->count; i++) {
        /* Two words: equal or not in one comparison, so there is no byte to time. */
        if (aff_siphash(ring->keys[i].projection, record.data, len) == mac) {
            return true;
        }
    }

    return false;
}

enum aff_projection_result
aff_link_decode(struct aff_slice record, struct aff_slice code, const struct aff_keyring *ring,
    struct aff_link *link)
{
    struct aff_reader r;

    if (!get_header(&r, record, AFF_LINK_RECORD_MAX, 'L', &link->version)) {
        return AFF_PROJECTION_MALFORMED;
    }

    link->link_id = aff_get_u64(&r);
    link->merchant_id = aff_get_u64(&r);
    link->campaign_id = aff_get_u64(&r);
    link->affiliate_id = aff_get_u64(&r);
    link->expires_ms = aff_get_u64(&r);
    link->state = aff_get_u8(&r);
    link->livemode = get_bool(&r);
    link->hosts_count = aff_get_u8(&r);

    if (aff_get_u8(&r) != 0 || link->hosts_count > AFF_LINK_HOSTS_MAX) {
        return AFF_PROJECTION_MALFORMED;
    }

    link->code = aff_get_slice(&r, AFF_CODE_MAX);
    link->url = aff_get_slice(&r, AFF_URL_MAX);
    link->param = aff_get_slice(&r, AFF_PARAM_MAX);
    link->fallback = aff_get_slice(&r, AFF_URL_MAX);

    for (unsigned i = 0; i < link->hosts_count; i++) {
        link->hosts[i] = aff_get_slice(&r, PATTERN_MAX);
    }

    if (r.failed || r.pos != r.end || !link_valid(link)) {
        return AFF_PROJECTION_MALFORMED;
    }

    if (!mac_valid(record, ring) || !aff_slice_equal(link->code, code)) {
        return AFF_PROJECTION_FORGED;
    }

    return AFF_PROJECTION_OK;
}

enum aff_projection_result
aff_key_decode(struct aff_slice record, struct aff_slice id, const struct aff_keyring *ring,
    struct aff_key *key)
{
    struct aff_reader r;

    if (!get_header(&r, record, AFF_KEY_RECORD_MAX, 'K', &key->version)) {
        return AFF_PROJECTION_MALFORMED;
    }

    key->merchant_id = aff_get_u64(&r);
    key->livemode = get_bool(&r);
    key->revoked = get_bool(&r);
    key->id = aff_get_slice(&r, AFF_API_KEY_ID_CHARS);
    key->master_id = aff_get_slice(&r, AFF_MASTER_KEY_ID_MAX);

    if (r.failed || r.pos != r.end || !key_valid(key)) {
        return AFF_PROJECTION_MALFORMED;
    }

    if (!mac_valid(record, ring) || !aff_slice_equal(key->id, id)) {
        return AFF_PROJECTION_FORGED;
    }

    return AFF_PROJECTION_OK;
}
