/*
 * Which addresses are the internet's. Sites' names are chosen by people who may point them
 * anywhere: what is on this host, in its network or reserved must not be asked anything for them.
 */

#ifndef AFFILIATED_SITE_ADDRESS_H
#define AFFILIATED_SITE_ADDRESS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>

/* True for global unicast that IANA's special-purpose registries (RFC 6890) do not set apart. IPv6
 * addresses that carry an IPv4 address are judged by that one, too. */
bool address_public(const struct sockaddr *address, socklen_t len);

/* "192.0.2.1", "2001:db8::1"; "an address of another kind". */
void address_text(const struct sockaddr *address, socklen_t len, char *text, size_t size);

/* "192.0.2.1:53" or "[2001:db8::1]:53" as an address; false if it is none. */
bool address_parse(const char *text, struct sockaddr_storage *address, socklen_t *len);

#endif
