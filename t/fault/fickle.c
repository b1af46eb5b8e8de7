/*
 * Preloaded into nginx and affiliated by the fault run: a clock that is off, and sockets that take
 * less than they were given.
 *
 * The file that FICKLE_FILE names is mapped when the program starts, and is shared by all its
 * children; whoever writes into it changes them all at once:
 *
 *     0  i64  nanoseconds that the real-time clock is ahead
 *     8  u64  of how many writes to a TCP socket one is cut short; 0: none
 *    16  u64  how many were
 *
 * The monotonic clock stays as it is, as it does when an administrator sets the time. Only TCP
 * sockets write short: for files and nginx's own channels that is no fault that ever happens.
 */

#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))
#define BILLION  1000000000L
#define IOV_SOME 64

struct fickle {
    _Atomic int64_t ahead_ns;
    _Atomic uint64_t one_of;
    _Atomic uint64_t cut_short;
};

static struct fickle fickle_none;
static struct fickle *fickle = &fickle_none;

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_send)(int, const void *, size_t, int);
static ssize_t (*real_sendmsg)(int, const struct msghdr *, int);

/* dlsym() gives an object pointer, which C has no cast for. */
#define REAL(name) (*(void **) &real_##name = dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void
fickle_begin(void)
{
    const char *path = getenv("FICKLE_FILE");
    int fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    void *map;

    REAL(clock_gettime);
    REAL(write);
    REAL(writev);
    REAL(send);
    REAL(sendmsg);
    if (fd < 0) {
        return;
    }

    map = mmap(NULL, sizeof(struct fickle), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) {
        fickle = map;
    }
}

/* --- the clock --- */

/* Before the constructor has run, some other library's constructor may ask. */
EXPORTED int
clock_gettime(clockid_t id, struct timespec *now)
{
    int64_t ns;

    if (real_clock_gettime == NULL) {
        REAL(clock_gettime);
    }

    if (real_clock_gettime(id, now) != 0) {
        return -1;
    }

    if (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE) {
        return 0;
    }

    ns = (int64_t) now->tv_sec * BILLION + now->tv_nsec +
         atomic_load_explicit(&fickle->ahead_ns, memory_order_relaxed);
    now->tv_sec = ns / BILLION;
    now->tv_nsec = ns % BILLION;
    return 0;
}

EXPORTED int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;

    (void) zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

EXPORTED time_t
time(time_t *result)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (result != NULL) {
        *result = now.tv_sec;
    }

    return now.tv_sec;
}

/* --- short writes --- */

/* How many of so many bytes are to go: all, or fewer, but one at least. */
static size_t
fickle_part(int fd, size_t size)
{
    static _Atomic uint64_t count;
    uint64_t one_of = atomic_load_explicit(&fickle->one_of, memory_order_relaxed);
    uint64_t n;
    int domain;
    socklen_t len = sizeof(domain);

    if (one_of == 0 || size < 2 || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) != 0 ||
        domain != AF_INET) {
        return size;
    }

    n = atomic_fetch_add(&count, 1);
    if (n % one_of != 0) {
        return size;
    }

    atomic_fetch_add(&fickle->cut_short, 1);
    return 1 + (size_t) (n * 2654435761U % (size - 1));
}

EXPORTED ssize_t
write(int fd, const void *data, size_t size)
{
    return real_write(fd, data, fickle_part(fd, size));
}

EXPORTED ssize_t
send(int fd, const void *data, size_t size, int flags)
{
    return real_send(fd, data, fickle_part(fd, size), flags);
}

/* The first `size` bytes of what `from` holds; the number of elements in `to`. */
static int
fickle_cut(struct iovec *to, const struct iovec *from, int count, size_t size)
{
    int n;

    for (n = 0; n < count && size > 0; n++) {
        to[n] = from[n];
        if (to[n].iov_len > size) {
            to[n].iov_len = size;
        }

        size -= to[n].iov_len;
    }

    return n;
}

static size_t
fickle_size(const struct iovec *iov, size_t count)
{
    size_t size = 0;

    for (size_t i = 0; i < count; i++) {
        size += iov[i].iov_len;
    }

    return size;
}

EXPORTED ssize_t
writev(int fd, const struct iovec *iov, int count)
{
    struct iovec cut[IOV_SOME];
    size_t size = count > IOV_SOME ? 0 : fickle_size(iov, (size_t) count);
    size_t part = fickle_part(fd, size);

    if (part == size) {
        return real_writev(fd, iov, count);
    }

    return real_writev(fd, cut, fickle_cut(cut, iov, count, part));
}

EXPORTED ssize_t
sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct iovec cut[IOV_SOME];
    struct msghdr shorter = *message;
    size_t size =
        message->msg_iovlen > IOV_SOME ? 0 : fickle_size(message->msg_iov, message->msg_iovlen);
    size_t part = fickle_part(fd, size);

    if (part == size) {
        return real_sendmsg(fd, message, flags);
    }

    shorter.msg_iov = cut;
    shorter.msg_iovlen =
        (size_t) fickle_cut(cut, message->msg_iov, (int) message->msg_iovlen, part);
    return real_sendmsg(fd, &shorter, flags);
}
