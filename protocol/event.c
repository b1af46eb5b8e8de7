/*
 * The rules of an event's fields.  A table tells which fields there are and in
 * which order they are read: amounts after the currency that counts their
 * decimals, and what depends on the status after it.
 */

#include "event.h"

#include "amount.h"

#include <stdarg.h>
#include <stdio.h>

#define AFF_EVENT_PREFIX 96 /* bytes of a parent's */
#define AFF_EVENT_NAME                                                                             \
    48 /* bytes of an unknown name                                                                 \
                         that are repeated */
#define AFF_EVENT_QUANTITY 1000000

struct event_reader {
    const struct aff_event_rules *rules;
    struct aff_conversion *c;
    struct aff_event_errors *errors;
    struct aff_slice click_id;
    int decimals;
};

struct event_field {
    const char *name;
    void (*read)(struct event_reader *rd, const json_t *value, const char *pointer);
};

static void event_click_id(struct event_reader *rd, const json_t *value, const char *pointer);
static void event_order_id(struct event_reader *rd, const json_t *value, const char *pointer);
static void event_status(struct event_reader *rd, const json_t *value, const char *pointer);
static void event_currency(struct event_reader *rd, const json_t *value, const char *pointer);
static void event_amount(struct event_reader *rd, const json_t *value, const char *pointer);
static void event_occurred_at(struct event_reader *rd, const json_t *value, const char *pointer);
static void event_refund_id(struct event_reader *rd, const json_t *value, const char *pointer);
static void event_reason(struct event_reader *rd, const json_t *value, const char *pointer);
static void event_customer(struct event_reader *rd, const json_t *value, const char *pointer);
static void event_items(struct event_reader *rd, const json_t *value, const char *pointer);
static void event_item(
    struct event_reader *rd, const json_t *json, const char *prefix, struct aff_item *item);
static int64_t event_money(struct event_reader *rd, const json_t *value, const char *pointer);
static struct aff_slice event_text(
    struct event_reader *rd, const json_t *value, const char *pointer, size_t max);
static void event_unknown(struct event_reader *rd, const json_t *json, const char *prefix,
    const struct event_field *fields);
static void event_pointer(char *pointer, const char *prefix, const char *name);
static void event_error(struct event_reader *rd, const char *pointer, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static enum aff_event_result event_click(struct event_reader *rd, const char *pointer);
static bool time_offset(const uint8_t *p, const uint8_t *end, int64_t *offset);
static bool time_number(
    const uint8_t *p, unsigned digits, unsigned min, unsigned max, unsigned *value);
static int64_t time_days(unsigned year, unsigned month, unsigned day);

static const struct event_field event_fields[] = {{"click_id", event_click_id},
    {"order_id", event_order_id}, {"status", event_status}, {"currency", event_currency},
    {"amount", event_amount}, {"occurred_at", event_occurred_at}, {"refund_id", event_refund_id},
    {"reason", event_reason}, {"customer", event_customer}, {"items", event_items}, {NULL, NULL}};

/* Read by event_item(): each needs its own target. */
static const struct event_field item_fields[] = {
    {"sku", NULL}, {"category", NULL}, {"quantity", NULL}, {"amount", NULL}, {NULL, NULL}};

enum aff_event_result
aff_event_read(const json_t *json, const struct aff_event_rules *rules, const char *prefix,
    struct aff_conversion *c, struct aff_event_errors *errors)
{
    char pointer[AFF_EVENT_POINTER];
    struct event_reader rd;
    const struct event_field *field;

    errors->count = 0;
    errors->more = 0;

    memset(c, 0, offsetof(struct aff_conversion, items));
    c->merchant_id = rules->merchant_id;
    c->livemode = rules->livemode;

    memset(&rd, 0, sizeof(rd));
    rd.rules = rules;
    rd.c = c;
    rd.errors = errors;
    rd.decimals = -1;

    if (!json_is_object(json)) {
        event_error(&rd, prefix, "must be an object");
        return AFF_EVENT_INVALID;
    }

    for (field = event_fields; field->name; field++) {
        event_pointer(pointer, prefix, field->name);
        field->read(&rd, json_object_get(json, field->name), pointer);
    }

    event_unknown(&rd, json, prefix, event_fields);

    if (errors->count) {
        return AFF_EVENT_INVALID;
    }

    event_pointer(pointer, prefix, "click_id");

    return event_click(&rd, pointer);
}

size_t
aff_event_size(const struct aff_conversion *c)
{
    size_t size;
    unsigned i;

    /* the layout is told in protocol/conversion.c */

    size = 75 + 5 * 2 + c->key_id.len + c->idempotency_key.len + c->order_id.len +
           c->refund_id.len + c->reason.len;

    for (i = 0; i < c->items_count; i++) {
        size += 2 + 2 + c->items[i].sku.len + c->items[i].category.len + 4 + 8;
    }

    return size;
}

static void
event_click_id(struct event_reader *rd, const json_t *value, const char *pointer)
{
    if (value == NULL) {
        event_error(rd, pointer, "is required");
        return;
    }

    if (!json_is_string(value)) {
        event_error(rd, pointer, "must be a string");
        return;
    }

    rd->click_id = aff_slice(json_string_value(value), json_string_length(value));
}

static void
event_order_id(struct event_reader *rd, const json_t *value, const char *pointer)
{
    if (value == NULL) {
        event_error(rd, pointer, "is required");
        return;
    }

    rd->c->order_id = event_text(rd, value, pointer, AFF_ORDER_ID_MAX);
}

static void
event_status(struct event_reader *rd, const json_t *value, const char *pointer)
{
    unsigned status;

    if (value == NULL) {
        event_error(rd, pointer, "is required");
        return;
    }

    status = 0;

    if (json_is_string(value)) {
        status = aff_status_of(aff_slice(json_string_value(value), json_string_length(value)));
    }

    if (status == 0) {
        event_error(rd, pointer,
            "must be \"pending\", \"approved\", "
            "\"cancelled\", \"returned\" or "
            "\"refunded\"");
        return;
    }

    rd->c->status = (uint8_t) status;
}

static void
event_currency(struct event_reader *rd, const json_t *value, const char *pointer)
{
    struct aff_slice code;

    if (value == NULL) {
        /* what has an amount complains where the amount is read */
        rd->decimals = -2;
        return;
    }

    code = aff_slice("", 0);

    if (json_is_string(value)) {
        code = aff_slice(json_string_value(value), json_string_length(value));
    }

    rd->decimals = aff_currency_decimals(code);

    if (rd->decimals < 0) {
        event_error(rd, pointer,
            "must be an ISO 4217 code in upper "
            "case, such as \"NPR\"");
        return;
    }

    memcpy(rd->c->currency, code.data, 3);
}

static void
event_amount(struct event_reader *rd, const json_t *value, const char *pointer)
{
    int64_t minor;
    unsigned status;

    status = rd->c->status;

    if (value == NULL) {

        if (status == AFF_STATUS_PENDING || status == AFF_STATUS_APPROVED) {
            event_error(rd, pointer, "is required for status \"%s\"", aff_status_name(status));
        }

        return;
    }

    minor = event_money(rd, value, pointer);

    if (minor < 0) {
        return;
    }

    rd->c->amount_minor = minor;
    rd->c->has_amount = true;

    if (minor == 0 && (status == AFF_STATUS_RETURNED || status == AFF_STATUS_REFUNDED)) {
        /* neither a part nor, as without an amount, the whole */

        event_error(rd, pointer,
            "must be more than zero for status "
            "\"%s\"",
            aff_status_name(status));
    }
}

static void
event_occurred_at(struct event_reader *rd, const json_t *value, const char *pointer)
{
    uint64_t ms;

    if (value == NULL) {
        return;
    }

    if (!json_is_string(value) ||
        !aff_time_parse(aff_slice(json_string_value(value), json_string_length(value)), &ms) ||
        ms == 0) {
        event_error(rd, pointer,
            "must be a time by RFC 3339, such as "
            "\"2025-11-24T18:30:00+05:45\"");
        return;
    }

    if (ms > rd->rules->now_ms + AFF_EVENT_SKEW_MS) {
        event_error(rd, pointer, "is in the future");
        return;
    }

    rd->c->occurred_ms = ms;
}

static void
event_refund_id(struct event_reader *rd, const json_t *value, const char *pointer)
{
    if (value == NULL) {
        return;
    }

    rd->c->refund_id = event_text(rd, value, pointer, AFF_REFUND_ID_MAX);

    if (rd->c->status != 0 && rd->c->status != AFF_STATUS_RETURNED &&
        rd->c->status != AFF_STATUS_REFUNDED) {
        event_error(rd, pointer,
            "belongs to status \"returned\" or "
            "\"refunded\" only");
    }
}

static void
event_reason(struct event_reader *rd, const json_t *value, const char *pointer)
{
    if (value == NULL) {
        return;
    }

    rd->c->reason = event_text(rd, value, pointer, AFF_REASON_TEXT_MAX);
}

static void
event_customer(struct event_reader *rd, const json_t *value, const char *pointer)
{
    unsigned customer;
    struct aff_slice name;

    if (value == NULL) {
        return;
    }

    if (json_is_string(value)) {
        name = aff_slice(json_string_value(value), json_string_length(value));

        for (customer = AFF_CUSTOMER_NEW; customer <= AFF_CUSTOMER_RETURNING; customer++) {
            if (aff_slice_equal(aff_slice_of(aff_customer_name(customer)), name)) {
                rd->c->customer = (uint8_t) customer;
                return;
            }
        }
    }

    event_error(rd, pointer, "must be \"new\" or \"returning\"");
}

static void
event_items(struct event_reader *rd, const json_t *value, const char *pointer)
{
    char prefix[AFF_EVENT_POINTER], index[24];
    size_t i, n;
    int64_t total;

    if (value == NULL || !rd->rules->items) {
        return;
    }

    n = json_array_size(value);

    if (!json_is_array(value) || n == 0 || n > AFF_ITEMS_MAX) {
        event_error(rd, pointer, "must be an array of 1 to %d items", AFF_ITEMS_MAX);
        return;
    }

    total = 0;

    for (i = 0; i < n; i++) {
        snprintf(index, sizeof(index), "%zu", i);
        event_pointer(prefix, pointer, index);

        event_item(rd, json_array_get(value, i), prefix, &rd->c->items[i]);

        if (rd->c->items[i].amount_minor > 0) {
            total += rd->c->items[i].amount_minor;
        }

        if (total > AFF_AMOUNT_MINOR_MAX) {
            event_error(rd, pointer,
                "have amounts that are too much "
                "together");
            return;
        }
    }

    rd->c->items_count = (unsigned) n;
}

static void
event_item(struct event_reader *rd, const json_t *json, const char *prefix, struct aff_item *item)
{
    char pointer[AFF_EVENT_POINTER];
    json_int_t quantity;
    const json_t *value;

    memset(item, 0, sizeof(*item));
    item->quantity = 1;

    if (!json_is_object(json)) {
        event_error(rd, prefix, "must be an object");
        return;
    }

    value = json_object_get(json, "sku");

    if (value) {
        event_pointer(pointer, prefix, "sku");
        item->sku = event_text(rd, value, pointer, AFF_SKU_MAX);
    }

    value = json_object_get(json, "category");

    if (value) {
        event_pointer(pointer, prefix, "category");
        item->category = event_text(rd, value, pointer, AFF_CATEGORY_MAX);

    } else if (json_object_get(json, "sku") == NULL) {
        event_error(rd, prefix, "must have a sku or a category");
    }

    value = json_object_get(json, "quantity");

    if (value) {
        quantity = json_integer_value(value);

        if (!json_is_integer(value) || quantity < 1 || quantity > AFF_EVENT_QUANTITY) {
            event_pointer(pointer, prefix, "quantity");
            event_error(rd, pointer,
                "must be a whole number from 1 to "
                "%d",
                AFF_EVENT_QUANTITY);

        } else {
            item->quantity = (uint32_t) quantity;
        }
    }

    value = json_object_get(json, "amount");
    event_pointer(pointer, prefix, "amount");

    if (value) {
        item->amount_minor = event_money(rd, value, pointer);

    } else {
        event_error(rd, pointer, "is required");
    }

    event_unknown(rd, json, prefix, item_fields);
}

/* Minor units; -1 after an error. */

static int64_t
event_money(struct event_reader *rd, const json_t *value, const char *pointer)
{
    int64_t minor;
    const char *rule;

    if (!json_is_string(value)) {
        event_error(rd, pointer,
            "must be a decimal string, such as "
            "\"1250.50\"");
        return -1;
    }

    if (rd->decimals == -2) {
        event_error(rd, pointer, "needs a currency");
        return -1;
    }

    if (rd->decimals < 0) {
        return -1; /* the currency has been complained of */
    }

    if (!aff_amount_parse(aff_slice(json_string_value(value), json_string_length(value)),
            rd->decimals, &minor, &rule)) {
        event_error(rd, pointer, "%s", rule);
        return -1;
    }

    return minor;
}

/* A string of 1 to max bytes without control characters; jansson has seen to
 * its being UTF-8. */

static struct aff_slice
event_text(struct event_reader *rd, const json_t *value, const char *pointer, size_t max)
{
    size_t i;
    struct aff_slice text;

    if (!json_is_string(value)) {
        event_error(rd, pointer, "must be a string");
        return aff_slice(NULL, 0);
    }

    text = aff_slice(json_string_value(value), json_string_length(value));

    if (text.len == 0 || text.len > max) {
        event_error(rd, pointer, "must be 1 to %zu bytes long", max);
        return aff_slice(NULL, 0);
    }

    for (i = 0; i < text.len; i++) {
        if (text.data[i] < 0x20 || text.data[i] == 0x7f) {
            event_error(rd, pointer,
                "must not have control "
                "characters");
            return aff_slice(NULL, 0);
        }
    }

    return text;
}

static void
event_unknown(struct event_reader *rd, const json_t *json, const char *prefix,
    const struct event_field *fields)
{
    char pointer[AFF_EVENT_POINTER];
    void *iter;
    size_t len, size;
    const char *name, *p;
    const struct event_field *field;

    /* the iterator changes nothing, jansson's API just is not const here */

    for (iter = json_object_iter((json_t *) json); iter;
         iter = json_object_iter_next((json_t *) json, iter)) {
        name = json_object_iter_key(iter);

        for (field = fields; field->name; field++) {
            if (strcmp(field->name, name) == 0) {
                break;
            }
        }

        if (field->name && (field->read != event_items || rd->rules->items)) {
            continue;
        }

        event_pointer(pointer, prefix, "");
        len = strlen(pointer);
        size = len + AFF_EVENT_NAME;

        /* RFC 6901, section 3; a long name is cut between characters */

        for (p = name; *p && (len < size || (*p & 0xc0) == 0x80); p++) {

            if (*p == '~' || *p == '/') {
                pointer[len++] = '~';
                pointer[len++] = *p == '~' ? '0' : '1';
                continue;
            }

            pointer[len++] = *p;
        }

        pointer[len] = '\0';

        event_error(rd, pointer, "is not a known field");
    }
}

/* A child's pointer; the parents have short names of ours. */

static void
event_pointer(char *pointer, const char *prefix, const char *name)
{
    snprintf(pointer, AFF_EVENT_POINTER, "%.*s/%s", AFF_EVENT_PREFIX, prefix, name);
}

static void
event_error(struct event_reader *rd, const char *pointer, const char *fmt, ...)
{
    va_list args;
    struct aff_event_error *error;

    if (rd->errors->count == AFF_EVENT_ERRORS) {
        rd->errors->more++;
        return;
    }

    error = &rd->errors->error[rd->errors->count++];

    snprintf(error->pointer, sizeof(error->pointer), "%s", pointer);

    va_start(args, fmt);
    vsnprintf(error->detail, sizeof(error->detail), fmt, args);
    va_end(args);
}

static enum aff_event_result
event_click(struct event_reader *rd, const char *pointer)
{
    uint64_t clicked;
    struct aff_conversion *c;
    const struct aff_event_rules *rules;

    c = rd->c;
    rules = rd->rules;

    switch (aff_click_id_verify(
        rules->keyring, rd->click_id, rules->merchant_id, rules->livemode, c->click_id)) {
    case AFF_CLICK_ID_OK:
        break;

    case AFF_CLICK_ID_MALFORMED:
        event_error(rd, pointer,
            "is not a click_id: %d characters as "
            "they came with the click",
            AFF_CLICK_ID_CHARS);
        return AFF_EVENT_CLICK_MALFORMED;

    case AFF_CLICK_ID_WRONG_LIVEMODE:
        event_error(rd, pointer,
            rules->livemode ? "is of a test link, but the key is "
                              "a live one"
                            : "is of a live link, but the key is "
                              "a test one");
        return AFF_EVENT_CLICK_MODE;

    case AFF_CLICK_ID_FORGED:
    default:
        event_error(rd, pointer, "was not issued to this merchant");
        return AFF_EVENT_CLICK_UNKNOWN;
    }

    /*
     * Age is held against what would earn a commission only.  A cancellation
     * or a refund of an old order must get through, whenever it comes.
     */

    if (c->status != AFF_STATUS_PENDING && c->status != AFF_STATUS_APPROVED) {
        return AFF_EVENT_OK;
    }

    clicked = aff_uuid_ms(c->click_id);

    if (clicked < rules->now_ms && rules->now_ms - clicked > rules->click_ttl_ms) {
        event_error(rd, pointer,
            "has expired: clicks are good for %llu "
            "seconds",
            (unsigned long long) (rules->click_ttl_ms / 1000));
        return AFF_EVENT_CLICK_EXPIRED;
    }

    return AFF_EVENT_OK;
}

bool
aff_time_parse(struct aff_slice text, uint64_t *ms)
{
    size_t digits;
    int64_t seconds, offset;
    unsigned year, month, day, hour, minute, second, fraction, weight;
    unsigned days;
    const uint8_t *p, *end;

    static const unsigned char lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

    /* "YYYY-MM-DDThh:mm:ssZ" is the shortest */

    if (text.len < 20) {
        return false;
    }

    p = text.data;
    end = p + text.len;

    if (!time_number(p, 4, 1970, 9999, &year) || p[4] != '-' ||
        !time_number(p + 5, 2, 1, 12, &month) || p[7] != '-' ||
        !time_number(p + 8, 2, 1, 31, &day) || (p[10] != 'T' && p[10] != 't') ||
        !time_number(p + 11, 2, 0, 23, &hour) || p[13] != ':' ||
        !time_number(p + 14, 2, 0, 59, &minute) || p[16] != ':' ||
        !time_number(p + 17, 2, 0, 60, &second)) {
        return false;
    }

    days = lengths[month - 1];

    if (month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)) {
        days = 29;
    }

    if (day > days) {
        return false;
    }

    p += 19;
    fraction = 0;

    if (*p == '.') {
        weight = 100;
        digits = 0;

        for (p++; p < end && *p >= '0' && *p <= '9'; p++) {
            fraction += (unsigned) (*p - '0') * weight;
            weight /= 10;
            digits++;
        }

        if (digits == 0) {
            return false;
        }
    }

    /* a leap second runs over into the next minute, as POSIX time has it */

    seconds = time_days(year, month, day) * 86400 + (int64_t) hour * 3600 + (int64_t) minute * 60 +
              second;

    if (!time_offset(p, end, &offset)) {
        return false;
    }

    seconds -= offset;

    if (seconds < 0) {
        return false;
    }

    *ms = (uint64_t) seconds * 1000 + fraction;

    return true;
}

/* "Z", or "+05:45": seconds ahead of UTC. */

static bool
time_offset(const uint8_t *p, const uint8_t *end, int64_t *offset)
{
    unsigned hour, minute;

    if (end - p == 1 && (*p == 'Z' || *p == 'z')) {
        *offset = 0;
        return true;
    }

    if (end - p != 6 || (*p != '+' && *p != '-') || p[3] != ':' ||
        !time_number(p + 1, 2, 0, 23, &hour) || !time_number(p + 4, 2, 0, 59, &minute)) {
        return false;
    }

    *offset = (int64_t) hour * 3600 + (int64_t) minute * 60;

    if (*p == '-') {
        *offset = -*offset;
    }

    return true;
}

static bool
time_number(const uint8_t *p, unsigned digits, unsigned min, unsigned max, unsigned *value)
{
    unsigned n;

    for (n = 0; digits > 0; digits--, p++) {

        if (*p < '0' || *p > '9') {
            return false;
        }

        n = n * 10 + (unsigned) (*p - '0');
    }

    *value = n;

    return n >= min && n <= max;
}

/* Days since 1970-01-01; a year begins in March, so that its leap day is its
 * last. */

static int64_t
time_days(unsigned year, unsigned month, unsigned day)
{
    unsigned y, m;

    y = month > 2 ? year : year - 1;
    m = month > 2 ? month - 3 : month + 9;

    return (int64_t) y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719468;
}

bool
aff_json_deep(const uint8_t *data, size_t len, unsigned max)
{
    bool quoted;
    size_t i;
    unsigned depth;

    depth = 0;
    quoted = false;

    for (i = 0; i < len; i++) {

        if (quoted) {

            if (data[i] == '\\') {
                i++;

            } else if (data[i] == '"') {
                quoted = false;
            }

            continue;
        }

        switch (data[i]) {

        case '"':
            quoted = true;
            break;

        case '[':
        case '{':
            if (++depth > max) {
                return true;
            }
            break;

        case ']':
        case '}':
            if (depth > 0) {
                depth--;
            }
            break;
        }
    }

    return false;
}
