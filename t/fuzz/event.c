/*
 * A body, as it is and as JSON; what is accepted encodes, decodes and is the same. A click_id in it
 * that reads CLICK is a genuine one. The text as a time, too.
 */

#include "fuzz.h"

#include "event.h"

#include "click_id.h"
#include "frame.h"

#define NOW_MS   1764000000000ULL
#define TTL_MS   (90ULL * 86400 * 1000)
#define MERCHANT 7
#define NESTING  8

static uint8_t encoded[AFF_FRAME_PAYLOAD_MAX];

static void
check_time(struct aff_slice text)
{
    uint64_t ms = 0;

    if (aff_time_parse(text, &ms)) {
        require(text.len >= 20 && ms < 253402300800000ULL);
    }
}

static void
put_click(json_t *event)
{
    struct aff_click_clock clock = {0};
    const uint8_t random[AFF_RANDOM_BYTES] = {1, 2, 3};
    char text[AFF_CLICK_ID_CHARS + 1] = "";
    uint8_t uuid[AFF_UUID_BYTES];
    const char *given = json_string_value(json_object_get(event, "click_id"));

    if (given != NULL && strcmp(given, "CLICK") == 0) {
        aff_uuid_make(&clock, NOW_MS - 1000, random, uuid);
        aff_click_id_format(&fuzz_ring()->keys[0], uuid, MERCHANT, false, text);
        json_object_set_new(event, "click_id", json_string(text));
    }
}

static void
check_errors(const struct aff_event_errors *errors)
{
    require(errors->count > 0 && errors->count <= AFF_EVENT_ERRORS);
    for (unsigned i = 0; i < errors->count; i++) {
        json_t *pointer = json_string(errors->error[i].pointer);
        json_t *detail = json_string(errors->error[i].detail);

        /* jansson takes UTF-8 alone. */
        require(pointer != NULL && detail != NULL);
        require(strncmp(errors->error[i].pointer, "/events/3", 9) == 0);
        json_decref(pointer);
        json_decref(detail);
    }
}

static void
check_accepted(struct aff_conversion *conversion)
{
    static struct aff_conversion again;
    size_t size;

    conversion->source = AFF_SOURCE_SINGLE;
    conversion->key_id = aff_slice_of("ak_test_0123456789ABCDEFabcd");
    conversion->idempotency_key = aff_slice_of("k");
    size = aff_event_size(conversion);
    require(size <= sizeof(encoded));
    require(aff_conversion_encode(conversion, encoded, size) == size);
    require(aff_conversion_decode(AFF_CONVERSION_VERSION, aff_slice(encoded, size), &again));
    require(again.amount_minor == conversion->amount_minor && again.status == conversion->status);
    require(again.items_count == conversion->items_count);
    require(aff_slice_equal(again.order_id, conversion->order_id));
}

static void
check_event(json_t *event, bool items)
{
    static struct aff_conversion conversion;
    static struct aff_event_errors errors;
    const struct aff_event_rules rules = {.keyring = fuzz_ring(),
        .merchant_id = MERCHANT,
        .items = items,
        .now_ms = NOW_MS,
        .click_ttl_ms = TTL_MS};

    if (aff_event_read(event, &rules, "/events/3", &conversion, &errors) == AFF_EVENT_OK) {
        check_accepted(&conversion);
    } else {
        check_errors(&errors);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *event;

    check_time(aff_slice(data, size));
    if (aff_json_deep(data, size, NESTING)) {
        return 0;
    }

    event = json_loadb((const char *) data, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, NULL);
    if (event != NULL) {
        put_click(event);
        check_event(event, true);
        check_event(event, false);
        check_time(aff_slice_of(json_string_value(event) == NULL ? "" : json_string_value(event)));
        json_decref(event);
    }

    return 0;
}
