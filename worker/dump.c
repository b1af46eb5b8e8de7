/*
 * Two readers, of segment files and of stream entries, over one walk of frames.
 *
 * A segment is read into memory at once, which bounds it, and is never mapped: nginx may remove it
 * at any time.
 *
 * Behind a damaged frame the next whole one is looked for, since a spool file that was put aside is
 * here to be rescued. That search is bounded by the bytes it may check.
 */

#include "worker/dump.h"

#include "protocol/amount.h"
#include "protocol/bytes.h"
#include "protocol/click.h"
#include "protocol/conversion.h"
#include "protocol/refusal.h"
#include "protocol/segment.h"
#include "worker/command.h"
#include "worker/copy.h"
#include "worker/redis.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SEARCH_FACTOR  16                /* bytes checked in a search, for each of the file */
#define YEAR_10000_MS  253402300800000LL /* where RFC 3339 ends */
#define ENTRIES_A_READ 16
#define BOUNDARY_BYTES 8

static const char *const dump_channels[] = {
    [AFF_CHANNEL_CLICKS] = "clicks", [AFF_CHANNEL_CONVERSIONS] = "conversions"};

/* --- values --- */

/* Text from outside: what is no UTF-8 is replaced, never left out. */
static json_t *
dump_text(struct aff_slice text)
{
    uint8_t *copy;
    json_t *value;

    if (text.len == 0) {
        return json_string("");
    }

    if (copy_text_valid(text)) {
        return json_stringn((const char *) text.data, text.len);
    }

    copy = malloc(4 + 3 * text.len);
    if (copy == NULL) {
        return NULL;
    }

    value =
        json_stringn((const char *) copy + 4, (size_t) (copy_put_sanitized(copy, text) - copy) - 4);
    free(copy);
    return value;
}

static json_t *
dump_hex(const uint8_t *data, size_t len)
{
    char text[2 * 64 + 1] = "";

    for (size_t i = 0; i < len && i < 64; i++) {
        snprintf(text + 2 * i, 3, "%02x", data[i]);
    }

    return json_string(text);
}

static json_t *
dump_uuid(const uint8_t id[AFF_UUID_BYTES])
{
    char text[AFF_UUID_BYTES * 2 + 5];
    char *p = text;

    for (unsigned i = 0; i < AFF_UUID_BYTES; i++) {
        p += sprintf(p, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", id[i]);
    }

    return json_string(text);
}

/* What does not fit JSON's integers, and so is no number of ours, is shown as text. */
static json_t *
dump_unsigned(uint64_t value)
{
    char text[24];

    if (value <= INT64_MAX) {
        return json_integer((json_int_t) value);
    }

    snprintf(text, sizeof(text), "%" PRIu64, value);
    return json_string(text);
}

static json_t *
dump_time(uint64_t unix_ms)
{
    time_t seconds = (time_t) (unix_ms / 1000);
    struct tm parts;
    char text[64];
    size_t len;

    if (unix_ms >= YEAR_10000_MS || gmtime_r(&seconds, &parts) == NULL) {
        return dump_unsigned(unix_ms);
    }

    len = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(text + len, sizeof(text) - len, ".%03uZ", (unsigned) (unix_ms % 1000));
    return json_string(text);
}

/* Decimal where the currency is known, else the minor units that were recorded. */
static void
dump_amount(json_t *object, int64_t minor, const char *currency)
{
    char text[AFF_AMOUNT_TEXT_MAX];
    int decimals = aff_currency_decimals(aff_slice_of(currency));

    if (decimals < 0) {
        json_object_set_new(object, "amount_minor", json_integer(minor));
        return;
    }

    aff_amount_format(minor, decimals, text);
    json_object_set_new(object, "amount", json_string(text));
}

static void
dump_set_text(json_t *object, const char *key, struct aff_slice text)
{
    if (text.len != 0) {
        json_object_set_new(object, key, dump_text(text));
    }
}

static json_t *
dump_spool_id(uint64_t spool_id)
{
    char text[24];

    snprintf(text, sizeof(text), "%016" PRIx64, spool_id);
    return json_string(text);
}

/* --- records --- */

static void
dump_prefix(json_t *object, const struct aff_click *click)
{
    char text[64];
    const uint8_t *p = click->prefix;

    if (click->address_family == 4) {
        snprintf(text, sizeof(text), "%u.%u.%u.0/24", p[0], p[1], p[2]);
    } else if (click->address_family == 6) {
        snprintf(text, sizeof(text), "%x:%x:%x::/48", p[0] << 8 | p[1], p[2] << 8 | p[3],
            p[4] << 8 | p[5]);
    } else {
        return;
    }

    json_object_set_new(object, "address_prefix", json_string(text));
}

static json_t *
dump_click(uint8_t version, struct aff_slice payload)
{
    struct aff_click click;
    json_t *object, *reasons;

    if (!aff_click_decode(version, payload, &click) || (object = json_object()) == NULL) {
        return NULL;
    }

    json_object_set_new(object, "id", dump_uuid(click.id));
    json_object_set_new(object, "at", dump_time(aff_uuid_ms(click.id)));
    json_object_set_new(object, "merchant", dump_unsigned(click.merchant_id));
    json_object_set_new(object, "link_id", dump_unsigned(click.link_id));
    json_object_set_new(object, "campaign", dump_unsigned(click.campaign_id));
    json_object_set_new(object, "affiliate", dump_unsigned(click.affiliate_id));
    json_object_set_new(object, "livemode", json_boolean(click.livemode));
    json_object_set_new(object, "verdict", json_string(aff_verdict_name(click.verdict)));

    reasons = json_array();
    for (unsigned bit = 0; bit < AFF_REASONS; bit++) {
        if ((click.reasons >> bit & 1) != 0) {
            json_array_append_new(reasons, json_string(aff_reason_name(bit)));
        }
    }
    json_object_set_new(object, "reasons", reasons);

    dump_prefix(object, &click);
    json_object_set_new(object, "visitor", dump_spool_id(click.visitor));
    for (unsigned i = 0; i < AFF_SUB_IDS; i++) {
        const char name[] = {'s', 'u', 'b', (char) ('1' + i), '\0'};

        dump_set_text(object, name, click.sub_ids[i]);
    }

    dump_set_text(object, "signals", click.signals);
    dump_set_text(object, "user_agent", click.user_agent);
    dump_set_text(object, "referrer", click.referrer);
    return object;
}

static json_t *
dump_items(const struct aff_conversion *conversion)
{
    json_t *items = json_array();

    for (unsigned i = 0; i < conversion->items_count; i++) {
        const struct aff_item *item = &conversion->items[i];
        json_t *object = json_object();

        dump_set_text(object, "sku", item->sku);
        dump_set_text(object, "category", item->category);
        json_object_set_new(object, "quantity", json_integer(item->quantity));
        dump_amount(object, item->amount_minor, conversion->currency);
        json_array_append_new(items, object);
    }

    return items;
}

static json_t *
dump_conversion(uint8_t version, struct aff_slice payload)
{
    static const char *const sources[] = {[AFF_SOURCE_SINGLE] = "single",
        [AFF_SOURCE_BATCH] = "batch",
        [AFF_SOURCE_POSTBACK] = "postback"};
    struct aff_conversion conversion;
    const char *status, *customer;
    json_t *object;

    if (!aff_conversion_decode(version, payload, &conversion) || (object = json_object()) == NULL) {
        return NULL;
    }

    status = aff_status_name(conversion.status);
    customer = aff_customer_name(conversion.customer);
    json_object_set_new(object, "merchant", dump_unsigned(conversion.merchant_id));
    json_object_set_new(object, "livemode", json_boolean(conversion.livemode));
    json_object_set_new(object, "source",
        conversion.source >= AFF_SOURCE_SINGLE && conversion.source <= AFF_SOURCE_POSTBACK
            ? json_string(sources[conversion.source])
            : json_integer(conversion.source));
    json_object_set_new(object, "position", json_integer(conversion.position));
    dump_set_text(object, "key", conversion.key_id);
    dump_set_text(object, "idempotency_key", conversion.idempotency_key);
    json_object_set_new(
        object, "body_hash", dump_hex(conversion.body_hash, sizeof(conversion.body_hash)));
    json_object_set_new(object, "received_at", dump_time(conversion.received_ms));
    if (conversion.occurred_ms != 0) {
        json_object_set_new(object, "occurred_at", dump_time(conversion.occurred_ms));
    }

    json_object_set_new(object, "click", dump_uuid(conversion.click_id));
    dump_set_text(object, "order", conversion.order_id);
    json_object_set_new(
        object, "status", status == NULL ? json_integer(conversion.status) : json_string(status));
    if (customer != NULL) {
        json_object_set_new(object, "customer", json_string(customer));
    }

    if (conversion.has_amount) {
        dump_amount(object, conversion.amount_minor, conversion.currency);
    }

    dump_set_text(object, "currency", aff_slice_of(conversion.currency));
    dump_set_text(object, "refund_id", conversion.refund_id);
    dump_set_text(object, "reason", conversion.reason);
    if (conversion.items_count != 0) {
        json_object_set_new(object, "items", dump_items(&conversion));
    }

    return object;
}

static json_t *
dump_refusal_errors(const struct aff_refusal *refusal)
{
    json_t *errors = json_array();

    for (unsigned i = 0; i < refusal->errors_count; i++) {
        json_t *error = json_object();

        dump_set_text(error, "pointer", refusal->errors[i].pointer);
        dump_set_text(error, "detail", refusal->errors[i].rule);
        json_array_append_new(errors, error);
    }

    return errors;
}

static json_t *
dump_refusal(uint8_t version, struct aff_slice payload)
{
    struct aff_refusal refusal;
    json_t *object;

    if (!aff_refusal_decode(version, payload, &refusal)) {
        return NULL;
    }

    object = json_object();
    json_object_set_new(object, "merchant_id", json_integer((json_int_t) refusal.merchant_id));
    json_object_set_new(object, "livemode", json_boolean(refusal.livemode));
    json_object_set_new(object, "authentic", json_boolean(refusal.authentic));
    json_object_set_new(object, "source", json_integer(refusal.source));
    json_object_set_new(object, "status", json_integer(refusal.status));
    json_object_set_new(object, "position", json_integer(refusal.position));
    json_object_set_new(object, "refused_ms", json_integer((json_int_t) refusal.refused_ms));
    json_object_set_new(object, "body_bytes", json_integer(refusal.body_bytes));
    json_object_set_new(object, "body_hash", dump_hex(refusal.body_hash, AFF_REFUSAL_HASH_BYTES));
    dump_set_text(object, "key_id", refusal.key_id);
    dump_set_text(object, "code", refusal.code);
    dump_set_text(object, "detail", refusal.detail);
    dump_set_text(object, "idempotency_key", refusal.idempotency_key);
    dump_set_text(object, "order_id", refusal.order_id);
    dump_set_text(object, "timestamp", refusal.timestamp);
    dump_set_text(object, "target", refusal.target);
    dump_set_text(object, "request_id", refusal.request_id);
    dump_set_text(object, "excerpt", refusal.excerpt);
    json_object_set_new(object, "errors", dump_refusal_errors(&refusal));
    return object;
}

json_t *
dump_record(uint8_t type, uint8_t version, struct aff_slice payload)
{
    switch (type) {
    case AFF_FRAME_CLICK:
        return dump_click(version, payload);
    case AFF_FRAME_CONVERSION:
        return dump_conversion(version, payload);
    case AFF_FRAME_REFUSAL:
        return dump_refusal(version, payload);
    default:
        return NULL;
    }
}

/* --- frames --- */

struct dump {
    FILE *out;
    struct aff_slice data;
    size_t offset;
    uint32_t seed;
    uint64_t search_left; /* bytes that the search for whole frames may still check */
    uint64_t records;
    uint64_t batches;
    uint32_t sequence; /* of the batch that the next frame belongs to */
    bool damaged;
};

/* One line, whose object is given up. */
static void
dump_line(FILE *out, json_t *object)
{
    json_dumpf(object, out, JSON_COMPACT);
    fputc('\n', out);
    json_decref(object);
}

static json_t *
dump_begin(const char *kind, size_t offset)
{
    json_t *object = json_object();

    json_object_set_new(object, "kind", json_string(kind));
    json_object_set_new(object, "offset", json_integer((json_int_t) offset));
    return object;
}

static void
dump_boundary(struct dump *dump, const struct aff_frame *frame)
{
    json_t *line = dump_begin("boundary", dump->offset);

    if (frame->payload.len == BOUNDARY_BYTES) {
        dump->sequence = aff_load_le32(frame->payload.data);
        json_object_set_new(line, "sequence", json_integer(dump->sequence));
        json_object_set_new(line, "records", json_integer(aff_load_le32(frame->payload.data + 4)));
        dump->sequence++;
        dump->batches++;
    } else {
        json_object_set_new(line, "error", json_string("not as long as a boundary is"));
        dump->damaged = true;
    }

    dump_line(dump->out, line);
}

static void
dump_frame(struct dump *dump, const struct aff_frame *frame)
{
    const char *kind = frame->type == AFF_FRAME_CLICK        ? "click"
                       : frame->type == AFF_FRAME_CONVERSION ? "conversion"
                       : frame->type == AFF_FRAME_REFUSAL    ? "refusal"
                                                             : "unknown";
    json_t *line, *record;

    if (frame->type == AFF_FRAME_BOUNDARY) {
        dump_boundary(dump, frame);
        return;
    }

    line = dump_begin(kind, dump->offset);
    record = dump_record(frame->type, frame->version, frame->payload);
    json_object_set_new(line, "sequence", json_integer(dump->sequence));
    json_object_set_new(line, "bytes", json_integer((json_int_t) frame->length));
    if (record != NULL) {
        json_object_set_new(line, "record", record);
    } else {
        json_object_set_new(line, "type", json_integer(frame->type));
        json_object_set_new(line, "version", json_integer(frame->version));
        json_object_set_new(line, "error", json_string("not a record that this program can read"));
        dump->damaged = true;
    }

    dump->records++;
    dump_line(dump->out, line);
}

static struct aff_slice
dump_rest(const struct dump *dump, size_t offset)
{
    return aff_slice(dump->data.data + offset, dump->data.len - offset);
}

/* The next whole frame behind `offset`; the end of the data if there is none, or the search has
 * gone far enough. */
static size_t
dump_search(struct dump *dump, size_t offset)
{
    struct aff_frame frame;

    for (offset += AFF_FRAME_ALIGN; offset + AFF_FRAME_HEADER_BYTES <= dump->data.len;
         offset += AFF_FRAME_ALIGN) {
        struct aff_slice rest = dump_rest(dump, offset);
        uint32_t length = aff_load_le32(rest.data);

        if (length < AFF_FRAME_HEADER_BYTES || length > AFF_FRAME_MAX || length > rest.len) {
            continue;
        }

        if (length > dump->search_left) {
            return dump->data.len;
        }

        dump->search_left -= length;
        if (aff_frame_read(rest, dump->seed, &frame) == AFF_FRAME_OK) {
            return offset;
        }
    }

    return dump->data.len;
}

/* Where a chain of frames breaks, `rescue` makes it go on with the next whole one. */
static void
dump_frames(struct dump *dump, bool rescue)
{
    struct aff_frame frame;

    while (dump->offset < dump->data.len) {
        enum aff_frame_result result =
            aff_frame_read(dump_rest(dump, dump->offset), dump->seed, &frame);
        size_t next;
        json_t *line;

        if (result == AFF_FRAME_OK) {
            dump_frame(dump, &frame);
            dump->offset += frame.length;
            continue;
        }

        next = rescue ? dump_search(dump, dump->offset) : dump->data.len;
        if (result == AFF_FRAME_END && next == dump->data.len) {
            return;
        }

        line = dump_begin("damage", dump->offset);
        json_object_set_new(line, "skipped", json_integer((json_int_t) (next - dump->offset)));
        dump_line(dump->out, line);
        dump->damaged = true;
        dump->offset = next;
    }
}

/* --- segments --- */

static bool
dump_not_a_segment(FILE *out, const char *name, const char *why)
{
    json_t *line = json_object();

    json_object_set_new(line, "kind", json_string("foreign"));
    json_object_set_new(line, "file", dump_text(aff_slice_of(name)));
    json_object_set_new(line, "error", json_string(why));
    dump_line(out, line);
    return false;
}

bool
dump_segment(struct aff_slice file, const char *name, FILE *out)
{
    struct dump dump = {.out = out, .data = file, .offset = AFF_SEGMENT_FRAMES};
    struct aff_segment segment;
    json_t *line;

    switch (aff_segment_read(file, &segment)) {
    case AFF_SEGMENT_USED:
        break;
    case AFF_SEGMENT_FREE:
        line = json_object();
        json_object_set_new(line, "kind", json_string("free"));
        json_object_set_new(line, "file", dump_text(aff_slice_of(name)));
        dump_line(out, line);
        return true;
    case AFF_SEGMENT_NEWER:
        return dump_not_a_segment(
            out, name, "a segment of another version than this program knows");
    case AFF_SEGMENT_CORRUPT:
        return dump_not_a_segment(out, name, "a segment whose header is damaged");
    default:
        return dump_not_a_segment(out, name, "not a segment of a spool");
    }

    dump.damaged = segment.size != file.len;
    dump.seed = aff_frame_seed(segment.spool_id, segment.number);
    dump.search_left = (uint64_t) file.len * SEARCH_FACTOR;

    line = json_object();
    json_object_set_new(line, "kind", json_string("segment"));
    json_object_set_new(line, "file", dump_text(aff_slice_of(name)));
    json_object_set_new(line, "channel", json_string(dump_channels[segment.channel]));
    json_object_set_new(line, "spool_id", dump_spool_id(segment.spool_id));
    json_object_set_new(line, "segment", dump_unsigned(segment.number));
    json_object_set_new(line, "begun_at", dump_time(segment.made_ms));
    json_object_set_new(line, "size", dump_unsigned(segment.size));
    json_object_set_new(line, "mac",
        json_string("unverified")); /* the spool has none: its batches get one when sent */
    if (dump.damaged) {
        json_object_set_new(
            line, "error", json_string("the file has another size than its header says"));
    }
    dump_line(out, line);

    dump_frames(&dump, true);
    line = dump_begin("end", dump.offset);
    json_object_set_new(line, "records", dump_unsigned(dump.records));
    json_object_set_new(line, "batches", dump_unsigned(dump.batches));
    dump_line(out, line);
    return !dump.damaged;
}

/* Reads the file up to AFF_SEGMENT_MAX; what is larger is none of ours. */
static bool
dump_file(const char *name, FILE *out)
{
    struct stat st;
    uint8_t *data = NULL;
    size_t len = 0;
    ssize_t n = 0;
    int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    bool ok;

    if (fd < 0 || fstat(fd, &st) != 0) {
        fprintf(stderr, "affiliated dump: %s: %s\n", name, strerror(errno));
        if (fd >= 0) {
            close(fd);
        }

        return false;
    }

    if (!S_ISREG(st.st_mode) || st.st_size > AFF_SEGMENT_MAX) {
        fprintf(stderr, "affiliated dump: %s: %s\n", name,
            S_ISREG(st.st_mode) ? "is larger than any segment of a spool" : "is no regular file");
        close(fd);
        return false;
    }

    data = malloc((size_t) st.st_size + 1);
    while (data != NULL && len < (size_t) st.st_size &&
           (n = read(fd, data + len, (size_t) st.st_size - len)) > 0) {
        len += (size_t) n;
    }

    ok = data != NULL && n >= 0;
    if (!ok) {
        fprintf(stderr, "affiliated dump: %s: %s\n", name, strerror(errno));
    } else {
        ok = dump_segment(aff_slice(data, len), name, out);
    }

    free(data);
    close(fd);
    return ok;
}

/* --- streams --- */

bool
dump_entry(struct aff_slice entry, const char *stream, const char *id,
    const struct aff_keyring *ring, FILE *out)
{
    struct aff_batch batch;
    enum aff_batch_result result = aff_batch_read(entry, ring, &batch);
    struct dump dump = {.out = out};
    json_t *line = json_object();

    json_object_set_new(
        line, "kind", json_string(result == AFF_BATCH_MALFORMED ? "malformed" : "batch"));
    json_object_set_new(line, "stream", dump_text(aff_slice_of(stream)));
    json_object_set_new(line, "id", json_string(id));
    if (result == AFF_BATCH_MALFORMED) {
        json_object_set_new(line, "bytes", json_integer((json_int_t) entry.len));
        dump_line(out, line);
        return false;
    }

    json_object_set_new(line, "channel", json_string(dump_channels[batch.channel]));
    json_object_set_new(line, "spool_id", dump_spool_id(batch.spool_id));
    json_object_set_new(line, "segment", dump_unsigned(batch.segment));
    json_object_set_new(line, "sequence", json_integer(batch.sequence));
    json_object_set_new(line, "records", json_integer(batch.records));
    json_object_set_new(line, "bytes", json_integer((json_int_t) entry.len));
    json_object_set_new(line, "mac",
        json_string(ring == NULL             ? "unverified"
                    : result == AFF_BATCH_OK ? "verified"
                                             : "forged"));
    dump_line(out, line);

    dump.data = batch.payload;
    dump.seed = aff_frame_seed(batch.spool_id, batch.segment);
    dump.sequence = batch.sequence;
    dump_frames(&dump, false);
    return result == AFF_BATCH_OK && !dump.damaged && dump.records == batch.records;
}

struct dump_range {
    const char *stream; /* its key */
    const char *from;
    const char *to;
    uint64_t count;
};

static struct aff_slice
dump_field(const redisReply *fields)
{
    for (size_t i = 0; i + 1 < fields->elements; i += 2) {
        if (fields->element[i]->type == REDIS_REPLY_STRING &&
            fields->element[i + 1]->type == REDIS_REPLY_STRING &&
            strcmp(fields->element[i]->str, AFF_STREAM_FIELD) == 0) {
            return aff_slice(fields->element[i + 1]->str, (size_t) fields->element[i + 1]->len);
        }
    }

    return aff_slice("", 0);
}

/* Prints a page of entries; `from` becomes the place behind the last. */
static bool
dump_page(const redisReply *page, const char *stream, const struct aff_keyring *ring, char from[64])
{
    bool ok = true;

    for (size_t i = 0; i < page->elements; i++) {
        const redisReply *pair = page->element[i];

        if (pair->type == REDIS_REPLY_ARRAY && pair->elements == 2 &&
            pair->element[0]->type == REDIS_REPLY_STRING &&
            pair->element[1]->type == REDIS_REPLY_ARRAY) {
            const char *id = pair->element[0]->str;

            snprintf(from, 64, "(%.60s", id);
            ok = dump_entry(dump_field(pair->element[1]), stream, id, ring, stdout) && ok;
        }
    }

    return ok;
}

static bool
dump_exists(struct redis *redis, const char *stream)
{
    redisReply *reply = redis_command(redis, "EXISTS %s", stream);
    bool exists = reply != NULL && reply->integer == 1;

    if (!exists) {
        fprintf(stderr, "affiliated dump: %s: %s\n", stream,
            reply == NULL ? redis->error : "there is no such stream");
    }

    freeReplyObject(reply);
    return exists;
}

static bool
dump_stream(
    const struct config *config, const struct dump_range *range, const struct aff_keyring *ring)
{
    struct redis redis = {0};
    uint64_t left = range->count;
    char from[64];
    bool ok = true;

    if (!redis_connect(&redis, config)) {
        fprintf(stderr, "affiliated dump: Redis: %s\n", redis.error);
        return false;
    }

    if (!dump_exists(&redis, range->stream)) {
        redis_close(&redis);
        return false;
    }

    snprintf(from, sizeof(from), "%s", range->from);
    while (left > 0) {
        size_t got = 0, wanted = left < ENTRIES_A_READ ? (size_t) left : ENTRIES_A_READ;
        redisReply *page = redis_command(
            &redis, "XRANGE %s %s %s COUNT %d", range->stream, from, range->to, (int) wanted);

        if (page == NULL || page->type != REDIS_REPLY_ARRAY) {
            fprintf(stderr, "affiliated dump: %s: %s\n", range->stream,
                page == NULL ? redis.error : "is no stream");
            freeReplyObject(page);
            ok = false;
            break;
        }

        got = page->elements;
        ok = dump_page(page, range->stream, ring, from) && ok;
        freeReplyObject(page);
        left -= got;
        if (got < wanted) {
            break;
        }
    }

    redis_close(&redis);
    return ok;
}

/* "clicks", "clicks:3", or a whole key. */
static bool
dump_stream_key(const char *name, char *key, size_t size)
{
    static const char *const channels[] = {"clicks", "conversions"};

    for (size_t i = 0; i < sizeof(channels) / sizeof(channels[0]); i++) {
        size_t len = strlen(channels[i]);

        if (strcmp(name, channels[i]) == 0) {
            return snprintf(key, size, "aff:%s:0", name) < (int) size;
        }

        if (strncmp(name, channels[i], len) == 0 && name[len] == ':') {
            return snprintf(key, size, "aff:%s", name) < (int) size;
        }
    }

    return name[0] != '\0' && snprintf(key, size, "%s", name) < (int) size;
}

static int
dump_usage(const char *why)
{
    fprintf(stderr,
        "affiliated dump: %s\n"
        "usage: affiliated dump FILE...\n"
        "       affiliated dump --stream clicks|clicks:N|conversions|KEY [--from ID] [--to ID] "
        "[--count N]\n",
        why);
    return COMMAND_USAGE;
}

static int
dump_stream_command(const struct config *config, const struct dump_range *range)
{
    struct aff_keyring ring = {0};
    char error[CONFIG_ERROR_MAX];
    bool keys = config_read_keys(config, &ring, error);
    bool ok;

    if (!keys) {
        fprintf(stderr, "affiliated dump: %s: batches stay unverified\n", error);
    }

    ok = dump_stream(config, range, keys ? &ring : NULL);
    aff_keyring_wipe(&ring);
    return ok && fflush(stdout) == 0 ? COMMAND_OK : COMMAND_FAILED;
}

int
dump_command(struct config *config, int argc, char **argv)
{
    static const struct option options[] = {{"stream", required_argument, NULL, 's'},
        {"from", required_argument, NULL, 'f'}, {"to", required_argument, NULL, 't'},
        {"count", required_argument, NULL, 'n'}, {"json", no_argument, NULL, 'j'},
        {NULL, 0, NULL, 0}};
    struct dump_range range = {.from = "-", .to = "+", .count = UINT64_MAX};
    char key[256];
    char *end;
    bool ok = true;
    int option;

    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 's':
            range.stream = optarg;
            break;
        case 'f':
            range.from = optarg;
            break;
        case 't':
            range.to = optarg;
            break;
        case 'n':
            range.count = strtoull(optarg, &end, 10);
            if (optarg[0] < '0' || optarg[0] > '9' || *end != '\0') {
                return dump_usage("--count takes a number");
            }
            break;
        case 'j':
            break; /* there is no other form */
        default:
            return dump_usage("there is an option that it does not have, or a value is missing");
        }
    }

    if ((range.stream != NULL) == (optind < argc)) {
        return dump_usage("say which files, or which stream");
    }

    if (range.stream != NULL) {
        if (!dump_stream_key(range.stream, key, sizeof(key))) {
            return dump_usage("this can be no stream's name");
        }

        range.stream = key;
        return dump_stream_command(config, &range);
    }

    for (int i = optind; i < argc; i++) {
        ok = dump_file(argv[i], stdout) && ok;
    }

    return fflush(stdout) == 0 && ok ? COMMAND_OK : COMMAND_FAILED;
}
