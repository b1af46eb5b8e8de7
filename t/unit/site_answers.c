/* What the role sites reads of strangers, and which addresses it asks nothing. */

#include "unit.h"

#include "worker/site/address.h"
#include "worker/site/txt.h"

#include <arpa/inet.h>

static bool
is_public(const char *text)
{
    struct sockaddr_in in = {.sin_family = AF_INET};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};

    if (inet_pton(AF_INET, text, &in.sin_addr) == 1) {
        return address_public((const struct sockaddr *) &in, sizeof(in));
    }

    assert_int_equal(inet_pton(AF_INET6, text, &in6.sin6_addr), 1);
    return address_public((const struct sockaddr *) &in6, sizeof(in6));
}

static void
test_public(void **state)
{
    static const char *const outside[] = {"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0",
        "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255",
        "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.0", "192.167.255.255",
        "192.169.0.0", "198.17.255.255", "198.20.0.0", "203.0.112.255", "203.0.114.0",
        "223.255.255.255", "2606:4700::1111", "2a00::1", "2001:200::1",
        "2001:db7:ffff::", "2001:db9::", "2002:808:808::1", "64:ff9b::808:808", "3fff:1000::"};
    static const char *const inside[] = {"0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255",
        "100.64.0.0", "100.127.255.255", "127.0.0.1", "127.255.255.255", "169.254.0.0",
        "169.254.169.254", "172.16.0.0", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1",
        "192.168.0.0", "192.168.255.255", "198.18.0.0", "198.19.255.255", "198.51.100.1",
        "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1",
        "::ffff:1.1.1.1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1",
        "64:ff9b::10.0.0.1", "64:ff9b:1::1", "100::1", "fc00::1", "fdff::1", "fe80::1", "febf::1",
        "fec0::1", "ff02::1", "2001::1", "2001:1ff::1", "2001:db8::1", "2002:7f00:1::1",
        "2002:a9fe:a9fe::1", "2620:4f:8000::1", "3fff::1", "3fff:fff::1", "4000::1", "1fff::1"};
    struct sockaddr_storage other = {.ss_family = AF_UNIX};
    struct sockaddr_in cut = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x01010101)};

    (void) state;
    for (size_t i = 0; i < COUNT(outside); i++) {
        if (!is_public(outside[i])) {
            fail_msg("%s is public", outside[i]);
        }
    }

    for (size_t i = 0; i < COUNT(inside); i++) {
        if (is_public(inside[i])) {
            fail_msg("%s is not public", inside[i]);
        }
    }

    assert_false(address_public((const struct sockaddr *) &other, sizeof(other)));
    assert_false(address_public((const struct sockaddr *) &cut, sizeof(cut) - 1));
}

static void
test_parse_address(void **state)
{
    static const char *const bad[] = {"", "1.2.3.4", "1.2.3.4:", "1.2.3.4:0", "1.2.3.4:65536",
        "1.2.3.4:53x", "1.2.3.4: 53", "1.2.3.4:-1", "host:53", "::1:53", "[::1]", "[::1:53",
        "::1]:53", "[]:53", ":53", "[1.2.3.4]:53", "[fe80::1%eth0]:53"};
    struct sockaddr_storage address;
    char text[64];
    socklen_t len;

    (void) state;
    for (size_t i = 0; i < COUNT(bad); i++) {
        if (address_parse(bad[i], &address, &len)) {
            fail_msg("%s is an address", bad[i]);
        }
    }

    assert_true(address_parse("192.0.2.1:53", &address, &len));
    assert_int_equal(len, sizeof(struct sockaddr_in));
    assert_int_equal(((struct sockaddr_in *) &address)->sin_port, htons(53));
    address_text((struct sockaddr *) &address, len, text, sizeof(text));
    assert_string_equal(text, "192.0.2.1");
    assert_true(address_parse("[2001:db8::1]:65535", &address, &len));
    assert_int_equal(((struct sockaddr_in6 *) &address)->sin6_port, 65535);
    address_text((struct sockaddr *) &address, len, text, sizeof(text));
    assert_string_equal(text, "2001:db8::1");
    address.ss_family = AF_UNIX;
    address_text((struct sockaddr *) &address, len, text, sizeof(text));
    assert_string_equal(text, "an address of another kind");
}

#define HEAD(flags, answers) "\x12\x34" flags "\0\1\0" answers "\0\0\0\0\1a\7example\0\0\x10\0\1"
#define TXT(len, data)       "\xc0\x0c\0\x10\0\1\0\0\0\x3c\0" len data

static enum txt_answer
parse(const char *bytes, size_t len, struct txt_records *records)
{
    struct aff_slice copy = exact(bytes, len);
    enum txt_answer answer = txt_parse(copy, records);

    drop(copy);
    return answer;
}

#define PARSE(bytes) parse(bytes, sizeof(bytes) - 1, &records)

static void
test_txt(void **state)
{
    static const char two[] = HEAD("\x81\x80", "\2") TXT("\4", "\3one") TXT("\7", "\3tw \2o\n");
    static struct txt_records records;
    char many[1024];
    size_t len;

    (void) state;
    assert_int_equal(PARSE(two), TXT_OK);
    assert_int_equal(records.found, 2);
    assert_int_equal(records.count, 2);
    assert_true(txt_has(&records, aff_slice_of("one")));
    assert_true(txt_has(&records, aff_slice_of("tw o")));
    assert_false(txt_has(&records, aff_slice_of("on")));
    assert_false(txt_has(&records, aff_slice_of("one ")));
    assert_false(txt_has(&records, aff_slice_of("")));
    for (size_t cut = 0; cut < sizeof(two) - 1; cut++) {
        assert_int_equal(parse(two, cut, &records), TXT_GARBLED);
    }

    assert_int_equal(PARSE(HEAD("\x81\x83", "\0")), TXT_NO_NAME);
    assert_int_equal(PARSE(HEAD("\x81\x82", "\0")), TXT_FAILED);
    assert_int_equal(PARSE(HEAD("\x81\x85", "\0")), TXT_FAILED);
    assert_int_equal(PARSE(HEAD("\x01\x80", "\0")), TXT_GARBLED); /* a question */
    assert_int_equal(PARSE(HEAD("\x81\x80", "\0")), TXT_OK);
    assert_int_equal(records.count, 0);

    /* A string that says it is longer than its record ends with it; other types are none. */
    assert_int_equal(PARSE(HEAD("\x81\x80", "\1") TXT("\4", "\xffone")), TXT_OK);
    assert_true(txt_has(&records, aff_slice_of("one")));
    assert_int_equal(PARSE(HEAD("\x81\x80", "\1") "\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\3one"), TXT_OK);
    assert_int_equal(records.found, 0);

    /* More than are kept are counted. */
    len = sizeof(HEAD("\x81\x80", "\x20")) - 1;
    memcpy(many, HEAD("\x81\x80", "\x20"), len);
    for (unsigned i = 0; i < 32; i++) {
        memcpy(many + len, TXT("\2", "\1a"), 14);
        len += 14;
    }

    assert_int_equal(parse(many, len, &records), TXT_OK);
    assert_int_equal(records.found, 32);
    assert_int_equal(records.count, TXT_RECORDS_MAX);
}

static void
test_show(void **state)
{
    char shown[16];

    (void) state;
    txt_show(aff_slice("a\0\x1b\xff\n", 5), shown, sizeof(shown));
    assert_string_equal(shown, "a????");
    txt_show(aff_slice_of("123456789012345"), shown, sizeof(shown));
    assert_string_equal(shown, "123456789012345");
    txt_show(aff_slice_of("1234567890123456"), shown, sizeof(shown));
    assert_string_equal(shown, "123456789012...");
    txt_show(aff_slice_of(""), shown, sizeof(shown));
    assert_string_equal(shown, "");
    assert_slice(txt_trim(aff_slice_of(" \r\n\t a b \n")), "a b");
    assert_slice(txt_trim(aff_slice_of(" \r\n\t ")), "");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_public),
        cmocka_unit_test(test_parse_address),
        cmocka_unit_test(test_txt),
        cmocka_unit_test(test_show),
    };

    return RUN(tests);
}
