/*
 * A mail as bytes (RFC 5322, MIME): plain text in UTF-8, lines of 998 bytes at most, CRLF. What
 * comes from people can't leave its place: headers are made of checked addresses and encoded words
 * alone.
 */

#ifndef AFFILIATED_MAIL_MESSAGE_H
#define AFFILIATED_MAIL_MESSAGE_H

#include "worker/api/buffer.h"

#define MESSAGE_ADDRESS_MAX 254 /* RFC 5321 and its errata */
#define MESSAGE_NAME_MAX    128
#define MESSAGE_ID_MAX      384
#define MESSAGE_MAX         (128 * 1024UL)

/* An address, and the name in front of it ("" if there is none). */
struct mailbox {
    char address[MESSAGE_ADDRESS_MAX + 1];
    char name[MESSAGE_NAME_MAX + 1];
};

struct message {
    const struct mailbox *from;
    const char *to;      /* an address */
    const char *id;      /* without <> */
    const char *subject; /* UTF-8 */
    const char *text;    /* UTF-8, lines ended by \n */
    int64_t date_s;      /* unix */
};

/* True for local@host in printable ASCII that needs no quoting: no blank, none of ()<>[]:;,\". */
bool message_address_valid(const char *address);

/* The host of a valid address. */
const char *message_host(const char *address);

/* "Name <local@host>", or the address alone. */
bool message_mailbox(const char *text, struct mailbox *mailbox);

/* Appends the mail. What it needs was checked; `out` fails when it is full. */
void message_write(const struct message *message, struct buffer *out);

#endif
