/* Walks and decodes any query: pairs lie within it, none is empty, decoding never grows. */

#include "fuzz.h"

#include "url.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct aff_slice query = aff_slice(data, size);
    struct aff_slice rest = query;
    struct aff_slice name;
    struct aff_slice value;
    uint8_t *out = malloc(size + 1);

    require(out != NULL);

    while (aff_query_next(&rest, &name, &value)) {
        long len;

        require(within(name, query) && within(value, query) && within(rest, query));
        require(name.len == 0 || memchr(name.data, '=', name.len) == NULL);
        require(value.len == 0 || memchr(value.data, '&', value.len) == NULL);

        len = aff_query_decode(value, out, value.len);
        require(len >= -1 && len <= (long) value.len);

        if (len > 0) {
            require(aff_query_decode(value, out, (size_t) len - 1) == -1);
        }
    }

    require(rest.len == 0);
    free(out);

    return 0;
}
