/* Webhooks as strangers see them: signatures that another implementation made, too, and URLs whose
 * values stay values. */

#include "unit.h"

#include "worker/webhook/macros.h"
#include "worker/webhook/sign.h"

/* Both by the library of Standard Webhooks for Node. */
static void
test_sign(void **state)
{
    static const char body[] = "{\"type\":\"ping\",\"timestamp\":\"2025-11-24T16:00:00.000000Z\","
                               "\"data\":{\"webhook\": 1}}";
    uint8_t secret[SIGN_SECRET_BYTES];
    char text[SIGN_SECRET_CHARS + 1], signature[SIGN_CHARS + 1];

    (void) state;
    for (unsigned i = 0; i < sizeof(secret); i++) {
        secret[i] = (uint8_t) i;
    }

    sign_secret_text(secret, text);
    assert_string_equal(text, "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    assert_true(sign_webhook(
        secret, "evt_00112233445566778899aabbccddeeff", 1764000000, aff_slice_of(body), signature));
    assert_string_equal(signature, "v1,m2ZDCbII1FE7EuX31BsSFW4Mq+4Ya1EDvhgFxiBs3ow=");
    assert_true(sign_webhook(
        secret, "evt_00112233445566778899aabbccddeeff", 1764000001, aff_slice_of(body), signature));
    assert_string_not_equal(signature, "v1,m2ZDCbII1FE7EuX31BsSFW4Mq+4Ya1EDvhgFxiBs3ow=");
}

static void
expand(const char *template, const char *expected)
{
    json_t *values = json_pack("{s:s, s:s, s:n, s:i}", "sub1", "a b&c=\xe0\xa4\xa8/\"%", "status",
        "approved", "sub2", "number", 7);
    struct buffer out;
    struct aff_slice whole;

    buffer_open(&out, MACROS_URL_MAX, NULL);
    macros_expand(template, values, &out);
    assert_true(buffer_whole(&out, &whole));
    assert_string_equal((const char *) whole.data, expected);
    assert_int_equal(strlen(expected) + 1, whole.len);
    buffer_close(&out);
    json_decref(values);
}

static void
test_macros(void **state)
{
    (void) state;
    expand("", "");
    expand("https://a.example/?x=1", "https://a.example/?x=1");
    expand("https://a.example/{status}?s={sub1}#",
        "https://a.example/approved?s=a%20b%26c%3D%E0%A4%A8%2F%22%25#");
    expand("{sub2}{none}{number}|", "|");
    expand("{status}{status}", "approvedapproved");
    expand("{", "{");
    expand("}{status", "}{status");
    expand("{{status}}", "{approved}");
    expand("{}", "");
    expand(
        "{a_name_that_is_longer_than_any_macro_is}", "{a_name_that_is_longer_than_any_macro_is}");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sign),
        cmocka_unit_test(test_macros),
    };

    return RUN(tests);
}
