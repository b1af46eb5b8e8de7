/* The settings of [npi], looked at as a whole. */

#ifndef AFFILIATED_PAYOUT_NPI_H
#define AFFILIATED_PAYOUT_NPI_H

#include "worker/payout/npi_message.h"

#define NPI_URL_MAX 512

struct npi_settings {
    const struct config *config;
    struct npi_debtor debtor;
    char url[NPI_URL_MAX]; /* without a / at its end */
    bool tls;
};

/* False with the reason in `error` (CONFIG_ERROR_MAX bytes). */
bool npi_settings(const struct config *config, struct npi_settings *settings, char *error);

#endif
