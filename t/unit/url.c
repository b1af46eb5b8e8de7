/* Destinations: the check, hosts, merging, and the walk over a query. */

#include "unit.h"

#include "chars.h"
#include "url.h"

static void
accepted(void **state)
{
    static const struct {
        const char *url;
        const char *host;
        const char *port;
    } table[] = {
        {"https://shop.example", "shop.example", ""},
        {"http://shop.example/", "shop.example", ""},
        {"HTTPS://Shop.Example/A?b=c#d", "Shop.Example", ""},
        {"https://shop.example:8443/a", "shop.example", "8443"},
        {"https://shop.example:65535", "shop.example", "65535"},
        {"https://shop.example?a=1", "shop.example", ""},
        {"https://shop.example#top", "shop.example", ""},
        {"https://shop.example./a", "shop.example.", ""},
        {"https://localhost/", "localhost", ""},
        {"https://my_shop.example/", "my_shop.example", ""},
        {"https://xn--11b4c3d.example/", "xn--11b4c3d.example", ""},
        {"http://192.0.2.7:80/", "192.0.2.7", "80"},
        {"http://[2001:db8::1]/a", "[2001:db8::1]", ""},
        {"http://[::ffff:192.0.2.7]:8080", "[::ffff:192.0.2.7]", "8080"},
        {"https://a.example/@user?x=@y:z", "a.example", ""},
        {"https://a.example/%zz;[]()*'!$", "a.example", ""},
    };

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        struct aff_slice copy = exact(table[i].url, strlen(table[i].url));
        struct aff_url_parts parts;
        const char *rule = NULL;

        if (!aff_url_check(copy, &parts, &rule)) {
            fail_msg("%s: %s", table[i].url, rule);
        }

        assert_slice(parts.host, table[i].host);
        assert_slice(parts.port, table[i].port);
        assert_true(aff_url_check(copy, NULL, &rule));
        drop(copy);
    }
}

static void
refused(void **state)
{
    static const struct {
        const char *url;
        const char *rule;
    } table[] = {
        {"", "does not begin"},
        {"//shop.example/", "does not begin"},
        {"/path", "does not begin"},
        {"ftp://shop.example/", "does not begin"},
        {"javascript:alert(1)", "does not begin"},
        {"http:/shop.example", "does not begin"},
        {"https:shop.example", "does not begin"},
        {"https://", "has no host"},
        {"https:///path", "has no host"},
        {"https://?a", "has no host"},
        {"https://user@shop.example/", "has user information"},
        {"https://user:pw@shop.example/", "has user information"},
        {"https://@shop.example/", "has user information"},
        {"https://:80/", "has no valid host"},
        {"https://.example/", "has no valid host"},
        {"https://a..example/", "has no valid host"},
        {"https://./", "has no valid host"},
        {"https://a.example../", "has no valid host"},
        {"https://-a.example/", "has no valid host"},
        {"https://a-.example/", "has no valid host"},
        {"https://a%2eexample/", "has no valid host"},
        {"https://a,b/", "has no valid host"},
        {"https://127.1/", "has no valid host"},
        {"https://2130706433/", "has no valid host"},
        {"https://0x7f.0.0.1/", "has no valid host"},
        {"https://0x7f000001/", "has no valid host"},
        {"https://192.0.2.256/", "has no valid host"},
        {"https://192.0.2.7.8/", "has no valid host"},
        {"https://[::1/", "has a bracket"},
        {"https://[::g]/", "has no valid IPv6"},
        {"https://[]/", "has no valid IPv6"},
        {"https://[fe80::1%25eth0]/", "has no valid IPv6"},
        {"https://[192.0.2.7]/", "has no valid IPv6"},
        {"https://[::1]x/", "has something other"},
        {"https://a.example:/", "has a port outside"},
        {"https://a.example:0/", "has a port outside"},
        {"https://a.example:65536/", "has a port outside"},
        {"https://a.example:000080/", "has a port outside"},
        {"https://a.example:8a/", "has a port that is no number"},
        {"https://a.example:80:80/", "has a port that is no number"},
        {"https://a.example/ b", "has a byte"},
        {"https://a.example/\r\nSet-Cookie:x", "has a byte"},
        {"https://a.example/\x7f", "has a byte"},
        {"https://\xe0\xa4\xa8.example/", "has a byte"},
        {"https://a.example\\@b.example/", "has a byte"},
        {"https://a.example/\"", "has a byte"},
        {"https://a.example/<x>", "has a byte"},
        {"https://a.example/{x}|^`", "has a byte"},
    };

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        struct aff_slice copy = exact(table[i].url, strlen(table[i].url));
        const char *rule = "";

        if (aff_url_check(copy, NULL, &rule)) {
            fail_msg("%s was accepted", table[i].url);
        }

        if (strncmp(rule, table[i].rule, strlen(table[i].rule)) != 0) {
            fail_msg("%s: %s", table[i].url, rule);
        }
        drop(copy);
    }
}

/* Each byte value in turn, in the path: the rule is the header's list, nothing else. */
static void
every_byte(void **state)
{
    (void) state;

    for (unsigned c = 0; c < 256; c++) {
        char url[] = "https://a.example/_x";
        const char *rule;
        bool want = c >= 0x21 && c <= 0x7e && strchr("\"<>\\^`{|}", (int) c) == NULL;

        url[18] = (char) c;
        assert_int_equal(aff_url_check(aff_slice(url, sizeof(url) - 1), NULL, &rule), want);
    }
}

/* Each byte value at each place of texts of each length around a block's: the blocks hide none. */
static void
every_byte_in_blocks(void **state)
{
    uint8_t text[49];

    (void) state;

    for (size_t len = 1; len <= sizeof(text); len++) {
        for (size_t at = 0; at < len; at++) {
            for (unsigned c = 0; c < 256; c++) {
                struct aff_slice all = aff_slice(text, len);

                memset(text, 'a', sizeof(text));
                text[at] = (uint8_t) c;
                assert_int_equal(aff_chars_url(all), aff_chars_all(all, AFF_CHAR_URL));
                assert_int_equal(
                    aff_chars_unreserved(all), aff_chars_all(all, AFF_CHAR_UNRESERVED));
                assert_int_equal(aff_chars_visible(all), c >= 0x21 && c <= 0x7e);
            }
        }
    }
}

static void
lengths(void **state)
{
    char url[AFF_URL_MAX + 1] = "https://";
    char host[AFF_HOST_MAX + 2];
    const char *rule = NULL;

    (void) state;
    memset(url, 'a', sizeof(url));
    memcpy(url, "https://a.example/", 18);
    assert_true(aff_url_check(aff_slice(url, AFF_URL_MAX), NULL, &rule));
    assert_false(aff_url_check(aff_slice(url, AFF_URL_MAX + 1), NULL, &rule));
    assert_memory_equal(rule, "is longer", 9);

    for (unsigned i = 0; i < sizeof(host); i++) {
        host[i] = i % 64 == 63 ? '.' : 'h';
    }
    assert_true(aff_host_pattern_valid(aff_slice(host, AFF_HOST_MAX)));
    assert_false(aff_host_pattern_valid(aff_slice(host, AFF_HOST_MAX + 1)));
    host[63] = 'h';
    assert_false(aff_host_pattern_valid(aff_slice(host, 100)));
}

static void
hosts(void **state)
{
    static const struct {
        const char *host;
        const char *allowed;
        bool match;
    } table[] = {
        {"shop.example", "shop.example", true},
        {"SHOP.example.", "shop.EXAMPLE", true},
        {"shop.example", "shop.example.", true},
        {"www.shop.example", "shop.example", false},
        {"www.shop.example", "*.shop.example", true},
        {"a.b.Shop.example.", "*.shop.example", true},
        {"shop.example", "*.shop.example", false},
        {".shop.example", "*.shop.example", false},
        {"evilshop.example", "*.shop.example", false},
        {"shop.example.evil", "*.shop.example", false},
        {"[::1]", "[::1]", true},
        {"", "", false},
        {"a", "*.", false},
        {"", "*.a", false},
        {"192.0.2.7", "192.0.2.7", true},
    };
    static const char *const bad_patterns[] = {"", "*", "*.", "*a.example", "*.*.a", "a.*", "*.1.2",
        "*.192.0.2.7", "*.[::1]", "[::1", "a b", "a/b", "a:80", "127.1", "user@a"};

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        if (aff_host_match(aff_slice_of(table[i].host), aff_slice_of(table[i].allowed)) !=
            table[i].match) {
            fail_msg("%s, %s", table[i].host, table[i].allowed);
        }
    }

    for (size_t i = 0; i < COUNT(bad_patterns); i++) {
        if (aff_host_pattern_valid(aff_slice_of(bad_patterns[i]))) {
            fail_msg("%s", bad_patterns[i]);
        }
    }

    assert_true(aff_host_pattern_valid(aff_slice_of("*.shop.example")));
    assert_true(aff_host_pattern_valid(aff_slice_of("[2001:db8::1]")));
    assert_true(aff_host_pattern_valid(aff_slice_of("192.0.2.7")));
}

static void
check_merge(const char *url, const struct aff_param *params, size_t count, const char *want)
{
    struct aff_slice in = exact(url, strlen(url));
    size_t bound = aff_url_merge_size(in, params, count);
    size_t want_len = strlen(want);

    assert_true(want_len <= bound);

    for (size_t room = want_len < 3 ? 0 : want_len - 3; room <= bound; room++) {
        uint8_t *room_bytes = malloc(room == 0 ? 1 : room);
        size_t len;

        assert_non_null(room_bytes);
        len = aff_url_merge(in, params, count, room_bytes, room);

        if (room < want_len) {
            assert_int_equal(len, 0);
        } else {
            assert_slice(aff_slice(room_bytes, len), want);
        }

        free(room_bytes);
    }

    drop(in);
}

static void
merge_one(void **state)
{
    static const struct {
        const char *url;
        const char *want;
    } table[] = {
        {"https://a.b", "https://a.b?id=N"},
        {"https://a.b/", "https://a.b/?id=N"},
        {"https://a.b/p#f", "https://a.b/p?id=N#f"},
        {"https://a.b#f", "https://a.b?id=N#f"},
        {"https://a.b/p#f?x=1", "https://a.b/p?id=N#f?x=1"},
        {"https://a.b/p?#f", "https://a.b/p?id=N#f"},
        {"https://a.b/p?", "https://a.b/p?id=N"},
        {"https://a.b/p?x=1", "https://a.b/p?x=1&id=N"},
        {"https://a.b/p?x=1#f#g", "https://a.b/p?x=1&id=N#f#g"},
        {"https://a.b/p?x", "https://a.b/p?x&id=N"},
        {"https://a.b/p?x=1?y=2", "https://a.b/p?x=1?y=2&id=N"},
        /* Empty pairs are kept; a last one's mark is used. */
        {"https://a.b/p?x=1&", "https://a.b/p?x=1&id=N"},
        {"https://a.b/p?id=1&", "https://a.b/p?id=N"},
        {"https://a.b/p?x=1&#f", "https://a.b/p?x=1&id=N#f"},
        {"https://a.b/p?&x=1", "https://a.b/p?&x=1&id=N"},
        {"https://a.b/p?x=1&&y=2", "https://a.b/p?x=1&&y=2&id=N"},
        {"https://a.b/p?&", "https://a.b/p?&id=N"},
        /* Existing parameters of the name go, wherever and however often. */
        {"https://a.b/p?id=1", "https://a.b/p?id=N"},
        {"https://a.b/p?id", "https://a.b/p?id=N"},
        {"https://a.b/p?id=", "https://a.b/p?id=N"},
        {"https://a.b/p?id=1=2", "https://a.b/p?id=N"},
        {"https://a.b/p?id=1&x=2", "https://a.b/p?x=2&id=N"},
        {"https://a.b/p?x=2&id=1&y=3&id=4&id", "https://a.b/p?x=2&y=3&id=N"},
        {"https://a.b/p?id=1&id=2#id=3", "https://a.b/p?id=N#id=3"},
        /* Percent-encoded spellings of the name. */
        {"https://a.b/p?%69d=1", "https://a.b/p?id=N"},
        {"https://a.b/p?%69%64=1&x", "https://a.b/p?x&id=N"},
        {"https://a.b/p?i%64=1", "https://a.b/p?id=N"},
        {"https://a.b/p?%49d=1", "https://a.b/p?%49d=1&id=N"},
        {"https://a.b/p?%6=1&i%6&id%", "https://a.b/p?%6=1&i%6&id%&id=N"},
        {"https://a.b/p?%zzid=1", "https://a.b/p?%zzid=1&id=N"},
        {"https://a.b/p?id%00=1", "https://a.b/p?id%00=1&id=N"},
        {"https://a.b/p?id+=1&+id=2", "https://a.b/p?id+=1&+id=2&id=N"},
        /* Like-sounding names stay. */
        {"https://a.b/p?ID=1&idx=2&xid=3&i=4", "https://a.b/p?ID=1&idx=2&xid=3&i=4&id=N"},
        /* ; is no separator. */
        {"https://a.b/p?x=1;id=2", "https://a.b/p?x=1;id=2&id=N"},
        {"https://a.b/p?id=1;x=2", "https://a.b/p?id=N"},
        {"HTTP://[2001:db8::1]:8080/p?x", "HTTP://[2001:db8::1]:8080/p?x&id=N"},
    };
    struct aff_param param = {aff_slice_of("id"), aff_slice_of("N")};

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        check_merge(table[i].url, &param, 1, table[i].want);

        /* Once more changes nothing. */
        check_merge(table[i].want, &param, 1, table[i].want);
    }
}

static void
merge_more(void **state)
{
    struct aff_param params[AFF_MERGE_MAX + 1];
    uint8_t out[200];
    struct aff_slice url = aff_slice_of("https://a.b/");

    (void) state;
    params[0] = (struct aff_param){aff_slice_of("sub1"), aff_slice_of("a b&c=d#e%/+~.\xc3\xa9")};
    params[1] = (struct aff_param){aff_slice_of("id"), aff_slice_of("")};
    check_merge("https://a.b/?id=1&sub1=2&z", params, 2,
        "https://a.b/?z&sub1=a%20b%26c%3Dd%23e%25%2F%2B~.%C3%A9&id=");

    /* Of one name, the last one counts. */
    params[0] = (struct aff_param){aff_slice_of("id"), aff_slice_of("1")};
    params[1] = (struct aff_param){aff_slice_of("x"), aff_slice_of("2")};
    params[2] = (struct aff_param){aff_slice_of("id"), aff_slice_of("3")};
    check_merge("https://a.b/?id=0", params, 3, "https://a.b/?x=2&id=3");

    check_merge("https://a.b/?id=0&#f", params, 0, "https://a.b/?id=0&#f");

    for (size_t i = 0; i < COUNT(params); i++) {
        params[i] = (struct aff_param){aff_slice_of("a"), aff_slice_of("b")};
    }
    assert_int_not_equal(aff_url_merge(url, params, AFF_MERGE_MAX, out, sizeof(out)), 0);
    assert_int_equal(aff_url_merge(url, params, AFF_MERGE_MAX + 1, out, sizeof(out)), 0);

    params[0].name = aff_slice_of("a b");
    assert_int_equal(aff_url_merge(url, params, 1, out, sizeof(out)), 0);
    params[0].name = aff_slice_of("");
    assert_int_equal(aff_url_merge(url, params, 1, out, sizeof(out)), 0);
}

static void
param_names(void **state)
{
    static const char x[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    (void) state;
    assert_true(aff_param_name_valid(aff_slice_of("affiliate_click_id")));
    assert_true(aff_param_name_valid(aff_slice_of("~A-z.9_")));
    assert_true(aff_param_name_valid(aff_slice(x, AFF_PARAM_MAX)));
    assert_false(aff_param_name_valid(aff_slice(x, AFF_PARAM_MAX + 1)));
    assert_false(aff_param_name_valid(aff_slice_of("")));
    assert_false(aff_param_name_valid(aff_slice_of("a=b")));
    assert_false(aff_param_name_valid(aff_slice_of("a[]")));
    assert_false(aff_param_name_valid(aff_slice_of("a%20")));
}

static void
queries(void **state)
{
    struct aff_slice query = exact("&&a=1&b&=x&c==&%64=+%20&", 24);
    struct aff_slice rest = query;
    static const char *const want[][2] = {
        {"a", "1"}, {"b", ""}, {"", "x"}, {"c", "="}, {"%64", "+%20"}};
    struct aff_slice name;
    struct aff_slice value;

    (void) state;

    for (size_t i = 0; i < COUNT(want); i++) {
        assert_true(aff_query_next(&rest, &name, &value));
        assert_slice(name, want[i][0]);
        assert_slice(value, want[i][1]);
    }

    assert_false(aff_query_next(&rest, &name, &value));
    assert_false(aff_query_next(&rest, &name, &value));
    drop(query);

    rest = aff_slice(NULL, 0);
    assert_false(aff_query_next(&rest, &name, &value));
}

static void
decoding(void **state)
{
    static const struct {
        const char *text;
        const char *want; /* NULL where it is malformed */
    } table[] = {
        {"", ""},
        {"abc", "abc"},
        {"a+b%20c", "a b c"},
        {"%41%6a%6A", "Ajj"},
        {"%2B%25", "+%"},
        {"%e0%a4%a8", "\xe0\xa4\xa8"},
        {"%", NULL},
        {"%4", NULL},
        {"a%4g", NULL},
        {"%%41", NULL},
        {"%+1", NULL},
    };

    (void) state;

    for (size_t i = 0; i < COUNT(table); i++) {
        struct aff_slice copy = exact(table[i].text, strlen(table[i].text));
        uint8_t out[32];
        long len = aff_query_decode(copy, out, sizeof(out));

        if (table[i].want == NULL) {
            assert_int_equal(len, -1);
        } else {
            assert_true(len >= 0);
            assert_slice(aff_slice(out, (size_t) len), table[i].want);

            if (len > 0) {
                assert_int_equal(aff_query_decode(copy, out, (size_t) len - 1), -1);
            }
        }
        drop(copy);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepted),
        cmocka_unit_test(refused),
        cmocka_unit_test(every_byte),
        cmocka_unit_test(every_byte_in_blocks),
        cmocka_unit_test(lengths),
        cmocka_unit_test(hosts),
        cmocka_unit_test(merge_one),
        cmocka_unit_test(merge_more),
        cmocka_unit_test(param_names),
        cmocka_unit_test(queries),
        cmocka_unit_test(decoding),
    };

    return RUN(tests);
}
