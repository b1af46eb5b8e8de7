/*
 * A click, as recorded by the redirect. Payload of AFF_FRAME_CLICK, version 1; at most 120 bytes
 * with the frame's header before the user agent, the referrer, sub-ids and signals.
 */

#ifndef AFF_CLICK_H
#define AFF_CLICK_H

#include "click_id.h"

#define AFF_CLICK_VERSION     1
#define AFF_CLICK_PAYLOAD_MAX 4096
#define AFF_USER_AGENT_MAX    512 /* bytes; longer is cut, never refused */
#define AFF_REFERRER_MAX      512
#define AFF_SUB_ID_MAX        128
#define AFF_SUB_IDS           5
#define AFF_SIGNALS_MAX       256

/* In order of strength: a click gets the strongest verdict of its reasons. */
enum aff_verdict {
    AFF_VERDICT_VALID = 0,
    AFF_VERDICT_DUPLICATE = 1,
    AFF_VERDICT_SUSPECT = 2,
    AFF_VERDICT_PREFETCH = 3, /* from here on: no click_id, never billable */
    AFF_VERDICT_PREVIEW = 4,
    AFF_VERDICT_BOT = 5,
};
#define AFF_VERDICTS 6

/* Why: a bit each. Names by aff_reason_name(). */
enum aff_reason {
    AFF_REASON_BOT_AGENT = 1u << 0,     /* declared bot: crawler, library, monitor */
    AFF_REASON_PREVIEW_AGENT = 1u << 1, /* a messenger's or network's link preview */
    AFF_REASON_HEAD = 1u << 2,          /* HEAD request */
    AFF_REASON_PREFETCH =
        1u << 3, /* Purpose, Sec-Purpose, X-Moz, X-Purpose: prefetch/prerender/preview */
    AFF_REASON_EMPTY_AGENT = 1u << 4,    /* no User-Agent */
    AFF_REASON_NOT_NAVIGATION = 1u << 5, /* Sec-Fetch-Mode/-Dest of a subresource */
    AFF_REASON_ADDRESS_RATE = 1u << 6,   /* too many clicks from one address prefix */
    AFF_REASON_LINK_RATE = 1u << 7,      /* too many clicks on one link */
    AFF_REASON_REPEATED = 1u << 8,       /* same visitor, same link, within the window */
    AFF_REASON_SIGNAL = 1u << 9,         /* an affiliate_signal was set; see `signals` */
};
#define AFF_REASONS 10

struct aff_click {
    uint8_t id[AFF_UUID_BYTES]; /* of the click_id, or a record's own where none was given out */
    uint64_t link_id;
    uint64_t merchant_id;
    uint64_t campaign_id;
    uint64_t affiliate_id;
    uint64_t visitor; /* keyed daily hash, scoped to the merchant */
    uint32_t reasons; /* enum aff_reason */
    uint8_t verdict;  /* enum aff_verdict */
    bool livemode;
    uint8_t address_family; /* 4, 6, or 0 where there is none (unix socket) */
    uint8_t prefix[6];      /* first 3 bytes of IPv4, first 6 of IPv6; the rest zero */
    struct aff_slice sub_ids[AFF_SUB_IDS];
    struct aff_slice signals; /* "name=value;name=value" */
    struct aff_slice user_agent;
    struct aff_slice referrer; /* as sent, without its query */
};

/* "valid", "duplicate", …; "unknown" out of range. Static. */
const char *aff_verdict_name(unsigned verdict);

/* "bot_agent", "preview_agent", …, of bit number 0 … AFF_REASONS-1; "unknown" out of range. Static.
 */
const char *aff_reason_name(unsigned bit);

/* Upper bound of what aff_click_encode() writes for this click. */
size_t aff_click_size(const struct aff_click *click);

/*
 * Writes the payload into out[0..room), cutting over-long strings at their limit. Returns its
 * bytes, 0 if it does not fit.
 */
size_t aff_click_encode(const struct aff_click *click, uint8_t *out, size_t room);

/* False on anything but a whole, well-formed version-1 payload. Slices point into the input. */
bool aff_click_decode(uint8_t version, struct aff_slice payload, struct aff_click *click);

#endif
