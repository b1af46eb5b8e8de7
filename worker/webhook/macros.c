#include "worker/webhook/macros.h"

#include <string.h>

#define MACROS_NAME_MAX 31

static void
macros_put_encoded(struct buffer *out, const char *value, size_t len)
{
    static const char unreserved[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
    static const char hex[] = "0123456789ABCDEF";

    for (size_t i = 0; i < len; i++) {
        unsigned char byte = (unsigned char) value[i];

        if (byte != '\0' && strchr(unreserved, byte) != NULL) {
            buffer_put(out, value + i, 1);
        } else {
            buffer_put(out, (const char[]){'%', hex[byte >> 4], hex[byte & 15]}, 3);
        }
    }
}

/* The macro that begins at `text`: its length with its braces, 0 if there is none. */
static size_t
macros_length(const char *text)
{
    size_t len = strcspn(text + 1, "{}");

    return text[1 + len] == '}' && len <= MACROS_NAME_MAX ? len + 2 : 0;
}

void
macros_expand(const char *template, const json_t *values, struct buffer *out)
{
    while (*template != '\0') {
        size_t plain = strcspn(template, "{"), len;
        char name[MACROS_NAME_MAX + 1];
        const json_t *value;

        buffer_put(out, template, plain);
        template += plain;
        len = *template == '{' ? macros_length(template) : 0;
        if (len == 0) {
            plain = *template == '{';
            buffer_put(out, template, plain);
            template += plain;
            continue;
        }

        memcpy(name, template + 1, len - 2);
        name[len - 2] = '\0';
        value = json_object_get(values, name);
        if (json_is_string(value)) {
            macros_put_encoded(out, json_string_value(value), json_string_length(value));
        }

        template += len;
    }

    buffer_put(out, "", 1);
}
