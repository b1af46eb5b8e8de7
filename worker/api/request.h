/*
 * From a request's parts to the one flat object that SQL gets: path parameters, query parameters,
 * the fields of a JSON body. Everything is bounded, nothing may be given twice, and names that
 * begin with '_' are ours alone.
 */

#ifndef AFFILIATED_API_REQUEST_H
#define AFFILIATED_API_REQUEST_H

#include "worker/api/router.h"

#include <jansson.h>

#define REQUEST_TARGET_MAX 8192
#define REQUEST_QUERY_MAX  64 /* parameters */
#define REQUEST_NAME_MAX   64
#define REQUEST_VALUE_MAX  4096 /* bytes of a path or query parameter, decoded */
#define REQUEST_DEPTH_MAX  8    /* of a JSON body; the object itself is one */

/* Why something was refused: a static `code`, where (a JSON pointer, or empty), and what. */
struct request_fault {
    int status;
    const char *code;
    char pointer[REQUEST_NAME_MAX + 2];
    char detail[256];
};

/* Adds the path's parameters to `fields`. */
bool request_path(const struct route_match *match, json_t *fields, struct request_fault *fault);

/* Adds the query's; `query` is what follows '?'. */
bool request_query(struct aff_slice query, json_t *fields, struct request_fault *fault);

/* Adds a JSON object's; an empty `body` has none. */
bool request_body(struct aff_slice body, json_t *fields, struct request_fault *fault);

/* True if `name` is 1..REQUEST_NAME_MAX of [a-z0-9_] and begins with a letter. */
bool request_name_valid(struct aff_slice name);

/* True if no array or object of `json` lies deeper than `max`; `json` need not be well-formed. */
bool request_depth(struct aff_slice json, unsigned max);

/* The value of the cookie `name` in a Cookie header; false if it is not there exactly once. */
bool request_cookie(struct aff_slice header, const char *name, struct aff_slice *value);

/* True if a Content-Type header says `type` (lower case), whatever its parameters. */
bool request_type_is(struct aff_slice header, const char *type);

/* The part of an address that is kept: of IPv4 a /24, of IPv6 a /48 (RFC 6177's site). Empty if it
 * is none. */
#define REQUEST_ADDRESS_MAX 64
void request_address_prefix(struct aff_slice address, char prefix[REQUEST_ADDRESS_MAX]);

#endif
