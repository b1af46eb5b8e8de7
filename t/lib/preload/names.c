/*
 * Names of a test's own: getaddrinfo() answers for those in the file that AFFILIATED_TEST_NAMES
 * names, "NAME ADDRESS" a line, as if the DNS had said so. All others are the C library's.
 */

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int resolve(const char *, const char *, const struct addrinfo *, struct addrinfo **);

/* The address of `name`, if the file has it. */
static int
names_find(const char *name, char address[INET6_ADDRSTRLEN])
{
    const char *path = getenv("AFFILIATED_TEST_NAMES");
    FILE *file = path == NULL ? NULL : fopen(path, "re");
    char line[512], known[256];
    int found = 0;

    while (file != NULL && !found && fgets(line, sizeof(line), file) != NULL) {
        found = sscanf(line, "%255s %45s", known, address) == 2 && strcmp(known, name) == 0;
    }

    if (file != NULL) {
        (void) fclose(file);
    }

    return found;
}

__attribute__((visibility("default"))) int
getaddrinfo(
    const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
    char address[INET6_ADDRSTRLEN];
    resolve *next;

    *(void **) &next = dlsym(RTLD_NEXT, "getaddrinfo");
    return next(name != NULL && names_find(name, address) ? address : name, service, hints, result);
}
