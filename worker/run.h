/* `affiliated run`: starts the roles, answers signals, systemd and the status socket, stops the
 * roles. */

#ifndef AFFILIATED_RUN_H
#define AFFILIATED_RUN_H

#include "worker/config.h"

int run_command(struct config *config, int argc, char **argv);

/* The list of role names is well formed; else the wrong one is named in `error` (CONFIG_ERROR_MAX
 * bytes). */
bool run_roles_valid(const struct config_list *roles, char *error);

/* True if `name` is one of the roles. */
bool run_has_role(const struct config_list *roles, const char *name);

#endif
