/* From method and path to an operation, by the table that `make routes` writes out of
 * api/openapi.yaml. */

#ifndef AFFILIATED_API_ROUTER_H
#define AFFILIATED_API_ROUTER_H

#include "protocol/slice.h"

#define ROUTE_PARAMS_MAX   8
#define ROUTE_SEGMENTS_MAX 12

enum route_flag {
    ROUTE_BODY = 1,   /* a JSON object may come with it */
    ROUTE_UPLOAD = 2, /* text/csv comes with it */
};

struct route {
    const char *method;
    const char *path;      /* "/api/v1/merchants/{merchant}" */
    const char *operation; /* operationId */
    const char
        *columns; /* a list's, for CSV: names or dotted paths with commas between; else NULL */
    unsigned flags;
};

/* Literal segments come before parameters, so that the first that matches is the best. */
extern const struct route routes[];
extern const unsigned routes_count;

struct route_param {
    struct aff_slice name;  /* of the table */
    struct aff_slice value; /* as it stands in the path, still percent-encoded */
};

struct route_match {
    const struct route *route; /* NULL: none */
    struct route_param params[ROUTE_PARAMS_MAX];
    unsigned count;
    char allow[64]; /* methods that the path has; empty if there is no such path */
};

/* `path` as it stood on the wire, without query. HEAD is GET. */
void route_find(struct aff_slice method, struct aff_slice path, struct route_match *match);

/*
 * What an Accept header asks for: CSV only if that is offered and liked better than JSON. False if
 * it takes neither. An empty header takes anything.
 */
bool accept_choose(struct aff_slice header, bool csv_offered, bool *csv);

#endif
