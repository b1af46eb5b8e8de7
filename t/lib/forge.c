/*
 * Makes what only the holder of a key file can make, for tests: records of links and keys,
 * click_ids, secrets. `forge KEYS KIND name=value ...`, KIND and its names being
 *
 *   link      code url merchant link campaign affiliate state livemode version
 *             [expires_ms param fallback host ...]: the record, as aff:link:CODE holds it
 *   key       id merchant livemode revoked version: the record, as aff:key:ID holds it
 *   key-id    livemode: a fresh id
 *   secret    id: its secret
 *   click-id  merchant livemode at_ms [uuid (32 hex digits)]
 */

#include "protocol/api_key.h"
#include "protocol/bytes.h"
#include "protocol/chars.h"
#include "protocol/projection.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

static int fields_count;
static char **fields;

static _Noreturn void
die(const char *what)
{
    fprintf(stderr, "forge: %s\n", what);
    exit(1);
}

/* The value of the n-th `name=value`, or NULL. */
static const char *
field_at(const char *name, int n)
{
    size_t len = strlen(name);

    for (int i = 0; i < fields_count; i++) {
        if (strncmp(fields[i], name, len) == 0 && fields[i][len] == '=' && n-- == 0) {
            return fields[i] + len + 1;
        }
    }

    return NULL;
}

static struct aff_slice
text(const char *name)
{
    const char *value = field_at(name, 0);

    return aff_slice_of(value == NULL ? "" : value);
}

static uint64_t
number(const char *name)
{
    const char *value = field_at(name, 0);

    return value == NULL ? 0 : strtoull(value, NULL, 10);
}

static void
random_bytes(uint8_t *out, size_t len)
{
    if (getrandom(out, len, 0) != (ssize_t) len) {
        die("no random bytes");
    }
}

static void
put(const uint8_t *record, size_t len)
{
    if (len == 0) {
        die("a field is over its limit or invalid");
    }

    fwrite(record, 1, len, stdout);
}

static void
forge_link(const struct aff_keyring *ring)
{
    uint8_t record[AFF_LINK_RECORD_MAX];
    struct aff_link link = {
        .version = number("version"),
        .link_id = number("link"),
        .merchant_id = number("merchant"),
        .campaign_id = number("campaign"),
        .affiliate_id = number("affiliate"),
        .expires_ms = number("expires_ms"),
        .state = (uint8_t) number("state"),
        .livemode = number("livemode") != 0,
        .code = text("code"),
        .url = text("url"),
        .param = text("param"),
        .fallback = text("fallback"),
    };
    const char *host;

    while (link.hosts_count < AFF_LINK_HOSTS_MAX &&
           (host = field_at("host", (int) link.hosts_count)) != NULL) {
        link.hosts[link.hosts_count++] = aff_slice_of(host);
    }

    put(record, aff_link_encode(&link, ring, record, sizeof(record)));
}

static void
forge_key(const struct aff_keyring *ring)
{
    uint8_t record[AFF_KEY_RECORD_MAX];
    struct aff_key key = {
        .version = number("version"),
        .merchant_id = number("merchant"),
        .livemode = number("livemode") != 0,
        .revoked = number("revoked") != 0,
        .id = text("id"),
        .master_id = aff_slice_of(ring->keys[0].id),
    };

    put(record, aff_key_encode(&key, ring, record, sizeof(record)));
}

static void
forge_key_id(void)
{
    uint8_t random[AFF_API_KEY_RANDOM_BYTES];
    char id[AFF_API_KEY_ID_CHARS + 1];

    random_bytes(random, sizeof(random));
    aff_api_key_make(number("livemode") != 0, random, id);
    puts(id);
}

static void
forge_secret(const struct aff_keyring *ring)
{
    char secret[AFF_API_KEY_SECRET_CHARS + 1];

    if (!aff_api_key_secret(&ring->keys[0], text("id"), secret)) {
        die("no secret for this id");
    }

    puts(secret);
}

static void
forge_click_id(const struct aff_keyring *ring)
{
    struct aff_click_clock clock = {0};
    struct aff_slice given = text("uuid");
    uint8_t random[AFF_RANDOM_BYTES], uuid[AFF_UUID_BYTES];
    char id[AFF_CLICK_ID_CHARS];

    random_bytes(random, sizeof(random));
    aff_uuid_make(&clock, number("at_ms"), random, uuid);
    if (given.len == 2 * sizeof(uuid)) {
        for (size_t i = 0; i < sizeof(uuid); i++) {
            uuid[i] = (uint8_t) (aff_char_hex(given.data[2 * i]) << 4 |
                                 aff_char_hex(given.data[2 * i + 1]));
        }
    }

    aff_click_id_format(&ring->keys[0], uuid, number("merchant"), number("livemode") != 0, id);
    printf("%.*s\n", AFF_CLICK_ID_CHARS, id);
}

static void
read_keys(const char *path, struct aff_keyring *ring)
{
    char content[8192], error[128];
    FILE *file = fopen(path, "rb");
    size_t len;

    if (file == NULL) {
        die("cannot open the key file");
    }

    len = fread(content, 1, sizeof(content), file);
    fclose(file);
    if (!aff_keyring_parse(ring, aff_slice(content, len), error, sizeof(error))) {
        die(error);
    }
}

int
main(int argc, char **argv)
{
    struct aff_keyring ring;

    if (argc < 3) {
        die("usage: forge KEYS link|key|key-id|secret|click-id name=value ...");
    }

    fields = argv + 3;
    fields_count = argc - 3;
    read_keys(argv[1], &ring);

    if (strcmp(argv[2], "link") == 0) {
        forge_link(&ring);
    } else if (strcmp(argv[2], "key") == 0) {
        forge_key(&ring);
    } else if (strcmp(argv[2], "key-id") == 0) {
        forge_key_id();
    } else if (strcmp(argv[2], "secret") == 0) {
        forge_secret(&ring);
    } else if (strcmp(argv[2], "click-id") == 0) {
        forge_click_id(&ring);
    } else {
        die("unknown kind");
    }

    return 0;
}
