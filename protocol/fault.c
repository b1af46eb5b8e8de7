/* The fault points of a test build; nothing in any other. */

#include "fault.h"

#ifdef AFFILIATED_FAULTS

#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct control {
    uint64_t armed;
    uint64_t mode;
    uint64_t countdown;
    uint64_t passes[];
};

extern const struct aff_fault_point __start_aff_faults[]
    __attribute__((weak, visibility("hidden")));

static struct control *control;
static size_t points_max;

static void __attribute__((constructor)) map_control(void)
{
    const char *path = getenv("AFFILIATED_FAULT_FILE");
    struct stat st;
    void *map = MAP_FAILED;
    int fd;

    if (path == NULL || control != NULL) {
        return;
    }

    fd = open(path, O_RDWR | O_CLOEXEC);

    if (fd == -1) {
        return;
    }

    if (fstat(fd, &st) == 0 && st.st_size >= AFF_FAULT_FILE_BYTES) {
        map = mmap(NULL, AFF_FAULT_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }

    close(fd);

    if (map != MAP_FAILED) {
        control = map;
        points_max = (AFF_FAULT_FILE_BYTES - sizeof(struct control)) / sizeof(uint64_t);
    }
}

int
aff_fault(const struct aff_fault_point *point)
{
    size_t number = (size_t) (point - __start_aff_faults);

    if (control == NULL || number >= points_max) {
        return 0;
    }

    __atomic_add_fetch(&control->passes[number], 1, __ATOMIC_SEQ_CST);

    if (__atomic_load_n(&control->armed, __ATOMIC_SEQ_CST) != number + 1 ||
        __atomic_sub_fetch(&control->countdown, 1, __ATOMIC_SEQ_CST) != 0) {
        return 0;
    }

    switch (control->mode) {
    case AFF_FAULT_CRASH:
        kill(getpid(), SIGKILL);
        return 0;
    case AFF_FAULT_STOP:
        kill(getpid(), SIGSTOP);
        return 0;
    default:
        return 1;
    }
}

#endif
