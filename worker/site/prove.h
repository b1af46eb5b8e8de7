/*
 * How a merchant proves that a host is his: a TXT record beside it, or a file on it. `detail` is
 * for the merchant to act on.
 */

#ifndef AFFILIATED_SITE_PROVE_H
#define AFFILIATED_SITE_PROVE_H

#include "worker/config.h"

#define PROVE_DETAIL_MAX 480

struct prove {
    const struct config *config;
    const char *host;
    const char *challenge;
    bool (*turn)(void *context); /* called while it waits; true to give up */
    void *context;
};

/* "affiliated-site=CHALLENGE" at _affiliated.HOST. */
bool prove_dns(const struct prove *prove, char detail[PROVE_DETAIL_MAX]);

/* CHALLENGE in https://HOST/.well-known/affiliated-site.txt. */
bool prove_file(const struct prove *prove, char detail[PROVE_DETAIL_MAX]);

#endif
