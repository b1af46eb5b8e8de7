/*
 * Whatever a postback's template and its values are, the URL is made of the template's own
 * characters and of percent-encoded ones, and ends. The input: the template, NUL, then JSON.
 */

#include "fuzz.h"

#include "worker/webhook/macros.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char encoded[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~%";
    const uint8_t *end = size == 0 ? NULL : memchr(data, '\0', size);
    struct aff_slice whole;
    struct buffer url;
    json_t *values;

    if (end == NULL) {
        return 0;
    }

    values = json_loadb((const char *) end + 1, (size_t) (data + size - end - 1), 0, NULL);
    buffer_open(&url, MACROS_URL_MAX, NULL);
    macros_expand((const char *) data, values, &url);
    if (buffer_whole(&url, &whole) && !url.failed) {
        require(whole.len > 0 && strlen((const char *) whole.data) == whole.len - 1);
        for (size_t i = 0; i + 1 < whole.len; i++) {
            require(strchr((const char *) data, whole.data[i]) != NULL ||
                    strchr(encoded, whole.data[i]) != NULL);
        }
    }

    buffer_close(&url);
    json_decref(values);
    return 0;
}
