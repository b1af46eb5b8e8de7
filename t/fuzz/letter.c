/*
 * Whatever a notice's data is, a mail is made of ASCII lines that are not too long, has each header
 * once, and its headers end where they are to end. The input: a template's number, then JSON.
 */

#include "fuzz.h"

#include "worker/mail/letter.h"
#include "worker/mail/message.h"

static void
check_head(const char *head, size_t len)
{
    static const char *const names[] = {"Date: ", "From: ", "To: ", "Message-ID: ", "Subject: ",
        "Auto-Submitted: ", "MIME-Version: ", "Content-Type: ", "Content-Transfer-Encoding: "};
    const char *end = head + len;
    size_t next = 0;

    while (head < end) {
        size_t columns = strcspn(head, "\r");

        require(columns <= 78 && memcmp(head + columns, "\r\n", 2) == 0);
        if (head[0] != ' ') {
            require(next < sizeof(names) / sizeof(names[0]));
            require(strncmp(head, names[next], strlen(names[next])) == 0);
            next++;
        }

        head += columns + 2;
    }

    require(next == sizeof(names) / sizeof(names[0]));
}

static void
check(const struct message *message)
{
    struct buffer out;
    struct aff_slice whole;
    const char *bytes, *body;

    buffer_open(&out, MESSAGE_MAX, NULL);
    message_write(message, &out);
    buffer_put(&out, "", 1);
    require(buffer_whole(&out, &whole));
    bytes = (const char *) whole.data;
    require(strlen(bytes) == whole.len - 1);
    body = strstr(bytes, "\r\n\r\n");
    require(body != NULL);
    check_head(bytes, (size_t) (body + 2 - bytes));
    for (const char *line = body + 4; *line != '\0';) {
        size_t columns = strcspn(line, "\r\n");

        require(columns <= 998 && memcmp(line + columns, "\r\n", 2) == 0);
        for (size_t i = 0; i < columns; i++) {
            require(line[i] >= 0x20 && line[i] < 0x7f);
        }

        line += columns + 2;
    }

    buffer_close(&out);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct mailbox from = {.address = "me@x.example", .name = "Me"};
    char subject[LETTER_SUBJECT_MAX + 1], missing[32];
    size_t count = 0;
    struct buffer text;
    struct aff_slice whole;
    json_t *fields;

    while (letters[count].name != NULL) {
        count++;
    }

    fields = size == 0 ? NULL : json_loadb((const char *) data + 1, size - 1, 0, NULL);
    if (!json_is_object(fields)) {
        json_decref(fields);
        return 0;
    }

    buffer_open(&text, MESSAGE_MAX / 4, NULL);
    if (letter_render(&letters[data[0] % count], fields, subject, &text, missing)) {
        struct message message = {
            .from = &from, .to = "you@y.example", .id = "1@x.example", .subject = subject};

        require(strpbrk(subject, "\r\n") == NULL && strlen(subject) <= LETTER_SUBJECT_MAX);
        require(buffer_whole(&text, &whole));
        message.text = (const char *) whole.data;
        require(strchr(message.text, '\r') == NULL);
        check(&message);
    }

    buffer_close(&text);
    json_decref(fields);
    return 0;
}
