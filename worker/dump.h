/*
 * `affiliated dump`: what segments of the spool and entries of streams hold, one line of JSON each.
 * It reads anything: a segment that nginx writes at this moment, a torn one, a file that is none.
 */

#ifndef AFFILIATED_DUMP_H
#define AFFILIATED_DUMP_H

#include "protocol/batch.h"
#include "worker/config.h"

#include <jansson.h>

/* One record; NULL if it does not decode (or memory is exhausted). A new reference. */
json_t *dump_record(uint8_t type, uint8_t version, struct aff_slice payload);

/* A whole segment file. True if nothing in it is damaged. */
bool dump_segment(struct aff_slice file, const char *name, FILE *out);

/* One stream entry. A ring of NULL leaves the MAC unverified. True if nothing in it is damaged or
 * forged. */
bool dump_entry(struct aff_slice entry, const char *stream, const char *id,
    const struct aff_keyring *ring, FILE *out);

int dump_command(struct config *config, int argc, char **argv);

#endif
