/*
 * A request's head in the Simple Common Gateway Interface (python.ca/scgi/protocol.txt): a
 * netstring of NUL-ended names and values, in front of the body. Pure: no descriptor, no memory of
 * its own.
 */

#ifndef AFFILIATED_API_SCGI_H
#define AFFILIATED_API_SCGI_H

#include "protocol/slice.h"

#define SCGI_HEAD_MAX  65536 /* bytes of the netstring's content */
#define SCGI_PAIRS_MAX 160

/* The longest head with its length, colon and comma. */
#define SCGI_INPUT_MAX (SCGI_HEAD_MAX + 8)

struct scgi_pair {
    struct aff_slice name;
    struct aff_slice value;
};

struct scgi_head {
    struct scgi_pair pairs[SCGI_PAIRS_MAX]; /* in order; they point into the input */
    unsigned count;
    uint64_t content_length;
};

enum scgi_result {
    SCGI_DONE,
    SCGI_MORE,      /* a prefix of a head: read on */
    SCGI_MALFORMED, /* never becomes one */
    SCGI_TOO_LARGE, /* of bytes or pairs */
};

/* Reads the head at the start of `input`; with SCGI_DONE `*consumed` bytes of it, and the body
 * follows. */
enum scgi_result scgi_parse(struct aff_slice input, struct scgi_head *head, size_t *consumed);

/* How often `name` is there; `*value` is the last one's, empty if there is none. */
unsigned scgi_find(const struct scgi_head *head, const char *name, struct aff_slice *value);

#endif
