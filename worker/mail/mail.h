/* For `affiliated check`. */

#ifndef AFFILIATED_MAIL_MAIL_H
#define AFFILIATED_MAIL_MAIL_H

#include "worker/config.h"

/* Looks at the settings, and connects to the server; no mail is sent. `said` gets what is to be
 * told. */
bool mail_check(const struct config *config, char *said, size_t size);

#endif
