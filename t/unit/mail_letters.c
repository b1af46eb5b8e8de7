/* Mails: letters with any data are texts and headers that nobody leaves; every template can be
 * filled in. */

#include "unit.h"

#include "worker/mail/letter.h"
#include "worker/mail/message.h"

/* The letter with these fields; its subject goes to `subject`. The caller frees it; NULL, and the
 * field's name in `missing`, if it can't be. */
static char *
render(const char *name, json_t *fields, char *subject, char *missing)
{
    struct buffer text;
    struct aff_slice whole;
    char *copy = NULL;

    buffer_open(&text, MESSAGE_MAX, NULL);
    if (letter_render(letter_find(name), fields, subject, &text, missing)) {
        assert_true(buffer_whole(&text, &whole));
        assert_int_equal(whole.data[whole.len - 1], '\0');
        copy = strdup((const char *) whole.data);
    }

    buffer_close(&text);
    json_decref(fields);
    return copy;
}

static void
test_letters(void **state)
{
    static const char *const fields[] = {"site", "link", "person", "until", "email", "kind",
        "account", "holder", "name", "role", "reason", "host", "affiliate_name", "campaign_name",
        "merchant_name", "payout", "amount", "tax", "net", "currency", "number", "due_on", "url"};
    char subject[LETTER_SUBJECT_MAX + 1], missing[32];

    (void) state;
    assert_null(letter_find("no_such"));
    assert_null(letter_find(""));
    for (const struct letter *letter = letters; letter->name != NULL; letter++) {
        json_t *all = json_object();
        char *text;

        for (size_t i = 0; i < COUNT(fields); i++) {
            json_object_set_new(all, fields[i], json_string(fields[i]));
        }

        text = render(letter->name, all, subject, missing);
        assert_non_null(text);
        assert_ptr_equal(letter_find(letter->name), letter);
        assert_null(strpbrk(text, "{}\r"));
        assert_null(strpbrk(subject, "{}\r\n"));
        assert_true(subject[0] != '\0' && text[strlen(text) - 1] == '\n');
        assert_true((letter->purpose != NULL) == (strstr(letter->text, "{link}") != NULL));
        assert_non_null(strstr(letter->text, letter->purpose != NULL ? "{link}" : "{site}"));
        for (const char *line = text; *line != '\0'; line += strcspn(line, "\n") + 1) {
            assert_true(strcspn(line, "\n") <= 72);
        }

        free(text);
    }
}

static void
test_missing(void **state)
{
    char subject[LETTER_SUBJECT_MAX + 1], missing[32];
    char *text;

    (void) state;
    text = render("campaign_suspended", json_pack("{ss, ss}", "site", "S", "campaign_name", "C"),
        subject, missing);
    assert_string_equal(subject, "The campaign C is suspended");
    assert_string_equal(text, "The campaign \"C\" is suspended at S: its links do not work for the "
                              "time\nbeing.\n");
    free(text);

    text = render("campaign_suspended",
        json_pack("{ss, si, ss, sn}", "site", "S", "campaign_name", 7, "person", "P", "reason"),
        subject, missing);
    assert_string_equal(text, "Hello P,\n\nThe campaign \"7\" is suspended at S: its links do not "
                              "work for the time\nbeing.\n");
    free(text);

    assert_null(render("campaign_suspended", json_pack("{ss}", "site", "S"), subject, missing));
    assert_string_equal(missing, "campaign_name");
    assert_null(render("totp_on", json_object(), subject, missing));
    assert_string_equal(missing, "site");
    assert_null(render("totp_on", json_pack("{so}", "site", json_object()), subject, missing));
    assert_null(render("totp_on", json_pack("{ss}", "site", ""), subject, missing));
}

static void
test_data(void **state)
{
    char subject[LETTER_SUBJECT_MAX + 1], missing[32], name[4096];
    char *text;

    (void) state;
    text = render("merchant_reject",
        json_pack("{ss, ss, ss}", "site", "S", "name", "{site}\r\nBcc: x\xc2\x85y\xe2\x80\xaez",
            "reason", "a\nb\n\n?{name}"),
        subject, missing);
    assert_string_equal(subject, "{site}  Bcc: x y z is not approved");
    assert_string_equal(text, "The merchant \"{site} Bcc: x y z\" was not approved at S.\n\n"
                              "The reason: a b ?{name}\n");
    free(text);

    /* Long ones are cut between characters. */
    for (size_t i = 0; i < sizeof(name) - 3; i += 3) {
        memcpy(name + i, "\xe0\xa4\xa8", 4);
    }

    text = render("membership_applied",
        json_pack("{ss, ss, ss}", "site", "S", "affiliate_name", name, "campaign_name", name),
        subject, missing);
    assert_true(strlen(subject) <= LETTER_SUBJECT_MAX && strlen(subject) >= 180);
    assert_true(strlen(text) > 1200 && strlen(text) < 2000);
    for (const char *at = subject; (at = strchr(at, '\xe0')) != NULL; at++) {
        assert_memory_equal(at, "\xe0\xa4\xa8", 3);
    }

    free(text);
}

static void
test_addresses(void **state)
{
    static const char *const good[] = {
        "a@b", "first.last+tag@mail.example", "o'neil@x-y.example", "=?@example.com"};
    static const char *const bad[] = {"", "@", "a@", "@b", "a", "a@b@c", "a b@c", "a@b>", "<a@b",
        "a@b\r\nBcc: c@d", "a@b\n", "\"a\"@b", "a@[127.0.0.1]", "a,b@c", "a;b@c", "a:b@c",
        "\xc3\xbc@b", "a@b\x7f", "a\\b@c", "(a)@b"};
    struct mailbox box;
    char longest[512];

    (void) state;
    for (size_t i = 0; i < COUNT(good); i++) {
        assert_true(message_address_valid(good[i]));
        assert_true(message_mailbox(good[i], &box) && strcmp(box.address, good[i]) == 0);
    }

    for (size_t i = 0; i < COUNT(bad); i++) {
        assert_false(message_address_valid(bad[i]));
        assert_false(message_mailbox(bad[i], &box));
    }

    memset(longest, 'a', sizeof(longest));
    memcpy(longest + 250, "@bcd", 5);
    assert_true(message_address_valid(longest));
    memcpy(longest + 251, "@bcd", 5);
    assert_false(message_address_valid(longest));

    assert_true(message_mailbox("  Me And You <me@x.example>", &box));
    assert_string_equal(box.name, "Me And You");
    assert_string_equal(box.address, "me@x.example");
    assert_string_equal(message_host(box.address), "x.example");
    assert_true(message_mailbox("<me@x.example>", &box) && box.name[0] == '\0');
    assert_false(message_mailbox("Me <me@x.example> you", &box));
    assert_false(message_mailbox("Me\n <me@x.example>", &box));
    assert_false(message_mailbox("\xff <me@x.example>", &box));
}

static char *
written(const struct message *message)
{
    struct buffer out;
    struct aff_slice whole;
    char *copy;

    buffer_open(&out, MESSAGE_MAX, NULL);
    message_write(message, &out);
    buffer_put(&out, "", 1);
    assert_true(buffer_whole(&out, &whole));
    copy = strdup((const char *) whole.data);
    buffer_close(&out);
    return copy;
}

static void
test_message(void **state)
{
    struct mailbox from;
    struct message message = {.from = &from,
        .to = "you@y.example",
        .id = "notice-1.ab@x.example",
        .subject = "Plain, isn't it?",
        .text = "Hello\n\nA line.\n.\n",
        .date_s = 1795300000};
    char *bytes;

    (void) state;
    assert_true(message_mailbox("Me <me@x.example>", &from));
    message.subject = "Plain, isn't it";
    bytes = written(&message);
    assert_string_equal(bytes, "Date: Sat, 21 Nov 2026 22:26:40 +0000\r\n"
                               "From: Me <me@x.example>\r\n"
                               "To: <you@y.example>\r\n"
                               "Message-ID: <notice-1.ab@x.example>\r\n"
                               "Subject: Plain, isn't it\r\n"
                               "Auto-Submitted: auto-generated\r\n"
                               "MIME-Version: 1.0\r\n"
                               "Content-Type: text/plain; charset=us-ascii\r\n"
                               "Content-Transfer-Encoding: 7bit\r\n"
                               "\r\n"
                               "Hello\r\n\r\nA line.\r\n.\r\n");
    free(bytes);

    assert_true(message_mailbox("Gr\xc3\xb6\xc3\x9f"
                                "e <me@x.example>",
        &from));
    message.subject = "=?x?= \xe0\xa4\xa8";
    message.text = "\xc3\xbc=1 \nlast";
    bytes = written(&message);
    assert_non_null(strstr(bytes, "\r\nFrom: =?UTF-8?B?R3LDtsOfZQ==?=\r\n <me@x.example>\r\n"));
    assert_non_null(strstr(bytes, "\r\nSubject: =?UTF-8?B?PT94Pz0g4KSo?=\r\n"));
    assert_non_null(strstr(bytes, "charset=utf-8\r\n"));
    assert_non_null(strstr(bytes, "quoted-printable\r\n\r\n=C3=BC=3D1=20\r\nlast\r\n"));
    free(bytes);
}

/* Whatever the text: no line is too long, no CR or LF is alone, nothing is but ASCII. */
static void
test_lines(void **state)
{
    struct mailbox from;
    char subject[LETTER_SUBJECT_MAX + 1], text[4096];
    struct message message = {.from = &from,
        .to = "you@y.example",
        .id = "1@x",
        .subject = subject,
        .text = text,
        .date_s = 0};

    (void) state;
    assert_true(message_mailbox("me@x.example", &from));
    for (unsigned round = 0; round < 2000; round++) {
        size_t len = next_random() % sizeof(text), subject_len = next_random() % sizeof(subject);
        unsigned mask = round % 2 == 0 ? 0xff : 0x7f;
        char *bytes, *head;

        for (size_t i = 0; i < len; i++) {
            unsigned c = (unsigned) next_random() & mask;

            text[i] = (char) (c == 0 || c == '\r' || next_random() % 40 == 0 ? '\n' : c);
        }

        for (size_t i = 0; i < subject_len; i++) {
            unsigned c = (unsigned) next_random() & mask;

            subject[i] = (char) (c == 0 ? 'x' : c);
        }

        text[len] = subject[subject_len] = '\0';
        bytes = written(&message);
        head = strstr(bytes, "\r\n\r\n");
        assert_non_null(head);
        for (char *line = bytes; *line != '\0';) {
            size_t columns = strcspn(line, "\r\n");

            assert_true(columns <= (line < head ? 78 : 990));
            assert_memory_equal(line + columns, "\r\n", 2);
            for (size_t i = 0; i < columns; i++) {
                assert_true(line[i] >= 0x20 && line[i] < 0x7f);
            }

            line += columns + 2;
        }

        free(bytes);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_letters),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_data),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_message),
        cmocka_unit_test(test_lines),
    };

    seed_random();
    return RUN(tests);
}
