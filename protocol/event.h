/*
 * A merchant's event, from JSON to a conversion record: every rule about its
 * fields.  Knows neither nginx nor a request, so that it is tested alone.
 */

#ifndef AFF_EVENT_H
#define AFF_EVENT_H

#include <jansson.h>

#include "conversion.h"
#include "keyring.h"

#define AFF_EVENT_ERRORS  20
#define AFF_EVENT_POINTER 192
#define AFF_EVENT_DETAIL  128
#define AFF_EVENT_SKEW_MS 300000 /* a merchant's fast clock */

enum aff_event_result {
    AFF_EVENT_OK = 0,
    AFF_EVENT_INVALID, /* a field */
    AFF_EVENT_CLICK_MALFORMED,
    AFF_EVENT_CLICK_UNKNOWN, /* forged, or not of this merchant */
    AFF_EVENT_CLICK_MODE,
    AFF_EVENT_CLICK_EXPIRED
};

/* Both are NUL-terminated UTF-8. */
struct aff_event_error {
    char pointer[AFF_EVENT_POINTER];
    char detail[AFF_EVENT_DETAIL];
};

struct aff_event_errors {
    unsigned count;
    unsigned more; /* beyond the limit */
    struct aff_event_error error[AFF_EVENT_ERRORS];
};

/* Who reports, when, and what that allows. */
struct aff_event_rules {
    const struct aff_keyring *keyring;
    uint64_t merchant_id;
    bool livemode;
    bool items;      /* may be given */
    uint64_t now_ms; /* unix */
    uint64_t click_ttl_ms;
};

/*
 * Fills what an event says into *c: click_id, order_id, status, amount,
 * currency and the optional fields; merchant_id and livemode from the rules.
 * The strings point into "json".  "prefix" begins every error's JSON pointer.
 * All errors of fields are found at once; the click_id's origin and age are
 * looked at when there is none.
 */
enum aff_event_result aff_event_read(const json_t *json, const struct aff_event_rules *rules,
    const char *prefix, struct aff_conversion *c, struct aff_event_errors *errors);

/* Bytes that aff_conversion_encode() makes of it. */
size_t aff_event_size(const struct aff_conversion *c);

/*
 * RFC 3339, section 5.6: "2025-11-24T18:30:00.250+05:45" to unix
 * milliseconds.  False for anything else, and before 1970.
 */
bool aff_time_parse(struct aff_slice text, uint64_t *ms);

/* Whether arrays and objects of a JSON text nest deeper than "max". */
bool aff_json_deep(const uint8_t *data, size_t len, unsigned max);

#endif
