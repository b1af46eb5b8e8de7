
/*
 * A merchant's event, from JSON to a conversion record: every rule about its
 * fields.  Knows neither nginx nor a request, so that it is tested alone.
 */

#ifndef _NGX_HTTP_AFFILIATE_EVENT_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_EVENT_H_INCLUDED_


#include <jansson.h>

#include "../protocol/conversion.h"
#include "../protocol/keyring.h"


#define NGX_HTTP_AFFILIATE_EVENT_ERRORS   20
#define NGX_HTTP_AFFILIATE_EVENT_POINTER  192
#define NGX_HTTP_AFFILIATE_EVENT_DETAIL   128
#define NGX_HTTP_AFFILIATE_EVENT_SKEW_MS  300000  /* a merchant's fast clock */


typedef enum {
    NGX_HTTP_AFFILIATE_EVENT_OK = 0,
    NGX_HTTP_AFFILIATE_EVENT_INVALID,          /* a field */
    NGX_HTTP_AFFILIATE_EVENT_CLICK_MALFORMED,
    NGX_HTTP_AFFILIATE_EVENT_CLICK_UNKNOWN,    /* forged, or not of this
                                                  merchant */
    NGX_HTTP_AFFILIATE_EVENT_CLICK_MODE,
    NGX_HTTP_AFFILIATE_EVENT_CLICK_EXPIRED
} ngx_http_affiliate_event_result_e;


/* Both are NUL-terminated UTF-8. */
typedef struct {
    char                                 pointer
                                            [NGX_HTTP_AFFILIATE_EVENT_POINTER];
    char                                 detail
                                            [NGX_HTTP_AFFILIATE_EVENT_DETAIL];
} ngx_http_affiliate_event_error_t;


typedef struct {
    unsigned                             count;
    unsigned                             more;      /* beyond the limit */
    ngx_http_affiliate_event_error_t     error
                                            [NGX_HTTP_AFFILIATE_EVENT_ERRORS];
} ngx_http_affiliate_event_errors_t;


/* Who reports, when, and what that allows. */
typedef struct {
    const struct aff_keyring            *keyring;
    uint64_t                             merchant_id;
    bool                                 livemode;
    bool                                 items;     /* may be given */
    uint64_t                             now_ms;    /* unix */
    uint64_t                             click_ttl_ms;
} ngx_http_affiliate_event_rules_t;


/*
 * Fills what an event says into *c: click_id, order_id, status, amount,
 * currency and the optional fields; merchant_id and livemode from the rules.
 * The strings point into "json".  "prefix" begins every error's JSON pointer.
 * All errors of fields are found at once; the click_id's origin and age are
 * looked at when there is none.
 */
ngx_http_affiliate_event_result_e ngx_http_affiliate_event_read(
    const json_t *json, const ngx_http_affiliate_event_rules_t *rules,
    const char *prefix, struct aff_conversion *c,
    ngx_http_affiliate_event_errors_t *errors);

/* Bytes that aff_conversion_encode() makes of it. */
size_t ngx_http_affiliate_event_size(const struct aff_conversion *c);

/*
 * RFC 3339, section 5.6: "2025-11-24T18:30:00.250+05:45" to unix
 * milliseconds.  False for anything else, and before 1970.
 */
bool ngx_http_affiliate_time_parse(struct aff_slice text, uint64_t *ms);

/* Whether arrays and objects of a JSON text nest deeper than "max". */
bool ngx_http_affiliate_json_deep(const uint8_t *data, size_t len,
    unsigned max);


#endif /* _NGX_HTTP_AFFILIATE_EVENT_H_INCLUDED_ */
