/* A maildir: written into tmp, then moved to new, where readers find it whole. */

#include "worker/mail/deliver.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static enum deliver_outcome
maildir_failed(char *reason, const char *path, const char *part)
{
    snprintf(reason, DELIVER_REASON_MAX, "%.300s/%.160s: %s", path, part, strerror(errno));
    return DELIVER_AWAY;
}

bool
maildir_open(const char *path, char *reason)
{
    static const char *const parts[] = {"", "tmp", "new", "cur"};

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        char *whole = NULL;
        bool ok = asprintf(&whole, "%s/%s", path, parts[i]) >= 0 &&
                  (mkdir(whole, 0700) == 0 || errno == EEXIST) && access(whole, W_OK | X_OK) == 0;

        if (!ok) {
            maildir_failed(reason, path, parts[i]);
        }

        free(whole);
        if (!ok) {
            return false;
        }
    }

    return true;
}

/* Files of a maildir have the lines of this system. */
static bool
maildir_write(int fd, struct aff_slice bytes)
{
    char *text = malloc(bytes.len + 1);
    size_t len = 0, done = 0;

    if (text == NULL) {
        errno = ENOMEM;
        return false;
    }

    for (size_t i = 0; i < bytes.len; i++) {
        if (bytes.data[i] != '\r') {
            text[len++] = (char) bytes.data[i];
        }
    }

    while (done < len) {
        ssize_t n = write(fd, text + done, len - done);

        if (n < 0 && errno != EINTR) {
            break;
        }

        done += n > 0 ? (size_t) n : 0;
    }

    free(text);
    return done == len && fsync(fd) == 0;
}

/* `root` is the maildir. */
static enum deliver_outcome
maildir_store_at(int root, const char *path, const struct deliver_mail *mail, char *reason)
{
    int tmp = openat(root, "tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int new = openat(root, "new", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = -1;
    bool ok;

    ok = tmp >= 0 && new >= 0;
    if (ok && faccessat(new, mail->file, F_OK, 0) != 0) {
        /* What a daemon that died has left is written over. */
        fd = openat(tmp, mail->file, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
        ok = fd >= 0 && maildir_write(fd, mail->bytes) &&
             renameat(tmp, mail->file, new, mail->file) == 0 && fsync(new) == 0;
    }

    if (!ok) {
        maildir_failed(reason, path, mail->file);
    }

    if (fd >= 0) {
        close(fd);
    }

    if (tmp >= 0) {
        close(tmp);
    }

    if (new >= 0) {
        close(new);
    }

    return ok ? DELIVER_SENT : DELIVER_AWAY;
}

enum deliver_outcome
maildir_store(const char *path, const struct deliver_mail *mail, char *reason)
{
    int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    enum deliver_outcome outcome;

    if (root < 0) {
        return maildir_failed(reason, path, "");
    }

    outcome = maildir_store_at(root, path, mail, reason);
    close(root);
    return outcome;
}
