/* What the role mail needs of the configuration, checked; see [mail] in config.c. */

#ifndef AFFILIATED_MAIL_SETTINGS_H
#define AFFILIATED_MAIL_SETTINGS_H

#include "worker/config.h"
#include "worker/mail/message.h"

/* Valid as long as the configuration. */
struct mail_settings {
    const struct config *config;
    struct mailbox from;
    char site[512]; /* https://…, without a slash at its end */
    bool maildir;   /* into a directory; else to a server */
};

/* False if something is missing or wrong: `error` (CONFIG_ERROR_MAX bytes) says what. */
bool mail_settings(
    const struct config *config, struct mail_settings *settings, char error[CONFIG_ERROR_MAX]);

#endif
