#include "worker/api/router.h"

#include "protocol/chars.h"

#include <stdio.h>

/* Takes the next segment off a path that begins with '/'. False at its end. */
static bool
route_segment(struct aff_slice *path, struct aff_slice *segment)
{
    const uint8_t *end;

    if (path->len == 0 || path->data[0] != '/') {
        return false;
    }

    path->data++;
    path->len--;
    end = path->len == 0 ? NULL : memchr(path->data, '/', path->len);
    *segment = aff_slice(path->data, end == NULL ? path->len : (size_t) (end - path->data));
    path->data += segment->len;
    path->len -= segment->len;
    return true;
}

static bool
route_matches(const struct route *route, struct aff_slice path, struct route_match *match)
{
    struct aff_slice pattern = aff_slice_of(route->path), want, have;

    match->count = 0;
    while (route_segment(&pattern, &want)) {
        if (!route_segment(&path, &have)) {
            return false;
        }

        if (want.len < 2 || want.data[0] != '{') {
            if (!aff_slice_equal(want, have)) {
                return false;
            }
        } else if (have.len == 0 || match->count == ROUTE_PARAMS_MAX) {
            return false;
        } else {
            match->params[match->count++] =
                (struct route_param){.name = aff_slice(want.data + 1, want.len - 2), .value = have};
        }
    }

    return path.len == 0;
}

static void
route_allow(struct route_match *match, const char *method)
{
    size_t len = strlen(match->allow);
    const char *also = strcmp(method, "GET") == 0 ? ", HEAD" : "";

    if (strstr(match->allow, method) == NULL && len < sizeof(match->allow)) {
        snprintf(match->allow + len, sizeof(match->allow) - len, "%s%s%s", len == 0 ? "" : ", ",
            method, also);
    }
}

void
route_find(struct aff_slice method, struct aff_slice path, struct route_match *match)
{
    *match = (struct route_match){0};
    if (aff_slice_equal(method, aff_slice_of("HEAD"))) {
        method = aff_slice_of("GET");
    }

    for (unsigned i = 0; i < routes_count; i++) {
        if (!route_matches(&routes[i], path, match)) {
            continue;
        }

        if (aff_slice_equal(aff_slice_of(routes[i].method), method)) {
            match->route = &routes[i];
            return;
        }

        route_allow(match, routes[i].method);
    }
}

static struct aff_slice
accept_trim(struct aff_slice s)
{
    while (s.len > 0 && (s.data[0] == ' ' || s.data[0] == '\t')) {
        s = aff_slice(s.data + 1, s.len - 1);
    }

    while (s.len > 0 && (s.data[s.len - 1] == ' ' || s.data[s.len - 1] == '\t')) {
        s.len--;
    }

    return s;
}

/* Takes what stands in front of `separator` off `*rest`. */
static struct aff_slice
accept_cut(struct aff_slice *rest, char separator)
{
    const uint8_t *end = rest->len == 0 ? NULL : memchr(rest->data, separator, rest->len);
    struct aff_slice part = *rest;

    if (end == NULL) {
        *rest = aff_slice(rest->data + rest->len, 0);
    } else {
        part.len = (size_t) (end - rest->data);
        *rest = aff_slice(end + 1, rest->len - part.len - 1);
    }

    return accept_trim(part);
}

/* Thousandths of a "q=0.8" among parameters; 1000 if there is none, or none that is one. */
static int
accept_quality(struct aff_slice parameters)
{
    while (parameters.len > 0) {
        struct aff_slice one = accept_cut(&parameters, ';');
        int quality = 0, unit = 1000;

        if (one.len < 3 || aff_char_lower(one.data[0]) != 'q' || one.data[1] != '=') {
            continue;
        }

        for (size_t i = 2; i < one.len && unit > 0; i++) {
            if (i == 3 && one.data[i] == '.') {
                continue;
            }

            if (!aff_char_digit(one.data[i])) {
                return 1000;
            }

            quality += (one.data[i] - '0') * unit;
            unit /= 10;
        }

        return quality > 1000 ? 1000 : quality;
    }

    return 1000;
}

static bool
accept_is(struct aff_slice range, const char *name)
{
    if (range.len != strlen(name)) {
        return false;
    }

    for (size_t i = 0; i < range.len; i++) {
        if (aff_char_lower(range.data[i]) != (uint8_t) name[i]) {
            return false;
        }
    }

    return true;
}

bool
accept_choose(struct aff_slice header, bool csv_offered, bool *csv)
{
    /* By how exactly the range names the type: the closest one counts (RFC 9110, 12.5.1). */
    int json[3] = {-1, -1, -1}, text[3] = {-1, -1, -1};
    int json_quality, csv_quality;
    bool any = false;

    while (header.len > 0) {
        struct aff_slice element = accept_cut(&header, ',');
        struct aff_slice range = accept_cut(&element, ';');
        int quality = accept_quality(element);

        if (range.len == 0) {
            continue;
        }

        any = true;
        if (accept_is(range, "*/*")) {
            json[0] = text[0] = quality;
        } else if (accept_is(range, "application/*")) {
            json[1] = quality;
        } else if (accept_is(range, "text/*")) {
            text[1] = quality;
        } else if (accept_is(range, "application/json")) {
            json[2] = quality;
        } else if (accept_is(range, "text/csv")) {
            text[2] = quality;
        }
    }

    json_quality = json[2] >= 0 ? json[2] : json[1] >= 0 ? json[1] : json[0];
    csv_quality = text[2] >= 0 ? text[2] : text[1] >= 0 ? text[1] : text[0];
    *csv = csv_offered && any && csv_quality > 0 && csv_quality > json_quality;
    return !any || *csv || json_quality > 0;
}
