#include "worker/mail/message.h"

#include "worker/api/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define LINE_PLAIN_MAX 990 /* RFC 5322, 2.1.1: 998 */
#define LINE_QUOTED    75  /* RFC 2045, 6.7: 76 with the soft break's '=' */
#define WORD_BYTES     42  /* an encoded word of 75 (RFC 2047, 2): 12 around 56 of base64 */

bool
message_address_valid(const char *address)
{
    size_t len = strlen(address);
    const char *at = strrchr(address, '@');

    if (len > MESSAGE_ADDRESS_MAX || at == NULL || at == address || at[1] == '\0' ||
        strchr(address, '@') != at) {
        return false;
    }

    for (size_t i = 0; i < len; i++) {
        if (address[i] <= 0x20 || address[i] >= 0x7f ||
            strchr("()<>[]:;,\\\"", address[i]) != NULL) {
            return false;
        }
    }

    return true;
}

const char *
message_host(const char *address)
{
    return strrchr(address, '@') + 1;
}

static bool
message_copy(char *to, size_t size, struct aff_slice text)
{
    while (text.len > 0 && text.data[0] == ' ') {
        text = aff_slice(text.data + 1, text.len - 1);
    }

    while (text.len > 0 && text.data[text.len - 1] == ' ') {
        text.len--;
    }

    if (text.len >= size) {
        return false;
    }

    memcpy(to, text.data, text.len);
    to[text.len] = '\0';
    return true;
}

bool
message_mailbox(const char *text, struct mailbox *mailbox)
{
    const char *open = strrchr(text, '<');
    size_t len = strlen(text);

    *mailbox = (struct mailbox){0};
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char) text[i] < 0x20 || text[i] == 0x7f) {
            return false;
        }
    }

    if (open == NULL) {
        return message_copy(mailbox->address, sizeof(mailbox->address), aff_slice(text, len)) &&
               message_address_valid(mailbox->address);
    }

    return text[len - 1] == '>' && text_utf8(aff_slice(text, len)) &&
           message_copy(
               mailbox->name, sizeof(mailbox->name), aff_slice(text, (size_t) (open - text))) &&
           message_copy(mailbox->address, sizeof(mailbox->address),
               aff_slice(open + 1, (size_t) (text + len - 1 - (open + 1)))) &&
           message_address_valid(mailbox->address);
}

/* --- headers --- */

/* Base64 with padding, which lines of a mail need. */
static void
message_base64(struct buffer *out, struct aff_slice bytes)
{
    char text[TEXT_BASE64_CHARS(WORD_BYTES) + 1];

    text_base64(bytes, false, text);
    buffer_puts(out, text);
    buffer_puts(out, &"=="[bytes.len % 3 == 0 ? 2 : bytes.len % 3 - 1]);
}

/* Bytes of `text`, at most `max`, that end where a character ends. */
static size_t
message_cut(struct aff_slice text, size_t max)
{
    size_t len = text.len < max ? text.len : max;

    while (len > 0 && len < text.len && (text.data[len] & 0xc0) == 0x80) {
        len--;
    }

    return len;
}

/* Encoded words, one a line. */
static void
message_words(struct buffer *out, struct aff_slice text)
{
    for (bool first = true; text.len > 0; first = false) {
        size_t len = message_cut(text, WORD_BYTES);

        if (len == 0) {
            len = text.len < WORD_BYTES ? text.len : WORD_BYTES;
        }

        buffer_puts(out, first ? "=?UTF-8?B?" : "\r\n =?UTF-8?B?");
        message_base64(out, aff_slice(text.data, len));
        buffer_puts(out, "?=");
        text = aff_slice(text.data + len, text.len - len);
    }
}

/* True if it may stand in a header as it is. `extra` may, too; blanks and letters may anyway. */
static bool
message_plain(const char *text, const char *extra)
{
    size_t len = strlen(text);

    for (size_t i = 0; i < len; i++) {
        char c = text[i];

        if (!(c == ' ' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                (c >= '0' && c <= '9') || strchr(extra, c) != NULL)) {
            return false;
        }
    }

    return len <= 64;
}

static void
message_header(struct buffer *out, const char *name, const char *text, const char *extra)
{
    buffer_printf(out, "%s: ", name);
    if (message_plain(text, extra)) {
        buffer_puts(out, text);
    } else {
        message_words(out, aff_slice_of(text));
    }
}

static void
message_date(struct buffer *out, int64_t date_s)
{
    static const char days[] = "SunMonTueWedThuFriSat";
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    time_t seconds = (time_t) date_s;
    struct tm tm = {0};

    gmtime_r(&seconds, &tm);
    buffer_printf(out, "Date: %.3s, %d %.3s %04d %02d:%02d:%02d +0000\r\n",
        days + (ptrdiff_t) tm.tm_wday * 3, tm.tm_mday, months + (ptrdiff_t) tm.tm_mon * 3,
        tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec);
}

/* --- the text --- */

/* True if it can go as it is: then links in it stay whole for any reader. */
static bool
message_is_plain(const char *text)
{
    size_t line = 0;

    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char) *text;

        line = c == '\n' ? 0 : line + 1;
        if (c >= 0x7f || (c < 0x20 && c != '\n') || line > LINE_PLAIN_MAX ||
            (c == ' ' && (text[1] == '\n' || text[1] == '\0'))) {
            return false;
        }
    }

    return true;
}

static void
message_body_plain(struct buffer *out, const char *text)
{
    while (*text != '\0') {
        size_t len = strcspn(text, "\n");

        buffer_put(out, text, len);
        buffer_puts(out, "\r\n");
        text += len;
        text += *text == '\n';
    }
}

/* Quoted-printable (RFC 2045, 6.7), of texts: a line's end is one. */
static void
message_body_quoted(struct buffer *out, const char *text)
{
    size_t column = 0;

    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char) *text;
        bool last = text[1] == '\n' || text[1] == '\0';
        char piece[4];

        if (c == '\n') {
            buffer_puts(out, "\r\n");
            column = 0;
            continue;
        }

        if ((c > 0x20 && c < 0x7f && c != '=') || (c == ' ' && !last)) {
            snprintf(piece, sizeof(piece), "%c", c);
        } else {
            snprintf(piece, sizeof(piece), "=%02X", c);
        }

        if (column + strlen(piece) > LINE_QUOTED) {
            buffer_puts(out, "=\r\n");
            column = 0;
        }

        buffer_puts(out, piece);
        column += strlen(piece);
    }

    if (column > 0) {
        buffer_puts(out, "\r\n");
    }
}

void
message_write(const struct message *message, struct buffer *out)
{
    bool plain = message_is_plain(message->text);

    message_date(out, message->date_s);
    if (message->from->name[0] != '\0') {
        message_header(out, "From", message->from->name, "");
        buffer_printf(out, "%s<%s>\r\n", message_plain(message->from->name, "") ? " " : "\r\n ",
            message->from->address);
    } else {
        buffer_printf(out, "From: <%s>\r\n", message->from->address);
    }

    buffer_printf(out, "To: <%s>\r\n", message->to);
    buffer_printf(out, "Message-ID: <%s>\r\n", message->id);
    message_header(out, "Subject", message->subject, "-.,:;!'()/@_+");
    buffer_puts(out, "\r\n");
    buffer_puts(out, "Auto-Submitted: auto-generated\r\n"); /* RFC 3834: nobody's holiday answers */
    buffer_puts(out, "MIME-Version: 1.0\r\n");
    buffer_printf(out, "Content-Type: text/plain; charset=%s\r\n", plain ? "us-ascii" : "utf-8");
    buffer_printf(
        out, "Content-Transfer-Encoding: %s\r\n\r\n", plain ? "7bit" : "quoted-printable");
    if (plain) {
        message_body_plain(out, message->text);
    } else {
        message_body_quoted(out, message->text);
    }
}
