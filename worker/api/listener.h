/* The socket that all lanes of the role api accept from: systemd's, or one of our own. */

#ifndef AFFILIATED_API_LISTENER_H
#define AFFILIATED_API_LISTENER_H

#include "worker/config.h"

/*
 * The descriptor, opened by whoever asks first and kept until the process ends, over all lives of
 * the role; -1 with a reason in `error` (CONFIG_ERROR_MAX bytes).
 */
int listener_fd(const struct config *config, char *error);

/* No more connections come, but those that wait already should be taken: then true. systemd's
 * socket stays, and keeps them for the next daemon. */
bool listener_retire(const struct config *config);

#endif
