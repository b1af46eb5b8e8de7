/* Link and key records: round trip, limits, swapped records, and every byte tampered with or cut.
 */

#include "unit.h"

#include "api_key.h"
#include "projection.h"
#include "siphash.h"

#define KEY_ID "ak_test_0123456789ABCDEFabcd"

static struct aff_keyring ring;
static uint8_t out[AFF_LINK_RECORD_MAX + 1];

static struct aff_link
full_link(void)
{
    return (struct aff_link){
        .version = 7,
        .link_id = 1,
        .merchant_id = 2,
        .campaign_id = 3,
        .affiliate_id = 4,
        .expires_ms = 1764000000000,
        .state = AFF_LINK_ACTIVE,
        .livemode = true,
        .code = aff_slice_of("spring-2026"),
        .url = aff_slice_of("https://shop.example/p?x=1"),
        .param = aff_slice_of("cid"),
        .fallback = aff_slice_of("https://shop.example/"),
        .hosts_count = 2,
        .hosts = {aff_slice_of("shop.example"), aff_slice_of("*.shop.example")},
    };
}

static struct aff_key
full_key(void)
{
    return (struct aff_key){
        .version = 9,
        .merchant_id = 2,
        .revoked = true,
        .id = aff_slice_of(KEY_ID),
        .master_id = aff_slice_of("new"),
    };
}

static enum aff_projection_result
read_link(size_t size, struct aff_link *link)
{
    return aff_link_decode(aff_slice(out, size), aff_slice_of("spring-2026"), &ring, link);
}

static void
link_round_trip(void **state)
{
    struct aff_link link = full_link();
    size_t size = aff_link_encode(&link, &ring, out, sizeof(out));
    struct aff_link got;

    (void) state;
    assert_true(size > 0);

    for (size_t room = 0; room <= size; room++) {
        struct aff_slice target = exact(out, room);

        assert_int_equal(
            aff_link_encode(&link, &ring, (uint8_t *) target.data, room), room == size ? size : 0);
        drop(target);
    }

    assert_int_equal(read_link(size, &got), AFF_PROJECTION_OK);
    assert_true(got.version == 7 && got.link_id == 1 && got.merchant_id == 2 &&
                got.campaign_id == 3 && got.affiliate_id == 4 && got.expires_ms == link.expires_ms);
    assert_true(got.state == AFF_LINK_ACTIVE && got.livemode && got.hosts_count == 2);
    assert_slice(got.code, "spring-2026");
    assert_slice(got.url, "https://shop.example/p?x=1");
    assert_slice(got.param, "cid");
    assert_slice(got.fallback, "https://shop.example/");
    assert_slice(got.hosts[1], "*.shop.example");

    link.param = link.fallback = aff_slice(NULL, 0);
    link.hosts_count = 0;
    size = aff_link_encode(&link, &ring, out, sizeof(out));
    assert_int_equal(read_link(size, &got), AFF_PROJECTION_OK);
    assert_int_equal(got.param.len, 0);
    assert_int_equal(got.fallback.len, 0);
}

static void
largest_link_fits(void **state)
{
    static char url[AFF_URL_MAX];
    static char host[AFF_HOST_MAX + 2];
    struct aff_link link = full_link();
    struct aff_link got;
    size_t size;

    (void) state;
    memset(url, 'a', sizeof(url));
    memcpy(url, "https://a.b/", 12);

    for (unsigned i = 0; i < AFF_HOST_MAX; i++) {
        host[2 + i] = i % 64 == 63 ? '.' : 'h';
    }
    memcpy(host, "*.", 2);

    link.code = aff_slice(url + 20, AFF_CODE_MAX);
    link.param = aff_slice(url + 20, AFF_PARAM_MAX);
    link.url = link.fallback = aff_slice(url, sizeof(url));
    link.hosts_count = AFF_LINK_HOSTS_MAX;

    for (unsigned i = 0; i < AFF_LINK_HOSTS_MAX; i++) {
        link.hosts[i] = aff_slice(host, sizeof(host));
    }

    size = aff_link_encode(&link, &ring, out, AFF_LINK_RECORD_MAX);
    assert_true(size > 0);
    assert_int_equal(
        aff_link_decode(aff_slice(out, size), link.code, &ring, &got), AFF_PROJECTION_OK);
}

#define REFUSED(change)                                                                            \
    do {                                                                                           \
        link = full_link();                                                                        \
        change;                                                                                    \
        assert_int_equal(aff_link_encode(&link, &ring, out, sizeof(out)), 0);                      \
    } while (0)

static void
link_refused(void **state)
{
    struct aff_link link;

    (void) state;
    REFUSED(link.state = 0);
    REFUSED(link.state = 4);
    REFUSED(link.code = aff_slice_of(""));
    REFUSED(link.code = aff_slice_of("a b"));
    REFUSED(link.code = aff_slice_of("a/b"));
    REFUSED(link.url = aff_slice_of(""));
    REFUSED(link.url = aff_slice_of("https://user@shop.example/"));
    REFUSED(link.param = aff_slice_of("a=b"));
    REFUSED(link.fallback = aff_slice_of("/relative"));
    REFUSED(link.hosts_count = AFF_LINK_HOSTS_MAX + 1);
    REFUSED(link.hosts[1] = aff_slice_of("*"));
    REFUSED(link.hosts[0] = aff_slice_of(""));
}

/* Byte by byte: nothing that is bent is taken; what is well-formed is called forged. */
static void
link_tampered(void **state)
{
    struct aff_link link = full_link();
    struct aff_link got;
    size_t size = aff_link_encode(&link, &ring, out, sizeof(out));

    (void) state;

    for (size_t at = 0; at < size; at++) {
        for (unsigned flip = 1; flip < 256; flip++) {
            struct aff_slice copy;

            out[at] ^= (uint8_t) flip;
            copy = exact(out, size);
            assert_int_not_equal(aff_link_decode(copy, link.code, &ring, &got), AFF_PROJECTION_OK);
            drop(copy);
            out[at] ^= (uint8_t) flip;
        }
    }

    out[size - 1] ^= 1;
    assert_int_equal(read_link(size, &got), AFF_PROJECTION_FORGED);
}

static void
truncated(void **state)
{
    struct aff_link link = full_link();
    struct aff_key key = full_key();
    struct aff_link got_link;
    struct aff_key got_key;
    size_t size = aff_link_encode(&link, &ring, out, sizeof(out));

    (void) state;

    for (size_t len = 0; len < size; len++) {
        struct aff_slice copy = exact(out, len);

        assert_int_equal(
            aff_link_decode(copy, link.code, &ring, &got_link), AFF_PROJECTION_MALFORMED);
        drop(copy);
    }

    assert_int_equal(
        aff_link_decode(aff_slice(out, AFF_LINK_RECORD_MAX + 1), link.code, &ring, &got_link),
        AFF_PROJECTION_MALFORMED);

    size = aff_key_encode(&key, &ring, out, sizeof(out));

    for (size_t len = 0; len < size; len++) {
        struct aff_slice copy = exact(out, len);

        assert_int_equal(aff_key_decode(copy, key.id, &ring, &got_key), AFF_PROJECTION_MALFORMED);
        drop(copy);
    }
}

static void
key_round_trip(void **state)
{
    struct aff_key key = full_key();
    struct aff_key got;
    size_t size = aff_key_encode(&key, &ring, out, AFF_KEY_RECORD_MAX);

    (void) state;
    assert_true(size > 0);
    assert_int_equal(aff_key_decode(aff_slice(out, size), key.id, &ring, &got), AFF_PROJECTION_OK);
    assert_true(got.version == 9 && got.merchant_id == 2 && got.revoked && !got.livemode);
    assert_slice(got.id, KEY_ID);
    assert_slice(got.master_id, "new");

    for (size_t at = 0; at < size; at++) {
        for (unsigned flip = 1; flip < 256; flip++) {
            out[at] ^= (uint8_t) flip;
            assert_int_not_equal(
                aff_key_decode(aff_slice(out, size), key.id, &ring, &got), AFF_PROJECTION_OK);
            out[at] ^= (uint8_t) flip;
        }
    }

    /* A mode that is not its id's, ids that are none. */
    key.livemode = true;
    assert_int_equal(aff_key_encode(&key, &ring, out, sizeof(out)), 0);
    key = full_key();
    key.id = aff_slice_of("ak_test_");
    assert_int_equal(aff_key_encode(&key, &ring, out, sizeof(out)), 0);
    key = full_key();
    key.master_id = aff_slice_of("");
    assert_int_equal(aff_key_encode(&key, &ring, out, sizeof(out)), 0);
}

/* A genuine record under another name, or of the other kind, is no answer to what was asked. */
static void
swapped(void **state)
{
    struct aff_link link = full_link();
    struct aff_key key = full_key();
    struct aff_link got_link;
    struct aff_key got_key;
    size_t size = aff_link_encode(&link, &ring, out, sizeof(out));

    (void) state;
    assert_int_equal(
        aff_link_decode(aff_slice(out, size), aff_slice_of("spring-2027"), &ring, &got_link),
        AFF_PROJECTION_FORGED);
    assert_int_equal(
        aff_key_decode(aff_slice(out, size), key.id, &ring, &got_key), AFF_PROJECTION_MALFORMED);

    size = aff_key_encode(&key, &ring, out, sizeof(out));
    assert_int_equal(aff_key_decode(aff_slice(out, size),
                         aff_slice_of("ak_test_0123456789ABCDEFabce"), &ring, &got_key),
        AFF_PROJECTION_FORGED);
}

static void
rotation(void **state)
{
    struct aff_keyring before = ring_before(&ring);
    struct aff_link link = full_link();
    struct aff_link got;
    size_t size = aff_link_encode(&link, &before, out, sizeof(out));

    (void) state;
    assert_int_equal(read_link(size, &got), AFF_PROJECTION_OK);

    size = aff_link_encode(&link, &ring, out, sizeof(out));
    assert_int_equal(
        aff_link_decode(aff_slice(out, size), link.code, &before, &got), AFF_PROJECTION_FORGED);
}

/* Whoever has the key still can't bring in a destination that no check would pass. */
static void
signed_but_invalid(void **state)
{
    struct aff_link link = full_link();
    struct aff_link got;
    size_t size = aff_link_encode(&link, &ring, out, sizeof(out));
    uint8_t *scheme = memmem(out, size, "https://", 8);
    uint64_t mac;

    (void) state;
    assert_non_null(scheme);
    scheme[0] = 'x';
    mac = aff_siphash(ring.keys[0].projection, out, size - 8);

    for (unsigned i = 0; i < 8; i++) {
        out[size - 8 + i] = (uint8_t) (mac >> (8 * i));
    }

    assert_int_equal(read_link(size, &got), AFF_PROJECTION_MALFORMED);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(link_round_trip),
        cmocka_unit_test(largest_link_fits),
        cmocka_unit_test(link_refused),
        cmocka_unit_test(link_tampered),
        cmocka_unit_test(truncated),
        cmocka_unit_test(key_round_trip),
        cmocka_unit_test(swapped),
        cmocka_unit_test(rotation),
        cmocka_unit_test(signed_but_invalid),
    };

    ring = ring_of(KEY_FILE);
    return RUN(tests);
}
