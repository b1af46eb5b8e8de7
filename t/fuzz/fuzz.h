/* What every fuzz target needs. A target states what must hold with `require`, which stays on in
 * any build. */

#ifndef AFF_FUZZ_H
#define AFF_FUZZ_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyring.h"
#include "slice.h"

#define require(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* One fixed key, so that committed seeds verify. */
static inline const struct aff_keyring *
fuzz_ring(void)
{
    static struct aff_keyring ring;
    char error[128];

    if (ring.count == 0) {
        require(aff_keyring_parse(&ring,
            aff_slice_of("fuzz 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"),
            error, sizeof(error)));
    }

    return &ring;
}

/* True if `part` is empty or lies within `whole`. */
static inline bool
within(struct aff_slice part, struct aff_slice whole)
{
    return part.len == 0 ||
           (part.data >= whole.data && part.data + part.len <= whole.data + whole.len);
}

/* Cuts the first line off `*rest`: how a target that takes several texts splits its input. */
static inline struct aff_slice
first_line(struct aff_slice *rest)
{
    const uint8_t *end = rest->len == 0 ? NULL : memchr(rest->data, '\n', rest->len);
    struct aff_slice line = *rest;

    if (end == NULL) {
        *rest = aff_slice(rest->data, 0);
    } else {
        line.len = (size_t) (end - rest->data);
        *rest = aff_slice(end + 1, rest->len - line.len - 1);
    }

    return line;
}

#endif
