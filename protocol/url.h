/*
 * Destinations: what may be one, and how the click_id gets onto it. Parsing follows RFC 3986; the
 * query's name=value pairs follow the WHATWG application/x-www-form-urlencoded rules that shops'
 * programs use.
 */

#ifndef AFF_URL_H
#define AFF_URL_H

#include "slice.h"

#define AFF_URL_MAX   2000 /* bytes of a destination, before anything is merged into it */
#define AFF_HOST_MAX  253
#define AFF_PARAM_MAX 64
#define AFF_MERGE_MAX 16 /* pairs merged in one call */

struct aff_url_parts {
    struct aff_slice host; /* without port; as written */
    struct aff_slice port; /* digits, or empty */
};

/*
 * True if `url` may be a destination: absolute http or https, a host (name, IPv4 or [IPv6]) without
 * userinfo, a port of 1..65535 if any, at most AFF_URL_MAX bytes, every byte of them 0x21..0x7e
 * without " < > \ ^ ` { | }. On a refusal `*rule` (static text) names the rule. `parts` may be
 * NULL.
 */
bool aff_url_check(struct aff_slice url, struct aff_url_parts *parts, const char **rule);

/*
 * True if `host` is `allowed`, or, where `allowed` begins with "*.", a name below it.
 * Case-insensitive, a trailing dot is ignored.
 */
bool aff_host_match(struct aff_slice host, struct aff_slice allowed);

/* True if `pattern` is what aff_host_match() takes: a host (name, IPv4, [IPv6]), or "*." and a
 * name. */
bool aff_host_pattern_valid(struct aff_slice pattern);

/* A parameter to merge. Name: 1..AFF_PARAM_MAX of [A-Za-z0-9._~-]. Value: raw bytes,
 * percent-encoded here. */
struct aff_param {
    struct aff_slice name;
    struct aff_slice value;
};

bool aff_param_name_valid(struct aff_slice name);

/* Upper bound of aff_url_merge()'s output, in bytes. */
size_t aff_url_merge_size(struct aff_slice url, const struct aff_param *params, size_t count);

/*
 * Writes `url` with `params` merged: each goes behind the existing parameters and before the
 * fragment, and replaces all that have the same name (percent-decoded, + as space, compared
 * exactly); order of the others, their spelling and empty pairs are kept (behind a
 * last & no second one is put). Of several params with
 * one name the last one counts. Returns the bytes written, 0 if it does not fit `room`, a name is
 * invalid, or there are more than AFF_MERGE_MAX. `url` has passed aff_url_check(); `out` must not
 * overlap it.
 */
size_t aff_url_merge(
    struct aff_slice url, const struct aff_param *params, size_t count, uint8_t *out, size_t room);

/*
 * Walks a query string ("a=1&b=2", without ?). `*query` is advanced behind the pair; name and value
 * are as written (still encoded), value empty if there is no '='. False at the end. Empty pairs are
 * skipped.
 */
bool aff_query_next(struct aff_slice *query, struct aff_slice *name, struct aff_slice *value);

/* Percent-decodes, + as space, into out[0..room). Returns bytes written, or -1 if it does not fit
 * or is malformed. */
long aff_query_decode(struct aff_slice text, uint8_t *out, size_t room);

#endif
