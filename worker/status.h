/*
 * The status socket: connect, send "json\n" or "prometheus\n", read until the end. `affiliated
 * status` is its client.
 */

#ifndef AFFILIATED_STATUS_H
#define AFFILIATED_STATUS_H

#include "worker/role.h"

/* Listens at `path` (mode 0660), in place of what a dead daemon left there. -1 on a failure, logged
 * unless `again`. */
int status_listen(const char *path, bool again);

/* Accepts one client and answers it, within a fraction of a second. */
void status_answer(int listen_fd, struct role *roles, unsigned count);

#endif
