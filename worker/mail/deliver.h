/*
 * Where mails go: to a server (SMTP by libcurl), or into a maildir. Giving the same mail twice is
 * safe: a maildir has it once, a server gets the same Message-ID again.
 */

#ifndef AFFILIATED_MAIL_DELIVER_H
#define AFFILIATED_MAIL_DELIVER_H

#include "worker/mail/settings.h"

#define DELIVER_REASON_MAX CONFIG_ERROR_MAX

enum deliver_outcome {
    DELIVER_SENT,
    DELIVER_REFUSED, /* for good: this recipient, or this mail */
    DELIVER_DELAYED, /* not now, says the server of this mail */
    DELIVER_BROKEN,  /* the connection ended in the middle of this mail: it may have arrived */
    DELIVER_AWAY,    /* nothing was said about this mail: the server, or the directory, is away */
};

struct deliver_mail {
    const char *to;
    const char *file; /* name in a maildir */
    struct aff_slice bytes;
};

struct smtp;

/* `turn` is called several times a second while a server is waited for; true to give up. NULL when
 * memory is exhausted. The settings have to stay. */
struct smtp *smtp_open(
    const struct mail_settings *settings, bool (*turn)(void *context), void *context);
void smtp_close(struct smtp *smtp);

/* `reason` has DELIVER_REASON_MAX bytes; in case of doubt what the server said. */
enum deliver_outcome smtp_send(struct smtp *smtp, const struct deliver_mail *mail, char *reason);

/* Connects, with TLS and login, and sends nothing. */
bool smtp_check(struct smtp *smtp, char *reason);

/* Makes the directories that are missing; not the one that the maildir is in. */
bool maildir_open(const char *path, char *reason);
enum deliver_outcome maildir_store(const char *path, const struct deliver_mail *mail, char *reason);

#endif
