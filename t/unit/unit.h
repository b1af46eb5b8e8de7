/* What every unit test needs: cmocka speaking TAP, random numbers that a failure can be replayed
 * with, and inputs that the sanitizer guards to the byte. */

#ifndef AFF_UNIT_H
#define AFF_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "keyring.h"
#include "slice.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define RUN(tests)                                                                                 \
    (cmocka_set_message_output(CM_OUTPUT_TAP), cmocka_run_group_tests((tests), NULL, NULL))

/* Two keys: "new" is current, "old" only verifies. */
#define KEY_FILE                                                                                   \
    "# keys\n"                                                                                     \
    "new 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"                       \
    "\n"                                                                                           \
    "old f0f1f2f3f4f5f6f7f8f9fafbfcfdfeffe0e1e2e3e4e5e6e7e8e9eaebecedeeef\n"

static inline struct aff_keyring
ring_of(const char *file)
{
    struct aff_keyring made;
    char error[128] = "";

    if (!aff_keyring_parse(&made, aff_slice_of(file), error, sizeof(error))) {
        fail_msg("%s", error);
    }

    return made;
}

/* Only the second key of `rotated`, as current: what made things before a rotation. */
static inline struct aff_keyring
ring_before(const struct aff_keyring *rotated)
{
    struct aff_keyring before = {.count = 1};

    before.keys[0] = rotated->keys[1];
    return before;
}

/* Sebastiano Vigna's splitmix64, seeded from AFF_TEST_SEED or the clock; the seed is printed. */
static uint64_t unit_random_state;

static inline void
seed_random(void)
{
    const char *given = getenv("AFF_TEST_SEED");

    unit_random_state = given != NULL ? strtoull(given, NULL, 0) : (uint64_t) time(NULL);
    printf("# AFF_TEST_SEED=%llu\n", (unsigned long long) unit_random_state);
    (void) fflush(stdout);
}

static inline uint64_t
next_random(void)
{
    uint64_t z = (unit_random_state += 0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static inline void
fill_random(uint8_t *out, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        out[i] = (uint8_t) next_random();
    }
}

/* A copy in a block of exactly `len` bytes, so that a read beyond it is caught. free() its data. */
static inline struct aff_slice
exact(const void *data, size_t len)
{
    uint8_t *copy = malloc(len == 0 ? 1 : len);

    assert_non_null(copy);
    if (len != 0) {
        memcpy(copy, data, len);
    }

    return aff_slice(copy, len);
}

static inline void
drop(struct aff_slice copy)
{
    free((void *) copy.data);
}

static inline void
assert_slice(struct aff_slice got, const char *want)
{
    if (!aff_slice_equal(got, aff_slice_of(want))) {
        fail_msg("got \"%.*s\", want \"%s\"", (int) got.len, (const char *) got.data, want);
    }
}

#endif
