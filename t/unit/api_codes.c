/* What the role api keeps of passwords, codes and secrets, and what it makes of bytes and texts. */

#include "unit.h"

#include "worker/api/password.h"
#include "worker/api/seal.h"
#include "worker/api/text.h"
#include "worker/api/totp.h"
#include "worker/token.h"

static void
test_text(void **state)
{
    static const char *const vectors[][3] = {/* RFC 4648, 10, without padding */
        {"", "", ""}, {"f", "Zg", "MY"}, {"fo", "Zm8", "MZXQ"}, {"foo", "Zm9v", "MZXW6"},
        {"foob", "Zm9vYg", "MZXW6YQ"}, {"fooba", "Zm9vYmE", "MZXW6YTB"},
        {"foobar", "Zm9vYmFy", "MZXW6YTBOI"}};
    uint8_t back[16];
    char out[64];

    (void) state;
    for (size_t i = 0; i < COUNT(vectors); i++) {
        struct aff_slice bytes = aff_slice_of(vectors[i][0]);

        text_base64(bytes, false, out);
        assert_string_equal(out, vectors[i][1]);
        assert_true(text_from_base64(aff_slice_of(out), false, back, bytes.len));
        assert_memory_equal(back, bytes.data, bytes.len);
        text_base32(bytes, out);
        assert_string_equal(out, vectors[i][2]);
    }

    text_base64(aff_slice("\xfb\xff", 2), true, out);
    assert_string_equal(out, "-_8");
    assert_false(text_from_base64(aff_slice_of("-_9"), true, back, 2)); /* a second spelling */
    assert_false(text_from_base64(aff_slice_of("+/8"), true, back, 2));
    assert_false(text_from_base64(aff_slice("-_\0", 3), true, back, 2));
    assert_false(text_from_hex(aff_slice_of("AB"), back, 1));
    assert_true(text_from_hex(aff_slice_of("ab"), back, 1) && back[0] == 0xab);
}

static void
test_utf8(void **state)
{
    static const char *const good[] = {"", "a", "\xc2\x80", "\xe0\xa0\x80", "\xed\x9f\xbf",
        "\xee\x80\x80", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "\xe0\xa4\xa8\xe0\xa5\x87"};
    static const char *const bad[] = {"\x80", "\xc0\xaf", "\xc1\xbf", "\xc2", "\xe0\x9f\xbf",
        "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "a\xff",
        "\xe2\x82", "\xf0\x90\x80"};

    (void) state;
    for (size_t i = 0; i < COUNT(good); i++) {
        assert_true(text_utf8(aff_slice_of(good[i])));
    }

    for (size_t i = 0; i < COUNT(bad); i++) {
        assert_false(text_utf8(aff_slice_of(bad[i])));
    }

    assert_false(text_utf8(aff_slice("a\0b", 3)));
}

/* Made by another program (Python's hashlib). */
#define KNOWN_PASSWORD "correct horse battery"
#define KNOWN_STORED                                                                               \
    "$scrypt$ln=10,r=8,p=3$AAECAwQFBgcICQoLDA0ODw$WelTGMpjoYor/yyZfJf7yvObNPcRgNUkJyGxAPspyLI"

static void
test_password(void **state)
{
    char stored[PASSWORD_STORED_MAX], other[PASSWORD_STORED_MAX];
    bool outdated = true;

    (void) state;
    password_setup(8 * 1024 * 1024, 10, 4);
    assert_int_equal(
        password_verify(aff_slice_of(KNOWN_PASSWORD), KNOWN_STORED, &outdated), PASSWORD_RIGHT);
    assert_false(outdated);
    assert_int_equal(
        password_verify(aff_slice_of("correct horse batterz"), KNOWN_STORED, &outdated),
        PASSWORD_WRONG);

    assert_int_equal(password_hash(aff_slice_of(KNOWN_PASSWORD), stored), PASSWORD_RIGHT);
    assert_int_equal(password_hash(aff_slice_of(KNOWN_PASSWORD), other), PASSWORD_RIGHT);
    assert_string_not_equal(stored, other);
    assert_int_equal(strlen(stored), strlen(KNOWN_STORED));
    assert_int_equal(
        password_verify(aff_slice_of(KNOWN_PASSWORD), stored, &outdated), PASSWORD_RIGHT);

    password_setup(8 * 1024 * 1024, 11, 4);
    assert_int_equal(
        password_verify(aff_slice_of(KNOWN_PASSWORD), stored, &outdated), PASSWORD_RIGHT);
    assert_true(outdated);

    assert_int_equal(password_verify(aff_slice_of(""), NULL, &outdated), PASSWORD_WRONG);
}

static void
test_password_forms(void **state)
{
    static const char *const bad[] = {"", "x", "$scrypt$ln=10,r=8,p=3$", "$scrypt$ln=10,r=8,p=3",
        "$scrypt$ln=99,r=8,p=3$AAECAwQFBgcICQoLDA0ODw$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "$scrypt$ln=10,r=9,p=3$AAECAwQFBgcICQoLDA0ODw$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "$scrypt$ln=10,r=8,p=0$AAECAwQFBgcICQoLDA0ODw$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "$scrypt$ln=10,r=8,p=3$AAECAwQFBgcICQoLDA0OD$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "$scrypt$ln=10,r=8,p=3$AAECAwQFBgcICQoLDA0OD!$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"};
    bool outdated;

    (void) state;
    for (size_t i = 0; i < COUNT(bad); i++) {
        assert_int_equal(password_verify(aff_slice_of("x"), bad[i], &outdated), PASSWORD_FAILED);
    }
}

/* RFC 6238, appendix B, of whose eight digits an authenticator shows the last six. */
static void
test_totp(void **state)
{
    static const struct {
        int64_t time;
        uint32_t code;
    } vectors[] = {{59, 287082}, {1111111109, 81804}, {1111111111, 50471}, {1234567890, 5924},
        {2000000000, 279037}, {20000000000, 353130}};
    const uint8_t *secret = (const uint8_t *) "12345678901234567890";
    int64_t step = -1;

    (void) state;
    for (size_t i = 0; i < COUNT(vectors); i++) {
        assert_int_equal(totp_code(secret, vectors[i].time / TOTP_STEP_S), vectors[i].code);
    }

    assert_true(totp_check(secret, aff_slice_of("287082"), 59, -1, &step));
    assert_int_equal(step, 1);
    assert_true(totp_check(secret, aff_slice_of("287082"), 89, -1, &step));
    assert_true(totp_check(secret, aff_slice_of("287082"), 0, -1, &step));
    assert_false(totp_check(secret, aff_slice_of("287082"), 90, -1, &step));
    assert_false(totp_check(secret, aff_slice_of("287082"), 59, 1, &step)); /* used */
    assert_false(totp_check(secret, aff_slice_of("28708"), 59, -1, &step));
    assert_false(totp_check(secret, aff_slice_of("28708x"), 59, -1, &step));
}

static void
test_recovery(void **state)
{
    char codes[RECOVERY_CODES][RECOVERY_CHARS + 1], hashes[RECOVERY_CODES][TEXT_SHA256_CHARS + 1];
    char hash[TEXT_SHA256_CHARS + 1], typed[64];
    size_t n = 0;

    (void) state;
    assert_true(recovery_make(codes, hashes));
    for (unsigned i = 0; i < RECOVERY_CODES; i++) {
        assert_true(recovery_hash(aff_slice_of(codes[i]), hash));
        assert_string_equal(hash, hashes[i]);
        for (unsigned k = 0; k < i; k++) {
            assert_string_not_equal(codes[i], codes[k]);
        }
    }

    for (const char *p = codes[0]; *p != '\0'; p++) {
        if (*p != '-') {
            typed[n++] = (char) (*p >= 'a' ? *p - 32 : *p);
            typed[n++] = ' ';
        }
    }

    assert_true(recovery_hash(aff_slice(typed, n), hash));
    assert_string_equal(hash, hashes[0]);
    assert_false(recovery_hash(aff_slice_of("abcd-abcd-abcd-abc"), hash));
    assert_false(recovery_hash(aff_slice_of("abcd-abcd-abcd-abcde"), hash));
    assert_false(recovery_hash(aff_slice_of("abcd-abcd-abcd-abc1"), hash));
}

static void
test_seal(void **state)
{
    struct aff_keyring ring = ring_of(KEY_FILE), before = ring_before(&ring);
    char text[SEAL_TEXT_MAX], again[SEAL_TEXT_MAX];
    uint8_t plain[SEAL_PLAIN_MAX];
    size_t len = 0;

    (void) state;
    assert_true(seal_close(&before, "totp", 7, aff_slice_of("secret"), text));
    assert_true(seal_close(&before, "totp", 7, aff_slice_of("secret"), again));
    assert_string_not_equal(text, again);
    assert_null(strstr(text, "736563726574"));

    /* Also after a rotation of the master key. */
    assert_true(seal_open(&ring, "totp", 7, aff_slice_of(text), plain, &len));
    assert_int_equal(len, 6);
    assert_memory_equal(plain, "secret", 6);

    assert_false(seal_open(&ring, "totp", 8, aff_slice_of(text), plain, &len));
    assert_false(seal_open(&ring, "recovery", 7, aff_slice_of(text), plain, &len));
    ring.count = 1;
    assert_false(seal_open(&ring, "totp", 7, aff_slice_of(text), plain, &len));
    ring.count = 2;

    for (size_t i = 0; text[i] != '\0'; i++) {
        char was = text[i];

        text[i] = was == '0' ? '1' : '0';
        assert_false(seal_open(&ring, "totp", 7, aff_slice_of(text), plain, &len));
        assert_false(seal_open(&ring, "totp", 7, aff_slice(text, i), plain, &len));
        text[i] = was;
    }

    assert_true(seal_close(&ring, "x", 1, aff_slice(plain, SEAL_PLAIN_MAX), text));
    assert_true(seal_open(&ring, "x", 1, aff_slice_of(text), plain, &len));
    assert_int_equal(len, SEAL_PLAIN_MAX);
    assert_false(seal_close(&ring, "x", 1, aff_slice(plain, SEAL_PLAIN_MAX + 1), text));
}

static void
test_token(void **state)
{
    struct aff_keyring ring = ring_of(KEY_FILE), before = ring_before(&ring);
    struct token token = {.user_id = 42, .expires_s = 1764000000, .nonce = {1, 2, 3}}, parsed;
    char text[TOKEN_CHARS + 1];

    (void) state;
    assert_true(token_make(&before, TOKEN_VERIFY, &token, text));
    assert_int_equal(strlen(text), TOKEN_CHARS);
    assert_true(token_parse(&ring, TOKEN_VERIFY, aff_slice_of(text), &parsed));
    assert_int_equal(parsed.user_id, 42);
    assert_int_equal(parsed.expires_s, 1764000000);
    assert_memory_equal(parsed.nonce, token.nonce, sizeof(token.nonce));
    assert_false(token_parse(&ring, TOKEN_RESET, aff_slice_of(text), &parsed));

    for (size_t i = 0; i < TOKEN_CHARS; i++) {
        char was = text[i];

        text[i] = was == 'A' ? 'B' : 'A';
        assert_false(token_parse(&ring, TOKEN_VERIFY, aff_slice_of(text), &parsed));
        text[i] = was;
    }

    ring.count = 1;
    assert_false(token_parse(&ring, TOKEN_VERIFY, aff_slice_of(text), &parsed));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_password),
        cmocka_unit_test(test_password_forms),
        cmocka_unit_test(test_totp),
        cmocka_unit_test(test_recovery),
        cmocka_unit_test(test_seal),
        cmocka_unit_test(test_token),
    };

    return RUN(tests);
}
