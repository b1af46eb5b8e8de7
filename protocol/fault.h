/*
 * Fault points: named steps at which a test build can be made to die, to stop, or to fail.
 *
 *     if (AFF_FAULT("clicks.copied")) {
 *         return failed("a fault was injected");
 *     }
 *
 * In a build without AFFILIATED_FAULTS, as every installed one is, AFF_FAULT() is the constant 0
 * and leaves no trace. With it, each name stands in the section "aff_faults", in the order of their
 * numbers, and the file that the environment variable AFFILIATED_FAULT_FILE names is mapped when
 * the program or the module is loaded:
 *
 *     0  u64  the armed point's number + 1; 0: none
 *     8  u64  enum aff_fault_mode
 *    16  u64  at which of its next passes, counted from 1
 *    24  ...  u64 a point: how often it was passed
 *
 * Native byte order; shared by all processes, so that a test arms a point while they run and sees
 * which ones were reached. The file is at least AFF_FAULT_FILE_BYTES long.
 */

#ifndef AFF_FAULT_H
#define AFF_FAULT_H

#ifdef AFFILIATED_FAULTS

#define AFF_FAULTS 1

#define AFF_FAULT_FILE_BYTES 4096

enum aff_fault_mode {
    AFF_FAULT_CRASH = 1, /* kill -9 of its own process */
    AFF_FAULT_ERROR = 2, /* this pass returns 1 */
    AFF_FAULT_STOP = 3,  /* SIGSTOP: the process hangs until it is continued or killed */
};

struct aff_fault_point {
    char name[64];
};

/* 1 if this pass is to fail. */
int aff_fault(const struct aff_fault_point *point);

#define AFF_FAULT(text)                                                                            \
    (__extension__({                                                                               \
        static const struct aff_fault_point aff_point                                              \
            __attribute__((section("aff_faults"), used)) = {text};                                 \
        aff_fault(&aff_point);                                                                     \
    }))

#else

#define AFF_FAULTS      0
#define AFF_FAULT(text) 0

#endif

#endif
