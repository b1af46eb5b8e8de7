/* `affiliated check`, also `affiliated -t`: is everything there that `affiliated run` needs? */

#ifndef AFFILIATED_CHECK_H
#define AFFILIATED_CHECK_H

#include "worker/config.h"

int check_command(struct config *config, int argc, char **argv);

#endif
