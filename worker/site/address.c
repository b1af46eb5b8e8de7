#include "worker/site/address.h"

#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct address_block4 {
    uint32_t base;
    unsigned bits;
};

#define BLOCK4(a, b, c, d, n)                                                                      \
    {                                                                                              \
        (uint32_t)(a) << 24 | (b) << 16 | (c) << 8 | (d), n                                        \
    }

/* IANA IPv4 Special-Purpose Address Registry, and multicast and what is above it. */
static const struct address_block4 address_blocks4[] = {
    BLOCK4(0, 0, 0, 0, 8),       /* this network */
    BLOCK4(10, 0, 0, 0, 8),      /* private */
    BLOCK4(100, 64, 0, 0, 10),   /* shared, of carrier-grade NAT */
    BLOCK4(127, 0, 0, 0, 8),     /* loopback */
    BLOCK4(169, 254, 0, 0, 16),  /* link-local, and clouds' metadata */
    BLOCK4(172, 16, 0, 0, 12),   /* private */
    BLOCK4(192, 0, 0, 0, 24),    /* protocol assignments */
    BLOCK4(192, 0, 2, 0, 24),    /* documentation */
    BLOCK4(192, 31, 196, 0, 24), /* AS112 */
    BLOCK4(192, 52, 193, 0, 24), /* AMT */
    BLOCK4(192, 88, 99, 0, 24),  /* 6to4 relays */
    BLOCK4(192, 168, 0, 0, 16),  /* private */
    BLOCK4(192, 175, 48, 0, 24), /* AS112 */
    BLOCK4(198, 18, 0, 0, 15),   /* benchmarks */
    BLOCK4(198, 51, 100, 0, 24), /* documentation */
    BLOCK4(203, 0, 113, 0, 24),  /* documentation */
    BLOCK4(224, 0, 0, 0, 3),     /* multicast, reserved, broadcast */
};

struct address_block6 {
    uint8_t base[16];
    unsigned bits;
};

/* Of 2000::/3, the one block of global unicast: what is set apart in it. */
static const struct address_block6 address_blocks6[] = {
    {{0x20, 0x01, 0x00}, 23},                   /* protocol assignments, Teredo */
    {{0x20, 0x01, 0x0d, 0xb8}, 32},             /* documentation */
    {{0x26, 0x20, 0x00, 0x4f, 0x80, 0x00}, 48}, /* AS112 */
    {{0x3f, 0xff}, 20},                         /* documentation */
};

static const struct address_block6 address_global6 = {{0x20}, 3};
static const struct address_block6 address_6to4 = {{0x20, 0x02}, 16};
static const struct address_block6 address_nat64 = {{0x00, 0x64, 0xff, 0x9b}, 96};

static bool
address_public4(uint32_t address)
{
    for (size_t i = 0; i < sizeof(address_blocks4) / sizeof(address_blocks4[0]); i++) {
        uint32_t mask = UINT32_MAX << (32 - address_blocks4[i].bits);

        if ((address & mask) == address_blocks4[i].base) {
            return false;
        }
    }

    return true;
}

static bool
address_within6(const uint8_t address[16], const struct address_block6 *block)
{
    for (unsigned bit = 0; bit < block->bits; bit++) {
        unsigned mask = 0x80U >> (bit % 8);

        if (((address[bit / 8] ^ block->base[bit / 8]) & mask) != 0) {
            return false;
        }
    }

    return true;
}

static uint32_t
address_inner4(const uint8_t *bytes)
{
    return (uint32_t) bytes[0] << 24 | (uint32_t) bytes[1] << 16 | (uint32_t) bytes[2] << 8 |
           bytes[3];
}

static bool
address_public6(const uint8_t address[16])
{
    /* Behind a NAT64 that is how the IPv4 internet looks. */
    if (address_within6(address, &address_nat64)) {
        return address_public4(address_inner4(address + 12));
    }

    /* So neither ::1, nor ::ffff:0:0/96, fc00::/7, fe80::/10, ff00::/8. */
    if (!address_within6(address, &address_global6)) {
        return false;
    }

    for (size_t i = 0; i < sizeof(address_blocks6) / sizeof(address_blocks6[0]); i++) {
        if (address_within6(address, &address_blocks6[i])) {
            return false;
        }
    }

    return !address_within6(address, &address_6to4) || address_public4(address_inner4(address + 2));
}

bool
address_public(const struct sockaddr *address, socklen_t len)
{
    if (address->sa_family == AF_INET && len >= sizeof(struct sockaddr_in)) {
        struct sockaddr_in in;

        memcpy(&in, address, sizeof(in));
        return address_public4(ntohl(in.sin_addr.s_addr));
    }

    if (address->sa_family == AF_INET6 && len >= sizeof(struct sockaddr_in6)) {
        struct sockaddr_in6 in6;

        memcpy(&in6, address, sizeof(in6));
        return address_public6(in6.sin6_addr.s6_addr);
    }

    return false;
}

void
address_text(const struct sockaddr *address, socklen_t len, char *text, size_t size)
{
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    const char *ok = NULL;

    if (address->sa_family == AF_INET && len >= sizeof(in)) {
        memcpy(&in, address, sizeof(in));
        ok = inet_ntop(AF_INET, &in.sin_addr, text, (socklen_t) size);
    } else if (address->sa_family == AF_INET6 && len >= sizeof(in6)) {
        memcpy(&in6, address, sizeof(in6));
        ok = inet_ntop(AF_INET6, &in6.sin6_addr, text, (socklen_t) size);
    }

    if (ok == NULL) {
        snprintf(text, size, "an address of another kind");
    }
}

bool
address_parse(const char *text, struct sockaddr_storage *address, socklen_t *len)
{
    const char *colon = strrchr(text, ':');
    bool v6 = text[0] == '[';
    char host[INET6_ADDRSTRLEN];
    size_t host_len;
    char *end;
    long port;

    memset(address, 0, sizeof(*address));
    if (colon == NULL || colon[1] < '0' || colon[1] > '9' ||
        (v6 && (colon - text < 2 || colon[-1] != ']'))) {
        return false;
    }

    port = strtol(colon + 1, &end, 10);
    host_len = (size_t) (colon - text) - (v6 ? 2 : 0);
    if (*end != '\0' || port < 1 || port > 65535 || host_len >= sizeof(host)) {
        return false;
    }

    memcpy(host, text + v6, host_len);
    host[host_len] = '\0';
    if (v6) {
        struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t) port)};

        *len = sizeof(in6);
        if (inet_pton(AF_INET6, host, &in6.sin6_addr) != 1) {
            return false;
        }

        memcpy(address, &in6, sizeof(in6));
    } else {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t) port)};

        *len = sizeof(in);
        if (inet_pton(AF_INET, host, &in.sin_addr) != 1) {
            return false;
        }

        memcpy(address, &in, sizeof(in));
    }

    return true;
}
