/* A payload that decodes encodes to the same bytes. */

#include "fuzz.h"

#include "click.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t out[AFF_CLICK_PAYLOAD_MAX];
    struct aff_click click;

    if (!aff_click_decode(AFF_CLICK_VERSION, aff_slice(data, size), &click)) {
        return 0;
    }

    require(within(click.user_agent, aff_slice(data, size)));
    require(within(click.referrer, aff_slice(data, size)));
    require(click.user_agent.len <= AFF_USER_AGENT_MAX && click.referrer.len <= AFF_REFERRER_MAX);
    require(aff_click_size(&click) >= size);
    require(aff_click_encode(&click, out, sizeof(out)) == size);
    require(memcmp(out, data, size) == 0);

    return 0;
}
