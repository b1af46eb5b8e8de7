/*
 * What comes through the api's socket, up to its fields: the head, its path, query, cookie and
 * Accept header, and the body behind it, as JSON. Nothing found lies outside of the
 * input; a head is the same however it is cut; what is left of it is none.
 */

#include "fuzz.h"

#include "worker/api/request.h"
#include "worker/api/scgi.h"
#include "worker/api/text.h"

static void
check_head(struct aff_slice input, const struct scgi_head *head, size_t consumed)
{
    static struct scgi_head other;
    struct aff_slice value;
    size_t again = 0;

    require(consumed <= input.len && head->count <= SCGI_PAIRS_MAX && consumed <= SCGI_INPUT_MAX);
    for (unsigned i = 0; i < head->count; i++) {
        require(within(head->pairs[i].name, input) && within(head->pairs[i].value, input));
        require(head->pairs[i].name.len > 0);
    }

    require(scgi_find(head, "SCGI", &value) == 1);
    require(scgi_parse(aff_slice(input.data, consumed), &other, &again) == SCGI_DONE);
    require(again == consumed && other.count == head->count);
    require(scgi_parse(aff_slice(input.data, consumed - 1), &other, &again) == SCGI_MORE);
}

static void
check_fields(const struct scgi_head *head, struct aff_slice body)
{
    struct route_match match;
    struct request_fault fault = {.status = 0};
    struct aff_slice method, target, value, query = {0};
    char prefix[REQUEST_ADDRESS_MAX];
    json_t *fields = json_object();
    const uint8_t *mark;
    const char *name;
    json_t *field;
    bool csv, ok;

    (void) scgi_find(head, "REQUEST_METHOD", &method);
    (void) scgi_find(head, "REQUEST_URI", &target);
    mark = target.len == 0 ? NULL : memchr(target.data, '?', target.len);
    if (mark != NULL) {
        query = aff_slice(mark + 1, (size_t) (target.data + target.len - mark - 1));
        target.len = (size_t) (mark - target.data);
    }

    route_find(method, target, &match);
    ok = request_path(&match, fields, &fault) && request_query(query, fields, &fault) &&
         request_body(body, fields, &fault);
    require(ok || (fault.status >= 400 && fault.code != NULL && fault.detail[0] != '\0'));
    json_object_foreach(fields, name, field)
    {
        require(request_name_valid(aff_slice_of(name)));
    }
    json_decref(fields);

    (void) scgi_find(head, "HTTP_ACCEPT", &value);
    require(accept_choose(value, true, &csv) || !csv);
    require(accept_choose(value, false, &csv) || !csv);
    (void) scgi_find(head, "HTTP_COOKIE", &value);
    if (request_cookie(value, "__Host-affiliate", &query)) {
        require(within(query, value));
    }

    (void) scgi_find(head, "REMOTE_ADDR", &value);
    request_address_prefix(value, prefix);
    require(strlen(prefix) < sizeof(prefix));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct scgi_head head;
    struct aff_slice input = aff_slice(data, size);
    size_t consumed = 0;

    if (scgi_parse(input, &head, &consumed) == SCGI_DONE) {
        struct aff_slice body = aff_slice(data + consumed, size - consumed);

        check_head(input, &head, consumed);
        check_fields(&head, body);
    }

    return 0;
}
