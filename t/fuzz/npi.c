/*
 * Any answer of NPI leaves each item with a verdict and clean texts, and one that is not about this
 * very batch never with one that decides. The input: a digit that says which answer, then its
 * bytes.
 */

#include "fuzz.h"

#include "worker/payout/npi_message.h"

static void
check_text(const char *text, size_t size)
{
    require(memchr(text, '\0', size) != NULL);
    for (const char *c = text; *c != '\0'; c++) {
        require(*c >= 0x20 && *c < 0x7f);
    }
}

static void
check(const struct payout_batch *batch, enum payout_outcome outcome, struct aff_slice answer)
{
    bool named = memmem(answer.data, answer.len, "P1-7", 4) != NULL ||
                 memchr(answer.data, '\\', answer.len) != NULL;

    for (size_t i = 0; i < batch->count; i++) {
        const struct payout_item *item = &batch->items[i];

        check_text(item->detail, sizeof(item->detail));
        check_text(item->reference, sizeof(item->reference));
        require(item->verdict != PAYOUT_ACCEPTED);
        if (item->verdict == PAYOUT_SETTLED || item->verdict == PAYOUT_REJECTED) {
            require(outcome == PAYOUT_SUBMITTED || outcome == PAYOUT_REFUSED);
            require(named);
        }
    }

    require(outcome != PAYOUT_REFUSED || named);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct payout_item items[2];
    static struct npi_token token;
    struct payout_batch batch = {.reference = "P1-7",
        .currency = "NPR",
        .decimals = 2,
        .sent = 2,
        .items = items,
        .count = 2};
    struct aff_slice answer;
    char detail[PAYOUT_DETAIL_MAX] = "";
    enum payout_outcome outcome;

    if (size == 0) {
        return 0;
    }

    for (size_t i = 0; i < 2; i++) {
        items[i] = (struct payout_item){.instruction = i == 0 ? "AP1" : "AP2",
            .bank = "0401",
            .account = "7",
            .holder = "A",
            .amount_minor = 85000,
            .verdict = PAYOUT_PENDING};
    }

    batch.count = batch.sent = (data[0] & 1) != 0 ? 1 : 2;
    answer = aff_slice(data + 1, size - 1);
    switch (data[0] % 8 / 2) {
    case 0:
        outcome = npi_submitted((data[0] & 8) != 0 ? 400 : 200, answer, &batch, detail);
        check(&batch, outcome, answer);
        break;
    case 1:
        outcome = npi_reported((data[0] & 8) != 0 ? 404 : 200, answer, &batch, detail);
        require(outcome == PAYOUT_SUBMITTED || outcome == PAYOUT_IN_DOUBT);
        check(&batch, outcome, answer);
        break;
    case 2:
        outcome = npi_validated((data[0] & 8) != 0 ? 400 : 200, answer, &items[0], detail);
        require(outcome == PAYOUT_SUBMITTED || outcome == PAYOUT_HELD || outcome == PAYOUT_AWAY);
        require((items[0].verdict != PAYOUT_PENDING) == (outcome == PAYOUT_SUBMITTED));
        check_text(items[0].detail, sizeof(items[0].detail));
        break;
    default:
        if (npi_token_parse(answer, &token)) {
            require(token.access[0] != '\0' && token.expires_s > 0);
            require(strpbrk(token.access, " \t\r\n") == NULL);
        }
        break;
    }

    check_text(detail, sizeof(detail));
    return 0;
}
