/* systemd's notification protocol (sd_notify(3)): datagrams to $NOTIFY_SOCKET. Without one, nothing
 * happens. */

#ifndef AFFILIATED_NOTIFY_H
#define AFFILIATED_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

/* Opens the socket, reads $WATCHDOG_USEC, and takes both out of the environment. */
void notify_open(void);

void notify_ready(const char *status);
void notify_status(const char *status);
void notify_reloading(void);
void notify_stopping(void);
void notify_watchdog(void);

/* How often to feed the watchdog, in milliseconds; 0 if there is none. */
int64_t notify_watchdog_interval(void);

#endif
