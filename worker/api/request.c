#include "worker/api/request.h"

#include "worker/api/text.h"

#include "protocol/chars.h"
#include "protocol/url.h"

#include <arpa/inet.h>
#include <stdarg.h>
#include <stdio.h>

static bool request_refuse(struct request_fault *fault, int status, const char *code,
    struct aff_slice field, const char *format, ...) __attribute__((format(printf, 5, 6)));

static bool
request_refuse(struct request_fault *fault, int status, const char *code, struct aff_slice field,
    const char *format, ...)
{
    va_list args;

    fault->status = status;
    fault->code = code;
    fault->pointer[0] = '\0';
    if (field.len > 0 && request_name_valid(field)) {
        snprintf(fault->pointer, sizeof(fault->pointer), "/%.*s", (int) field.len, field.data);
    }

    va_start(args, format);
    vsnprintf(fault->detail, sizeof(fault->detail), format, args);
    va_end(args);
    return false;
}

bool
request_name_valid(struct aff_slice name)
{
    if (name.len < 1 || name.len > REQUEST_NAME_MAX || name.data[0] < 'a' || name.data[0] > 'z') {
        return false;
    }

    for (size_t i = 0; i < name.len; i++) {
        uint8_t c = name.data[i];

        if (!(c >= 'a' && c <= 'z') && !aff_char_digit(c) && c != '_') {
            return false;
        }
    }

    return true;
}

/* Adds a text. `name` need not be valid yet. */
static bool
request_add(
    json_t *fields, struct aff_slice name, struct aff_slice value, struct request_fault *fault)
{
    char key[REQUEST_NAME_MAX + 1];

    if (!request_name_valid(name)) {
        return request_refuse(fault, 422, "invalid_field", name,
            "A parameter's name is 1 to %d of a-z, 0-9 and _.", REQUEST_NAME_MAX);
    }

    snprintf(key, sizeof(key), "%.*s", (int) name.len, name.data);
    if (json_object_get(fields, key) != NULL) {
        return request_refuse(fault, 400, "duplicate_parameter", name, "%s is given twice.", key);
    }

    if (!text_utf8(value)) {
        return request_refuse(
            fault, 400, "malformed_parameter", name, "%s is not UTF-8 without NUL.", key);
    }

    return json_object_set_new(fields, key, json_stringn((const char *) value.data, value.len)) ==
               0 ||
           request_refuse(fault, 503, "unavailable", name, "There is no memory left.");
}

/* In a path a '+' is a plus. */
static long
request_decode_segment(struct aff_slice text, uint8_t *out, size_t room)
{
    size_t n = 0;

    for (size_t i = 0; i < text.len; i++, n++) {
        int high, low;

        if (n >= room) {
            return -1;
        }

        if (text.data[i] != '%') {
            out[n] = text.data[i];
            continue;
        }

        if (text.len - i < 3 || (high = aff_char_hex(text.data[i + 1])) < 0 ||
            (low = aff_char_hex(text.data[i + 2])) < 0) {
            return -1;
        }

        out[n] = (uint8_t) (high << 4 | low);
        i += 2;
    }

    return (long) n;
}

bool
request_path(const struct route_match *match, json_t *fields, struct request_fault *fault)
{
    uint8_t value[REQUEST_VALUE_MAX];

    for (unsigned i = 0; i < match->count; i++) {
        const struct route_param *param = &match->params[i];
        long len = request_decode_segment(param->value, value, sizeof(value));

        if (len < 0) {
            return request_refuse(fault, 400, "malformed_parameter", param->name,
                "The path is not percent-encoded as it should be.");
        }

        if (!request_add(fields, param->name, aff_slice(value, (size_t) len), fault)) {
            return false;
        }
    }

    return true;
}

bool
request_query(struct aff_slice query, json_t *fields, struct request_fault *fault)
{
    uint8_t name[REQUEST_NAME_MAX + 1], value[REQUEST_VALUE_MAX];
    struct aff_slice raw_name, raw_value;

    for (unsigned n = 0; aff_query_next(&query, &raw_name, &raw_value); n++) {
        long name_len = aff_query_decode(raw_name, name, sizeof(name));
        long value_len = aff_query_decode(raw_value, value, sizeof(value));

        if (n == REQUEST_QUERY_MAX) {
            return request_refuse(fault, 400, "malformed_parameter", aff_slice("", 0),
                "There are more than %d parameters.", REQUEST_QUERY_MAX);
        }

        if (name_len < 0 || value_len < 0) {
            return request_refuse(fault, 400, "malformed_parameter",
                aff_slice(name, name_len < 0 ? 0 : (size_t) name_len),
                "A parameter of the query is too long, or not percent-encoded as it should be.");
        }

        if (!request_add(fields, aff_slice(name, (size_t) name_len),
                aff_slice(value, (size_t) value_len), fault)) {
            return false;
        }
    }

    return true;
}

bool
request_depth(struct aff_slice json, unsigned max)
{
    bool quoted = false;
    unsigned depth = 0;

    for (size_t i = 0; i < json.len; i++) {
        uint8_t c = json.data[i];

        if (quoted) {
            i += c == '\\';
            quoted = c != '"';
        } else if (c == '"') {
            quoted = true;
        } else if (c == '{' || c == '[') {
            if (++depth > max) {
                return false;
            }
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }

    return true;
}

bool
request_body(struct aff_slice body, json_t *fields, struct request_fault *fault)
{
    const struct aff_slice none = aff_slice("", 0);
    json_error_t error;
    json_t *object, *value;
    const char *name;
    bool ok = true;

    if (body.len == 0) {
        return true;
    }

    if (!request_depth(body, REQUEST_DEPTH_MAX)) {
        return request_refuse(fault, 400, "malformed_json", none,
            "The body is nested more than %d deep.", REQUEST_DEPTH_MAX);
    }

    object = json_loadb((const char *) body.data, body.len, JSON_REJECT_DUPLICATES, &error);
    if (object == NULL) {
        return request_refuse(fault, 400, "malformed_json", none, "Line %d, column %d: %s.",
            error.line, error.column, error.text);
    }

    if (!json_is_object(object)) {
        json_decref(object);
        return request_refuse(
            fault, 400, "malformed_json", none, "The body must be a JSON object.");
    }

    json_object_foreach(object, name, value)
    {
        struct aff_slice key = aff_slice_of(name);

        if (!request_name_valid(key)) {
            ok = request_refuse(fault, 422, "invalid_field", none,
                "A field's name is 1 to %d of a-z, 0-9 and _.", REQUEST_NAME_MAX);
        } else if (json_object_get(fields, name) != NULL) {
            ok = request_refuse(fault, 400, "duplicate_parameter", key,
                "%s is given twice: in the body, and in the path or the query.", name);
        } else if (json_object_set(fields, name, value) != 0) {
            ok = request_refuse(fault, 503, "unavailable", none, "There is no memory left.");
        }

        if (!ok) {
            break;
        }
    }

    json_decref(object);
    return ok;
}

bool
request_cookie(struct aff_slice header, const char *name, struct aff_slice *value)
{
    struct aff_slice wanted = aff_slice_of(name);
    unsigned count = 0;

    while (header.len > 0) {
        const uint8_t *end = memchr(header.data, ';', header.len);
        struct aff_slice pair =
            aff_slice(header.data, end == NULL ? header.len : (size_t) (end - header.data));

        header = end == NULL ? aff_slice("", 0) : aff_slice(end + 1, header.len - pair.len - 1);
        while (pair.len > 0 && pair.data[0] == ' ') {
            pair = aff_slice(pair.data + 1, pair.len - 1);
        }

        if (pair.len > wanted.len && pair.data[wanted.len] == '=' &&
            memcmp(pair.data, wanted.data, wanted.len) == 0) {
            *value = aff_slice(pair.data + wanted.len + 1, pair.len - wanted.len - 1);
            count++;
        }
    }

    return count == 1;
}

bool
request_type_is(struct aff_slice header, const char *type)
{
    size_t len = strlen(type);

    if (header.len < len) {
        return false;
    }

    for (size_t i = 0; i < len; i++) {
        if (aff_char_lower(header.data[i]) != (uint8_t) type[i]) {
            return false;
        }
    }

    return header.len == len || header.data[len] == ';' || header.data[len] == ' ' ||
           header.data[len] == '\t';
}

void
request_address_prefix(struct aff_slice address, char prefix[REQUEST_ADDRESS_MAX])
{
    char text[REQUEST_ADDRESS_MAX], shown[INET6_ADDRSTRLEN];
    uint8_t bytes[16] = {0};

    prefix[0] = '\0';
    if (address.len >= sizeof(text)) {
        return;
    }

    memcpy(text, address.data, address.len);
    text[address.len] = '\0';
    if (inet_pton(AF_INET, text, bytes) == 1) {
        bytes[3] = 0;
        inet_ntop(AF_INET, bytes, shown, sizeof(shown));
        snprintf(prefix, REQUEST_ADDRESS_MAX, "%s/24", shown);
    } else if (inet_pton(AF_INET6, text, bytes) == 1) {
        memset(bytes + 6, 0, 10);
        inet_ntop(AF_INET6, bytes, shown, sizeof(shown));
        snprintf(prefix, REQUEST_ADDRESS_MAX, "%s/48", shown);
    }
}
