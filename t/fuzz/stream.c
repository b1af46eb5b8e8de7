/*
 * A Redis that says anything. A byte of choices, one for PostgreSQL's failures, then RESP: it
 * answers everything that a life of the daemon asks, from the login to the acknowledgements.
 */

#include "daemon.h"

/* hiredis 0.14 asks for room for as many elements as an array says that it has: address space, of
 * which nothing is touched, but more than the sanitizer gives. */
static bool
asks_for_much(struct aff_slice replies)
{
    unsigned digits = 0;

    for (size_t i = 0; i < replies.len; i++) {
        if (strchr("*%~>|", replies.data[i]) != NULL && replies.data[i] != 0) {
            digits = 1;
        } else if (digits > 0 && strchr("0123456789+- ", replies.data[i]) != NULL) {
            if (++digits > 6) {
                return true;
            }
        } else {
            digits = 0;
        }
    }

    return false;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const sqlstates[] = {"22021", "40001", "42501", "23505"};
    struct daemon_life life;

    if (size < 2 || asks_for_much(aff_slice(data + 2, size - 2))) {
        return 0;
    }

    life = (struct daemon_life){
        .conversions = (data[0] & 1) != 0,
        .login = (data[0] & 2) != 0,
        .lane = data[0] >> 2 & 1,
        .streams = 1 + (data[0] >> 3 & 1),
        .fail_at = data[1] & 31,
        .fail_again = (data[1] & 32) != 0,
        .sqlstate = sqlstates[data[1] >> 6],
    };
    (void) daemon_live(&life, aff_slice(data + 2, size - 2));

    return 0;
}
