/*
 * Lines: parameter's name, its value, a URL. A merge into a URL that passes the check passes it,
 * too (unless it grew too long), holds the parameter once and last, keeps the others, the path and
 * the fragment, and changes nothing a second time.
 */

#include "fuzz.h"

#include "url.h"

/* What stands between the first ? and the first # behind it. */
static struct aff_slice
query_of(struct aff_slice url)
{
    const uint8_t *end = memchr(url.data, '#', url.len);
    const uint8_t *mark;

    url.len = end == NULL ? url.len : (size_t) (end - url.data);
    mark = memchr(url.data, '?', url.len);

    return mark == NULL ? aff_slice(url.data, 0)
                        : aff_slice(mark + 1, url.len - (size_t) (mark + 1 - url.data));
}

static bool
same_name(struct aff_slice raw, struct aff_slice name)
{
    uint8_t decoded[8192];
    long len = aff_query_decode(raw, decoded, sizeof(decoded));

    return len >= 0 && aff_slice_equal(aff_slice(decoded, (size_t) len), name);
}

/* Every pair of `before` that is not replaced stands in `after`, in order; then the new one. */
static void
check_pairs(struct aff_slice before, struct aff_slice after, const struct aff_param *param)
{
    struct aff_slice name[2];
    struct aff_slice value[2];
    uint8_t decoded[8192];
    long len;

    while (aff_query_next(&before, &name[0], &value[0])) {
        if (!same_name(name[0], param->name)) {
            require(aff_query_next(&after, &name[1], &value[1]));
            require(aff_slice_equal(name[0], name[1]) && aff_slice_equal(value[0], value[1]));
        }
    }

    require(aff_query_next(&after, &name[1], &value[1]));
    require(aff_slice_equal(name[1], param->name));
    len = aff_query_decode(value[1], decoded, sizeof(decoded));
    require(len >= 0 && aff_slice_equal(aff_slice(decoded, (size_t) len), param->value));
    require(!aff_query_next(&after, &name[1], &value[1]));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t out[32768];
    static uint8_t again[32768];
    struct aff_slice rest = aff_slice(data, size);
    struct aff_param param = {.name = first_line(&rest), .value = first_line(&rest)};
    struct aff_url_parts parts[2];
    const char *rule = NULL;
    struct aff_slice merged;
    size_t bound = aff_url_merge_size(rest, &param, 1);

    (void) aff_host_match(param.name, param.value);
    (void) aff_host_pattern_valid(param.name);

    if (!aff_url_check(rest, &parts[0], &rule)) {
        require(rule != NULL);
        return 0;
    }

    require(within(parts[0].host, rest) && within(parts[0].port, rest));
    require(aff_host_pattern_valid(parts[0].host) && aff_host_match(parts[0].host, parts[0].host));

    if (param.value.len > 2000) {
        return 0;
    }

    merged = aff_slice(out, aff_url_merge(rest, &param, 1, out, bound));
    require((merged.len != 0) == aff_param_name_valid(param.name));

    if (merged.len == 0) {
        return 0;
    }

    require(merged.len <= bound);
    require(aff_url_merge(rest, &param, 1, again, merged.len - 1) == 0);
    require(aff_url_merge(merged, &param, 1, again, merged.len) == merged.len);
    require(memcmp(out, again, merged.len) == 0);
    check_pairs(query_of(rest), query_of(merged), &param);

    if (merged.len <= AFF_URL_MAX) {
        require(aff_url_check(merged, &parts[1], &rule));
        require(aff_slice_equal(parts[0].host, parts[1].host));
        require(aff_slice_equal(parts[0].port, parts[1].port));
    }

    return 0;
}
