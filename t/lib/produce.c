/*
 * Puts batches of made-up clicks or conversions into Redis as the module would, for tests and
 * benchmarks.
 *
 * Everything follows from the seed: click number i of a seed and a start time is the same in every
 * run, so conversions made with the same --seed, --start-ms and --rate name the clicks that were
 * made before. Prints what it did as one line of JSON.
 */

#include "protocol/batch.h"
#include "protocol/bytes.h"
#include "protocol/click.h"
#include "protocol/conversion.h"

#include <getopt.h>
#include <hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define PIPELINE 64

enum damage {
    DAMAGE_NONE,
    DAMAGE_MAC,    /* no key made it */
    DAMAGE_FRAME,  /* the middle frame's crc is wrong (the MAC is right) */
    DAMAGE_RECORD, /* the middle record is no record */
};

struct options {
    const char *redis;
    const char *password;
    const char *key_file;
    const char *key_id;
    const char *statuses;
    const char *currency;
    const char *order_prefix;
    bool conversions;
    bool test;
    enum damage damage;
    uint64_t count, first, seed, start_ms, rate, delay_ms, spool, segment, segment_batches, stream,
        repeat;
    uint64_t merchant, merchants, link, links, campaign, affiliate, affiliates, amount, bots,
        sub_ids, batch_records, batch_bytes;
};

struct producer {
    const struct options *options;
    struct aff_keyring ring;
    redisContext *redis;
    unsigned pending;
    struct aff_click_clock clock;
    uint8_t *batch; /* header and payload */
    size_t len;     /* of the payload */
    uint32_t records;
    uint64_t segment;
    uint32_t sequence;
    uint64_t batches, bytes, made;
};

static void
fail(const char *what, const char *why)
{
    fprintf(stderr, "produce: %s: %s\n", what, why);
    exit(1);
}

/* Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (2014). */
static uint64_t
mix(uint64_t seed, uint64_t i)
{
    uint64_t z = seed * 0x9e3779b97f4a7c15ULL + (i + 1) * 0xbf58476d1ce4e5b9ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

static void
collect(struct producer *p)
{
    while (p->pending > 0) {
        void *reply = NULL;

        if (redisGetReply(p->redis, &reply) != REDIS_OK) {
            fail("Redis", p->redis->errstr);
        }

        if (((redisReply *) reply)->type == REDIS_REPLY_ERROR) {
            fail("Redis", ((redisReply *) reply)->str);
        }

        freeReplyObject(reply);
        p->pending--;
    }
}

/* Bytes of the frame in the middle of the payload. */
static uint8_t *
middle_frame(struct producer *p)
{
    uint8_t *frame = p->batch + AFF_BATCH_HEADER_BYTES;

    for (uint32_t i = 0; i < p->records / 2; i++) {
        frame += aff_load_le32(frame);
    }

    return frame;
}

static void
send_batch(struct producer *p)
{
    const struct options *o = p->options;
    struct aff_batch batch = {
        .channel = o->conversions ? AFF_CHANNEL_CONVERSIONS : AFF_CHANNEL_CLICKS,
        .spool_id = o->spool,
        .segment = p->segment,
        .sequence = p->sequence,
        .records = p->records,
        .payload = aff_slice(p->batch + AFF_BATCH_HEADER_BYTES, p->len)};

    if (p->records == 0) {
        return;
    }

    if (o->damage == DAMAGE_FRAME) {
        middle_frame(p)[4] ^= 0xff;
    } else if (o->damage == DAMAGE_RECORD) {
        uint8_t *frame = middle_frame(p);

        aff_frame_seal(
            frame, 200, 1, aff_load_le16(frame + 10), aff_frame_seed(o->spool, p->segment));
    }

    aff_batch_header(&batch, &p->ring, p->batch);
    if (o->damage == DAMAGE_MAC) {
        p->batch[40] ^= 0xff;
    }

    for (uint64_t i = 0; i < o->repeat; i++) {
        redisAppendCommand(p->redis, "XADD aff:%s:%llu * " AFF_STREAM_FIELD " %b",
            o->conversions ? "conversions" : "clicks", (unsigned long long) o->stream, p->batch,
            AFF_BATCH_HEADER_BYTES + p->len);
        p->pending++;
    }

    if (p->pending >= PIPELINE) {
        collect(p);
    }

    p->batches++;
    p->bytes += AFF_BATCH_HEADER_BYTES + p->len;
    p->len = 0;
    p->records = 0;
    p->sequence++;
    if (p->sequence == o->segment_batches) {
        p->sequence = 0;
        p->segment++;
    }
}

static void
add_click(struct producer *p, uint64_t i, const uint8_t uuid[AFF_UUID_BYTES], uint8_t *out,
    size_t room, size_t *len)
{
    const struct options *o = p->options;
    static const char *const agents[] = {
        "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/131.0.0.0 Mobile Safari/537.36",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like "
        "Gecko) Version/18.1 "
        "Mobile/15E148 Safari/604.1",
    };
    uint64_t r = mix(o->seed ^ 0x5bd1e995, i);
    char sub_id[32];
    bool bot = r % 100 < o->bots;
    struct aff_click click = {.link_id = o->link + i % o->links,
        .merchant_id = o->merchant + i % o->merchants,
        .campaign_id = o->campaign,
        .affiliate_id = o->affiliate + i % o->affiliates,
        .visitor = r,
        .reasons = bot ? AFF_REASON_BOT_AGENT : 0,
        .verdict = bot ? AFF_VERDICT_BOT : AFF_VERDICT_VALID,
        .livemode = !o->test,
        .address_family = 4,
        .prefix = {(uint8_t) (r >> 8), (uint8_t) (r >> 16), (uint8_t) (r >> 24)},
        .user_agent = aff_slice_of(agents[r >> 40 & 1]),
        .referrer = aff_slice_of("https://www.example.com/a/review")};

    memcpy(click.id, uuid, AFF_UUID_BYTES);
    click.sub_ids[0] = aff_slice_of(r >> 41 & 1 ? "newsletter" : "");
    if (o->sub_ids > 0) {
        snprintf(sub_id, sizeof(sub_id), "sub-%llu", (unsigned long long) (r >> 42) % o->sub_ids);
        click.sub_ids[0] = aff_slice_of(sub_id);
    }

    *len = aff_click_encode(&click, out, room);
}

static void
add_conversion(struct producer *p, uint64_t i, uint64_t event, unsigned status,
    const uint8_t uuid[AFF_UUID_BYTES], uint8_t *out, size_t room, size_t *len)
{
    const struct options *o = p->options;
    struct aff_conversion conversion = {.merchant_id = o->merchant + i % o->merchants,
        .livemode = !o->test,
        .source = AFF_SOURCE_SINGLE,
        .key_id = aff_slice_of(o->key_id),
        .received_ms = aff_uuid_ms(uuid) + o->delay_ms + event,
        .status = (uint8_t) status,
        .has_amount = true,
        .amount_minor = (int64_t) (o->amount + i % 1000)};
    char order[96], idempotency[AFF_IDEMPOTENCY_KEY_MAX];
    uint64_t hash = mix(o->seed, i * 8 + event);

    snprintf(order, sizeof(order), "%s-%llu-%llu", o->order_prefix, (unsigned long long) o->seed,
        (unsigned long long) i);
    snprintf(idempotency, sizeof(idempotency), "%s-%s", order, aff_status_name(status));
    snprintf(conversion.currency, sizeof(conversion.currency), "%s", o->currency);
    conversion.order_id = aff_slice_of(order);
    conversion.idempotency_key = aff_slice_of(idempotency);
    memcpy(conversion.body_hash, &hash, sizeof(hash));
    memcpy(conversion.click_id, uuid, AFF_UUID_BYTES);
    *len = aff_conversion_encode(&conversion, out, room);
}

/* Seals the record that was encoded behind the payload, and sends the batch when it is full. */
static void
add_record(struct producer *p, uint8_t type, uint8_t version, size_t len)
{
    uint8_t *frame = p->batch + AFF_BATCH_HEADER_BYTES + p->len;

    if (len == 0) {
        fail("encode", "a field is over its limit");
    }

    p->len +=
        aff_frame_seal(frame, type, version, len, aff_frame_seed(p->options->spool, p->segment));
    p->records++;
    p->made++;
    if (p->records >= p->options->batch_records || p->len >= p->options->batch_bytes) {
        send_batch(p);
    }
}

static void
produce(struct producer *p)
{
    const struct options *o = p->options;

    for (uint64_t i = 0; i < o->first + o->count; i++) {
        uint8_t uuid[AFF_UUID_BYTES], random[AFF_RANDOM_BYTES];
        uint8_t *out;
        uint64_t r = mix(o->seed, i);
        size_t len;

        memcpy(random, &r, sizeof(random));
        aff_uuid_make(&p->clock, o->start_ms + i * 1000 / o->rate, random, uuid);
        if (i < o->first) {
            continue;
        }

        if (!o->conversions) {
            out = p->batch + AFF_BATCH_HEADER_BYTES + p->len + AFF_FRAME_HEADER_BYTES;
            add_click(p, i, uuid, out, AFF_CLICK_PAYLOAD_MAX, &len);
            add_record(p, AFF_FRAME_CLICK, AFF_CLICK_VERSION, len);
            continue;
        }

        for (const char *s = o->statuses; *s != '\0'; s += strcspn(s, ","), s += *s == ',') {
            unsigned status = aff_status_of(aff_slice(s, strcspn(s, ",")));

            if (status == 0) {
                fail("--statuses", o->statuses);
            }

            out = p->batch + AFF_BATCH_HEADER_BYTES + p->len + AFF_FRAME_HEADER_BYTES;
            add_conversion(p, i, status, status, uuid, out, AFF_FRAME_PAYLOAD_MAX, &len);
            add_record(p, AFF_FRAME_CONVERSION, AFF_CONVERSION_VERSION, len);
        }
    }

    send_batch(p);
    collect(p);
}

static void
connect_redis(struct producer *p)
{
    const char *address = p->options->redis;
    const char *colon = strrchr(address, ':');
    char host[256];

    if (strncmp(address, "unix:", 5) == 0) {
        p->redis = redisConnectUnix(address + 5);
    } else if (colon != NULL) {
        snprintf(host, sizeof(host), "%.*s", (int) (colon - address), address);
        p->redis = redisConnect(host, atoi(colon + 1));
    }

    if (p->redis == NULL || p->redis->err != 0) {
        fail(address, p->redis == NULL ? "neither unix:/path nor host:port" : p->redis->errstr);
    }

    if (p->options->password != NULL) {
        redisAppendCommand(p->redis, "AUTH %s", p->options->password);
        p->pending++;
        collect(p);
    }
}

static void
read_keys(struct producer *p)
{
    char text[8192], error[256];
    FILE *file = fopen(p->options->key_file, "r");
    size_t len;

    if (file == NULL) {
        fail(p->options->key_file, "can't be opened");
    }

    len = fread(text, 1, sizeof(text), file);
    fclose(file);
    if (!aff_keyring_parse(&p->ring, aff_slice(text, len), error, sizeof(error))) {
        fail(p->options->key_file, error);
    }
}

static const char usage[] =
    "usage: produce --key-file=FILE [options]\n"
    "  --redis=unix:/PATH|HOST:PORT   [127.0.0.1:6379]  --password=TEXT\n"
    "  --channel=clicks|conversions   [clicks]\n"
    "  --count=N        clicks, or orders [1000]; --first=N: beginning with number N [0]\n"
    "  --seed=N         [1] clicks of one seed, start and rate are the same in every run\n"
    "  --start-ms=N     time of click 0, unix milliseconds [now]\n"
    "  --rate=N         clicks a second of that time [10000]\n"
    "  --merchant=N --merchants=N     first merchant and how many take turns [1, 1]\n"
    "  --link=N --links=N --campaign=N --affiliate=N --affiliates=N   [1]\n"
    "  --sub-ids=N      clicks carry one of so many sub-ids, whichever [every other: newsletter]\n"
    "  --bots=PERCENT   clicks with the verdict bot [0];  --test: livemode off\n"
    "  --statuses=A,B   events of every order [approved]\n"
    "  --delay-ms=N     from click to event [600000]\n"
    "  --amount=MINOR   [125050] of order 0; order i has i mod 1000 more;  --currency=CODE [NPR]\n"
    "  --key-id=ID      API key that the events name;  --order-prefix=TEXT [order]\n"
    "  --batch-records=N --batch-bytes=N   a batch ends at either [400, 61440]\n"
    "  --spool=HEX      [made from the seed and the channel]  --segment=N [0]  --segment-batches=N "
    "[1000]\n"
    "  --stream=N       [0];  --repeat=N: send every batch N times [1]\n"
    "  --damage=mac|frame|record   in every batch\n";

static const struct option long_options[] = {{"redis", 1, NULL, 0}, {"password", 1, NULL, 0},
    {"key-file", 1, NULL, 0}, {"key-id", 1, NULL, 0}, {"statuses", 1, NULL, 0},
    {"currency", 1, NULL, 0}, {"order-prefix", 1, NULL, 0}, {"channel", 1, NULL, 0},
    {"test", 0, NULL, 0}, {"damage", 1, NULL, 0}, {"count", 1, NULL, 0}, {"first", 1, NULL, 0},
    {"seed", 1, NULL, 0}, {"start-ms", 1, NULL, 0}, {"rate", 1, NULL, 0}, {"delay-ms", 1, NULL, 0},
    {"spool", 1, NULL, 0}, {"segment", 1, NULL, 0}, {"segment-batches", 1, NULL, 0},
    {"stream", 1, NULL, 0}, {"repeat", 1, NULL, 0}, {"merchant", 1, NULL, 0},
    {"merchants", 1, NULL, 0}, {"link", 1, NULL, 0}, {"campaign", 1, NULL, 0},
    {"affiliate", 1, NULL, 0}, {"affiliates", 1, NULL, 0}, {"amount", 1, NULL, 0},
    {"bots", 1, NULL, 0}, {"links", 1, NULL, 0}, {"sub-ids", 1, NULL, 0},
    {"batch-records", 1, NULL, 0}, {"batch-bytes", 1, NULL, 0}, {NULL, 0, NULL, 0}};

static void
set_text(struct options *o, const char *name, const char *value)
{
    const struct {
        const char *name;
        const char **to;
    } texts[] = {{"redis", &o->redis}, {"password", &o->password}, {"key-file", &o->key_file},
        {"key-id", &o->key_id}, {"statuses", &o->statuses}, {"currency", &o->currency},
        {"order-prefix", &o->order_prefix}};
    const struct {
        const char *name;
        uint64_t *to;
        int base;
    } numbers[] = {{"count", &o->count, 10}, {"first", &o->first, 10}, {"seed", &o->seed, 10},
        {"start-ms", &o->start_ms, 10}, {"rate", &o->rate, 10}, {"delay-ms", &o->delay_ms, 10},
        {"spool", &o->spool, 16}, {"segment", &o->segment, 10},
        {"segment-batches", &o->segment_batches, 10}, {"stream", &o->stream, 10},
        {"repeat", &o->repeat, 10}, {"merchant", &o->merchant, 10},
        {"merchants", &o->merchants, 10}, {"link", &o->link, 10}, {"campaign", &o->campaign, 10},
        {"affiliate", &o->affiliate, 10}, {"affiliates", &o->affiliates, 10},
        {"amount", &o->amount, 10}, {"bots", &o->bots, 10}, {"links", &o->links, 10},
        {"sub-ids", &o->sub_ids, 10}, {"batch-records", &o->batch_records, 10},
        {"batch-bytes", &o->batch_bytes, 10}};

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (strcmp(name, texts[i].name) == 0) {
            *texts[i].to = value;
            return;
        }
    }

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (strcmp(name, numbers[i].name) == 0) {
            char *end;

            *numbers[i].to = strtoull(value, &end, numbers[i].base);
            if (*end != '\0' || *value == '\0') {
                fail(name, "not a number");
            }

            return;
        }
    }

    if (strcmp(name, "test") == 0) {
        o->test = true;
    } else if (strcmp(name, "channel") == 0) {
        o->conversions = strcmp(value, "conversions") == 0;
        if (!o->conversions && strcmp(value, "clicks") != 0) {
            fail(value, "no such channel");
        }
    } else if (strcmp(name, "damage") == 0) {
        o->damage = strcmp(value, "mac") == 0      ? DAMAGE_MAC
                    : strcmp(value, "frame") == 0  ? DAMAGE_FRAME
                    : strcmp(value, "record") == 0 ? DAMAGE_RECORD
                                                   : DAMAGE_NONE;
        if (o->damage == DAMAGE_NONE) {
            fail(value, "no such damage");
        }
    }
}

int
main(int argc, char **argv)
{
    struct timespec now;
    struct options o = {.redis = "127.0.0.1:6379",
        .key_id = "ak_live_00000000000000000000",
        .statuses = "approved",
        .currency = "NPR",
        .order_prefix = "order",
        .count = 1000,
        .seed = 1,
        .rate = 10000,
        .delay_ms = 600000,
        .segment_batches = 1000,
        .repeat = 1,
        .merchant = 1,
        .merchants = 1,
        .link = 1,
        .campaign = 1,
        .affiliate = 1,
        .affiliates = 1,
        .links = 1,
        .amount = 125050,
        .batch_records = 400,
        .batch_bytes = 61440};
    struct producer p = {.options = &o};
    int index, option;

    clock_gettime(CLOCK_REALTIME, &now);
    o.start_ms = (uint64_t) now.tv_sec * 1000;

    while ((option = getopt_long(argc, argv, "", long_options, &index)) != -1) {
        if (option != 0) {
            fputs(usage, stderr);
            return 2;
        }

        set_text(&o, long_options[index].name, optarg);
    }

    if (o.key_file == NULL || optind != argc || o.rate == 0 || o.merchants == 0 ||
        o.affiliates == 0 ||
        o.batch_bytes > AFF_BATCH_MAX - AFF_BATCH_HEADER_BYTES - AFF_FRAME_MAX) {
        fputs(usage, stderr);
        return 2;
    }

    if (o.spool == 0) {
        o.spool = mix(o.seed, o.conversions ? 0x2000000000000000ULL : 0x1000000000000000ULL);
    }

    p.segment = o.segment;
    p.batch = malloc(AFF_BATCH_MAX + AFF_FRAME_MAX);
    if (p.batch == NULL) {
        fail("memory", "exhausted");
    }

    read_keys(&p);
    connect_redis(&p);
    produce(&p);
    printf("{\"records\":%llu,\"batches\":%llu,\"bytes\":%llu,\"spool\":\"%016llx\",\"first_"
           "segment\":%llu,"
           "\"channel\":\"%s\",\"last_segment\":%llu,\"start_ms\":%llu}\n",
        (unsigned long long) p.made, (unsigned long long) p.batches, (unsigned long long) p.bytes,
        (unsigned long long) o.spool, (unsigned long long) o.segment,
        o.conversions ? "conversions" : "clicks",
        (unsigned long long) (p.sequence == 0 && p.segment > o.segment ? p.segment - 1 : p.segment),
        (unsigned long long) o.start_ms);

    redisFree(p.redis);
    aff_keyring_wipe(&p.ring);
    free(p.batch);
    return 0;
}
