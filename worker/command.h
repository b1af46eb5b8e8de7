/*
 * The commands of `affiliated`: `affiliated [-c path] NAME ARGUMENTS`.
 *
 * Two tables, each ended by an entry without a name: the daemon's own (main.c) and the control
 * plane's (command_*.c).
 */

#ifndef AFFILIATED_COMMAND_H
#define AFFILIATED_COMMAND_H

#include "worker/config.h"

struct command {
    const char *name;
    /* argv[0] is the command's name. Returns the process's exit code, one of enum command_exit. */
    int (*run)(struct config *config, int argc, char **argv);
    const char *usage;   /* what follows the name, e.g. "create|list|show [--json] ..." */
    const char *summary; /* one line for `affiliated help` */
};

enum command_exit {
    COMMAND_OK = 0,
    COMMAND_FAILED = 1, /* did not work, or found something wrong (check, audit) */
    COMMAND_USAGE = 2,  /* the command line or the configuration is wrong */
};

extern const struct command daemon_commands[];
extern const struct command control_commands[];

#endif
