#include "worker/payout/npi_message.h"

#include "protocol/amount.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NPI_CODE_MAX 16

/* Of deeper or doubtful JSON nothing is believed. */
#define NPI_JSON JSON_REJECT_DUPLICATES

/* --- requests --- */

static int64_t
npi_total(const struct payout_batch *batch)
{
    int64_t total = 0;

    for (size_t i = 0; i < batch->count; i++) {
        total += batch->items[i].amount_minor;
    }

    return total;
}

static void
npi_amount(struct buffer *out, int64_t minor, int decimals)
{
    char text[AFF_AMOUNT_TEXT_MAX];

    aff_amount_format(minor, decimals, text);
    buffer_puts(out, text);
}

static const char *
npi_branch(const struct npi_debtor *debtor, const struct payout_item *item)
{
    return item->branch == NULL ? debtor->head_office : item->branch;
}

static const char *
npi_purpose(const struct npi_debtor *debtor, const struct payout_batch *batch)
{
    return npi_real_time(batch->count) ? "ECPG" : debtor->purpose;
}

void
npi_signed_text(
    const struct npi_debtor *debtor, const struct payout_batch *batch, struct buffer *out)
{
    buffer_printf(
        out, "%s,%s,%s,%s,", batch->reference, debtor->bank, debtor->branch, debtor->account);
    npi_amount(out, npi_total(batch), batch->decimals);
    buffer_printf(out, ",%s", batch->currency);
    if (!npi_real_time(batch->count)) {
        buffer_printf(out, ",%s", debtor->purpose);
    }

    for (size_t i = 0; i < batch->count; i++) {
        const struct payout_item *item = &batch->items[i];

        buffer_printf(out, ",%s,%s,%s,%s,", item->instruction, item->bank, npi_branch(debtor, item),
            item->account);
        npi_amount(out, item->amount_minor, batch->decimals);
    }

    buffer_printf(out, ",%s", debtor->user);
}

static void
npi_member(struct buffer *out, const char *name, const char *text)
{
    buffer_printf(out, ",\"%s\":", name);
    buffer_json(out, aff_slice_of(text));
}

static void
npi_request_item(const struct npi_debtor *debtor, const struct payout_batch *batch,
    const struct payout_item *item, struct buffer *out)
{
    buffer_puts(out, "{\"instructionId\":");
    buffer_json(out, aff_slice_of(item->instruction));
    npi_member(out, "endToEndId", item->instruction);
    buffer_puts(out, ",\"amount\":");
    npi_amount(out, item->amount_minor, batch->decimals);
    npi_member(out, "creditorAgent", item->bank);
    npi_member(out, "creditorBranch", npi_branch(debtor, item));
    npi_member(out, "creditorName", item->holder);
    npi_member(out, "creditorAccount", item->account);
    buffer_puts(out, "}");
}

void
npi_request(const struct npi_debtor *debtor, const struct payout_batch *batch, const char *token,
    struct buffer *out)
{
    bool real_time = npi_real_time(batch->count);

    buffer_printf(
        out, "{\"%s\":{\"batchId\":", real_time ? "cipsBatchDetail" : "nchlIpsBatchDetail");
    buffer_json(out, aff_slice_of(batch->reference));
    buffer_puts(out, ",\"batchAmount\":");
    npi_amount(out, npi_total(batch), batch->decimals);
    buffer_printf(out, ",\"batchCount\":%zu", batch->count);
    npi_member(out, "batchCrncy", batch->currency);
    npi_member(out, "categoryPurpose", npi_purpose(debtor, batch));
    npi_member(out, "debtorAgent", debtor->bank);
    npi_member(out, "debtorBranch", debtor->branch);
    npi_member(out, "debtorName", debtor->name);
    npi_member(out, "debtorAccount", debtor->account);
    buffer_printf(out, "},\"%s\":[",
        real_time ? "cipsTransactionDetailList" : "nchlIpsTransactionDetailList");
    for (size_t i = 0; i < batch->count; i++) {
        buffer_puts(out, i == 0 ? "" : ",");
        npi_request_item(debtor, batch, &batch->items[i], out);
    }

    buffer_puts(out, "]");
    npi_member(out, "token", token);
    buffer_puts(out, "}");
}

bool
npi_fits(const struct npi_debtor *debtor, const struct payout_batch *batch, char *detail)
{
    bool real_time = npi_real_time(batch->count);

    if (batch->count == 0 || batch->count > PAYOUT_ITEMS_MAX) {
        snprintf(detail, PAYOUT_DETAIL_MAX, "NPI takes 1 to %d payouts, not %zu", PAYOUT_ITEMS_MAX,
            batch->count);
        return false;
    }

    for (size_t i = 0; i < batch->count; i++) {
        const struct payout_item *item = &batch->items[i];
        bool on_us = strcmp(item->bank, debtor->bank) == 0;

        if (on_us && !real_time) {
            snprintf(detail, PAYOUT_DETAIL_MAX,
                "%s is to an account at the bank that we pay from: NPI takes it alone in a batch",
                item->instruction);
            return false;
        }

        if (real_time && item->amount_minor > (on_us ? NPI_ON_US_MINOR : NPI_OFF_US_MINOR)) {
            snprintf(
                detail, PAYOUT_DETAIL_MAX, "%s is more than NPI pays at once", item->instruction);
            return false;
        }
    }

    return true;
}

/* --- answers --- */

/* A member's text without the blanks around it, as printable ASCII; a whole number's digits; "" if
 * it is neither. */
static void
npi_text(const json_t *object, const char *name, char *to, size_t size)
{
    const json_t *value = json_object_get(object, name);
    const char *text = json_string_value(value);
    size_t len;

    to[0] = '\0';
    if (json_is_integer(value)) {
        snprintf(to, size, "%lld", (long long) json_integer_value(value));
    }

    if (text == NULL) {
        return;
    }

    text += strspn(text, " \t\r\n");
    len = strlen(text);
    while (len > 0 && strchr(" \t\r\n", text[len - 1]) != NULL) {
        len--;
    }

    len = len < size ? len : size - 1;
    for (size_t i = 0; i < len; i++) {
        to[i] = (char) (text[i] >= 0x20 && text[i] < 0x7f ? text[i] : '?');
    }

    to[len] = '\0';
}

static bool
npi_among(const char *code, const char *const *list)
{
    while (*list != NULL && strcmp(code, *list) != 0) {
        list++;
    }

    return *list != NULL;
}

/* Nobody knows whether the bank did it. */
static const char *const npi_timeouts[] = {"999", "E021", NULL};

/* The first object member of those names. */
static json_t *
npi_member_of(const json_t *object, const char *name, const char *other)
{
    json_t *member = json_object_get(object, name);

    return member == NULL || json_is_null(member) ? json_object_get(object, other) : member;
}

bool
npi_token_parse(struct aff_slice answer, struct npi_token *token)
{
    json_t *root = json_loadb((const char *) answer.data, answer.len, NPI_JSON, NULL);
    const char *access = json_string_value(json_object_get(root, "access_token"));
    const char *refresh = json_string_value(json_object_get(root, "refresh_token"));
    json_int_t expires = json_integer_value(json_object_get(root, "expires_in"));
    /* It goes into a header. */
    bool ok = access != NULL && access[0] != '\0' && strlen(access) < NPI_TOKEN_MAX &&
              (refresh == NULL || strlen(refresh) < NPI_TOKEN_MAX) &&
              strpbrk(access, " \t\r\n") == NULL;

    *token = (struct npi_token){.expires_s = NPI_ACCESS_S};
    if (ok) {
        memcpy(token->access, access, strlen(access) + 1);
        if (refresh != NULL) {
            refresh += strspn(refresh, " ");
            memcpy(token->refresh, refresh, strlen(refresh) + 1);
        }

        if (expires > 0 && expires < NPI_ACCESS_S) {
            token->expires_s = expires;
        }
    }

    json_decref(root);
    return ok;
}

void
npi_error(long status, struct aff_slice answer, char *code, char *detail)
{
    json_t *root = json_loadb((const char *) answer.data, answer.len, NPI_JSON, NULL);
    char number[NPI_CODE_MAX], said[160];

    npi_text(root, "responseCode", number, sizeof(number));
    npi_text(root, "responseDescription", said, sizeof(said));
    if (said[0] == '\0') {
        npi_text(root, "responseMessage", said, sizeof(said));
    }

    if (number[0] == '\0') {
        snprintf(detail, PAYOUT_DETAIL_MAX, "NPI answers with status %ld", status);
    } else {
        snprintf(detail, PAYOUT_DETAIL_MAX, "NPI answers %s %s", number, said);
    }

    if (code != NULL) {
        memcpy(code, number, sizeof(number));
    }

    json_decref(root);
}

static bool
npi_found_account(const json_t *root, const char *code)
{
    /* The table of the specification has the one name, its samples the other. */
    const json_t *match = npi_member_of(root, "matchPercentage", "matchPercentate");

    return strcmp(code, "000") == 0 || (strcmp(code, "999") == 0 && json_is_number(match) &&
                                           json_number_value(match) > NPI_MATCH_MIN);
}

enum payout_outcome
npi_validated(long status, struct aff_slice answer, struct payout_item *item, char *detail)
{
    json_t *root = json_loadb((const char *) answer.data, answer.len, NPI_JSON, NULL);
    bool found;
    char code[NPI_CODE_MAX], said[160], why[PAYOUT_DETAIL_MAX];

    npi_text(root, "responseCode", code, sizeof(code));
    npi_text(root, "responseMessage", said, sizeof(said));
    found = npi_found_account(root, code);
    json_decref(root);
    if ((status == 200 && code[0] != '\0' && code[0] != 'E') ||
        (status == 400 && strcmp(code, "E004") == 0)) {
        item->verdict = found ? PAYOUT_ACCEPTED : PAYOUT_REJECTED;
        snprintf(item->detail, sizeof(item->detail),
            "The bank does not confirm this account: %s %s", code, said);
        return PAYOUT_SUBMITTED;
    }

    npi_error(status, answer, NULL, why);
    /* It is this account that NPI can't make anything of; others go on. */
    if (status == 400) {
        snprintf(detail, PAYOUT_DETAIL_MAX, "%s: %.200s", item->instruction, why);
        return PAYOUT_HELD;
    }

    memcpy(detail, why, sizeof(why));
    return PAYOUT_AWAY;
}

/* Of the debit: SETTLED is taken from our account. */
static enum payout_verdict
npi_debit(const char *code)
{
    if (strcmp(code, "000") == 0) {
        return PAYOUT_SETTLED;
    }

    if (code[0] == '\0' || strcmp(code, "ENTR") == 0) {
        return PAYOUT_PENDING;
    }

    /* A bank's code is a refusal; one of NPI's own errors (E021, E999) need not be. */
    return npi_among(code, npi_timeouts) || code[0] == 'E' ? PAYOUT_UNKNOWN : PAYOUT_REJECTED;
}

enum payout_verdict
npi_verdict(bool real_time, const char *debit, const char *credit, const char *reversal)
{
    static const char *const pending[] = {"", "ENTR", "DEFER", "GEN", "SENT", "ACTC", "ACSP", NULL};
    enum payout_verdict debited = npi_debit(debit);

    if (debited != PAYOUT_SETTLED) {
        return debited;
    }

    if (strcmp(credit, "ACSC") == 0 || (real_time && strcmp(credit, "000") == 0)) {
        return PAYOUT_SETTLED;
    }

    if (strcmp(credit, "RJCT") == 0) {
        return PAYOUT_REJECTED;
    }

    if (npi_among(credit, pending)) {
        return PAYOUT_PENDING;
    }

    /* The bank of the account has refused it, by a code of its own; or it has not, and the code is
     * one that we do not know. Only money that came back was certainly not paid. */
    return !npi_among(credit, npi_timeouts) && strcmp(reversal, "000") == 0 ? PAYOUT_REJECTED
                                                                            : PAYOUT_UNKNOWN;
}

static void
npi_set_all(struct payout_batch *batch, enum payout_verdict verdict, const char *detail)
{
    for (size_t i = 0; i < batch->count; i++) {
        batch->items[i].verdict = verdict;
        batch->items[i].reference[0] = '\0';
        snprintf(batch->items[i].detail, PAYOUT_DETAIL_MAX, "%s", detail);
    }
}

/* --- what is said of items --- */

struct npi_legs {
    bool real_time;
    char debit[NPI_CODE_MAX];
    char debit_said[160];
};

struct npi_found {
    struct payout_item *item;
    bool said; /* the answer has it */
};

/* Items by their instruction. */
struct npi_index {
    size_t count;
    struct npi_found *found;
};

static int
npi_compare(const void *a, const void *b)
{
    const struct npi_found *left = a, *right = b;

    return strcmp(left->item->instruction, right->item->instruction);
}

static bool
npi_index_open(struct npi_index *index, struct payout_batch *batch)
{
    index->count = batch->count;
    index->found = calloc(batch->count + 1, sizeof(*index->found));
    if (index->found == NULL) {
        return false;
    }

    for (size_t i = 0; i < batch->count; i++) {
        index->found[i].item = &batch->items[i];
    }

    qsort(index->found, index->count, sizeof(*index->found), npi_compare);
    return true;
}

static struct npi_found *
npi_find(const struct npi_index *index, const char *instruction)
{
    struct payout_item item = {.instruction = instruction};
    struct npi_found wanted = {.item = &item};

    return bsearch(&wanted, index->found, index->count, sizeof(*index->found), npi_compare);
}

/* What a report says beside the codes has to be ours: somebody else's batch of the same name is not
 * what was paid. */
static bool
npi_is_ours(const json_t *said, const struct payout_item *item)
{
    const json_t *amount = json_object_get(said, "amount");
    double value = json_is_string(amount) ? strtod(json_string_value(amount), NULL)
                                          : json_number_value(amount);
    char text[64];

    if (amount != NULL && !json_is_null(amount) &&
        !(fabs(value * 100 - (double) item->amount_minor) < 0.5)) {
        return false;
    }

    npi_text(said, "creditorAccount", text, sizeof(text));
    return text[0] == '\0' || strchr(text, '*') != NULL || strcmp(text, item->account) == 0;
}

static void
npi_explain(struct payout_item *item, const struct npi_legs *legs, const char *credit,
    const char *said, const char *reversal)
{
    char *to = item->detail;

    switch (item->verdict) {
    case PAYOUT_REJECTED:
    case PAYOUT_UNKNOWN:
        if (npi_debit(legs->debit) != PAYOUT_SETTLED) {
            snprintf(to, PAYOUT_DETAIL_MAX, "The debit: %s %s", legs->debit, legs->debit_said);
        } else if (item->verdict == PAYOUT_UNKNOWN && !npi_among(credit, npi_timeouts)) {
            snprintf(to, PAYOUT_DETAIL_MAX,
                "The credit: %s %s; NPI does not say that the money came back (%s)", credit, said,
                reversal[0] == '\0' ? "no reversal" : reversal);
        } else {
            snprintf(to, PAYOUT_DETAIL_MAX, "The credit: %s %s", credit, said);
        }
        break;
    default:
        snprintf(to, PAYOUT_DETAIL_MAX, "%s", credit);
        break;
    }
}

static void
npi_item_said(const struct npi_index *index, const struct npi_legs *legs, const json_t *said)
{
    char instruction[PAYOUT_INSTRUCTION_MAX + 1], credit[NPI_CODE_MAX], reversal[NPI_CODE_MAX];
    char why[160];
    struct npi_found *found;
    struct payout_item *item;
    enum payout_verdict before;

    npi_text(said, "instructionId", instruction, sizeof(instruction));
    found = npi_find(index, instruction);
    if (found == NULL) {
        return;
    }

    item = found->item;
    before = item->verdict;
    npi_text(said, "creditStatus", credit, sizeof(credit));
    npi_text(said, "reversalStatus", reversal, sizeof(reversal));
    npi_text(said, json_object_get(said, "reasonDesc") == NULL ? "responseMessage" : "reasonDesc",
        why, sizeof(why));
    item->verdict = npi_verdict(legs->real_time, legs->debit, credit, reversal);
    npi_explain(item, legs, credit, why, reversal);
    npi_text(said, "txnResponse", item->reference, sizeof(item->reference));
    if (item->reference[0] == '\0') {
        npi_text(said, "ipsTxnId", item->reference, sizeof(item->reference));
    }

    if (item->reference[0] == '\0') {
        npi_text(said, "id", item->reference, sizeof(item->reference));
    }

    if (!npi_is_ours(said, item)) {
        item->verdict = PAYOUT_UNKNOWN;
        snprintf(item->detail, PAYOUT_DETAIL_MAX, "NPI has another amount or account");
    } else if (found->said && item->verdict != before) {
        item->verdict = PAYOUT_UNKNOWN;
        snprintf(item->detail, PAYOUT_DETAIL_MAX, "NPI says two things of it");
    }

    found->said = true;
}

/* Of those that the answer does not have: what the debit alone tells. */
static void
npi_rest(const struct npi_index *index, const struct npi_legs *legs)
{
    enum payout_verdict debited = npi_debit(legs->debit);

    for (size_t i = 0; i < index->count; i++) {
        struct payout_item *item = index->found[i].item;

        if (!index->found[i].said) {
            item->verdict = debited == PAYOUT_SETTLED ? PAYOUT_PENDING : debited;
            item->reference[0] = '\0';
            snprintf(
                item->detail, PAYOUT_DETAIL_MAX, "The debit: %s %s", legs->debit, legs->debit_said);
        }
    }
}

static void
npi_legs_of(struct npi_legs *legs, const json_t *batch, const char *code, const char *said)
{
    npi_text(batch, "debitStatus", legs->debit, sizeof(legs->debit));
    if (legs->debit[0] == '\0' && code != NULL) {
        npi_text(batch, code, legs->debit, sizeof(legs->debit));
    }

    npi_text(batch, said, legs->debit_said, sizeof(legs->debit_said));
}

static bool
npi_is_batch(const json_t *batch, const char *reference)
{
    char name[32];

    npi_text(batch, "batchId", name, sizeof(name));
    return strcmp(name, reference) == 0;
}

static enum payout_outcome
npi_in_doubt(struct payout_batch *batch, char *detail, const char *why)
{
    snprintf(detail, PAYOUT_DETAIL_MAX, "%s", why);
    npi_set_all(batch, PAYOUT_UNKNOWN, why);
    return PAYOUT_IN_DOUBT;
}

/* --- the answer to a submission --- */

static enum payout_outcome
npi_submitted_fine(const json_t *root, struct payout_batch *batch, char *detail)
{
    const json_t *said = npi_member_of(root, "cipsBatchResponse", "nchlIpsBatchResponse");
    const json_t *list = npi_member_of(root, "cipsTxnResponseList", "nchlIpsTxnResponseList");
    struct npi_legs legs = {.real_time = npi_real_time(batch->count)};
    struct npi_index index;
    const json_t *one;
    size_t i;

    if (!npi_is_batch(said, batch->reference)) {
        return npi_in_doubt(batch, detail, "NPI's answer is about another batch, or none");
    }

    npi_legs_of(&legs, said, "responseCode", "responseMessage");
    if (npi_debit(legs.debit) == PAYOUT_UNKNOWN) {
        snprintf(detail, PAYOUT_DETAIL_MAX, "The debit: %s %s", legs.debit, legs.debit_said);
        npi_set_all(batch, PAYOUT_UNKNOWN, detail);
        return PAYOUT_IN_DOUBT;
    }

    if (npi_debit(legs.debit) == PAYOUT_REJECTED) {
        snprintf(detail, PAYOUT_DETAIL_MAX, "The debit: %s %s", legs.debit, legs.debit_said);
        npi_set_all(batch, PAYOUT_REJECTED, detail);
        return PAYOUT_REFUSED;
    }

    if (!npi_index_open(&index, batch)) {
        return npi_in_doubt(batch, detail, "out of memory");
    }

    json_array_foreach(list, i, one)
    {
        npi_item_said(&index, &legs, one);
    }

    npi_rest(&index, &legs);
    free(index.found);
    return PAYOUT_SUBMITTED;
}

enum payout_outcome
npi_submitted(long status, struct aff_slice answer, struct payout_batch *batch, char *detail)
{
    static const char *const held[] = {"E004", "E007", NULL};
    char code[NPI_CODE_MAX];
    enum payout_outcome outcome;
    json_t *root;

    detail[0] = '\0';
    root = json_loadb((const char *) answer.data, answer.len, NPI_JSON, NULL);
    if (status == 200 && npi_member_of(root, "cipsBatchResponse", "nchlIpsBatchResponse") != NULL) {
        outcome = npi_submitted_fine(root, batch, detail);
        json_decref(root);
        return outcome;
    }

    json_decref(root);
    npi_error(status, answer, code, detail);
    if ((status == 200 || status == 400) && strcmp(code, "99") == 0) {
        /* It was submitted, though not by what we just said: its report tells. */
        npi_set_all(batch, PAYOUT_PENDING, detail);
        return PAYOUT_SUBMITTED;
    }

    if (status == 400 && npi_among(code, held)) {
        return PAYOUT_HELD;
    }

    if (status == 401 || status == 403 || (status == 400 && strcmp(code, "E003") == 0)) {
        return PAYOUT_AWAY;
    }

    npi_set_all(batch, PAYOUT_UNKNOWN, detail);
    return PAYOUT_IN_DOUBT;
}

/* --- reports --- */

/* One of a report: a batch with its transactions, in an object of its own or not; or a transaction
 * with its batch. False: it is about another batch. */
static bool
npi_report_one(const json_t *said, const struct npi_index *index, struct payout_batch *batch,
    struct npi_legs *legs)
{
    const json_t *detail = npi_member_of(said, "cipsBatchDetail", "nchlIpsBatchDetail");
    const json_t *list =
        npi_member_of(said, "cipsTransactionDetailList", "nchlIpsTransactionDetailList");
    const json_t *one;
    size_t i;

    detail = json_is_object(detail) ? detail : said;
    if (!npi_is_batch(detail, batch->reference)) {
        return false;
    }

    npi_legs_of(legs, detail, NULL, "debitReasonDesc");
    json_array_foreach(list, i, one)
    {
        npi_item_said(index, legs, one);
    }

    if (json_object_get(said, "instructionId") != NULL) {
        npi_item_said(index, legs, said);
    }

    return true;
}

static enum payout_outcome
npi_reported_fine(const json_t *root, struct payout_batch *batch, char *detail)
{
    struct npi_legs legs = {.real_time = npi_real_time(batch->sent)};
    struct npi_index index;
    const json_t *one;
    bool known = false;
    size_t i;

    if (!npi_index_open(&index, batch)) {
        return npi_in_doubt(batch, detail, "out of memory");
    }

    if (json_is_object(root)) {
        known = npi_report_one(root, &index, batch, &legs);
    }

    json_array_foreach(root, i, one)
    {
        known = npi_report_one(one, &index, batch, &legs) || known;
    }

    if (known) {
        npi_rest(&index, &legs);
    }

    free(index.found);
    return known ? PAYOUT_SUBMITTED : npi_in_doubt(batch, detail, "NPI does not know this batch");
}

enum payout_outcome
npi_reported(long status, struct aff_slice answer, struct payout_batch *batch, char *detail)
{
    enum payout_outcome outcome;
    char why[PAYOUT_DETAIL_MAX];
    json_t *root;

    detail[0] = '\0';
    if (status == 200) {
        root = json_loadb((const char *) answer.data, answer.len, NPI_JSON, NULL);
        outcome = npi_reported_fine(root, batch, detail);
        json_decref(root);
        return outcome;
    }

    npi_error(status, answer, NULL, why);
    /* It was asked about this batch, and has no answer to that. */
    if (status == 400 || status == 404) {
        return npi_in_doubt(batch, detail, why);
    }

    memcpy(detail, why, sizeof(why));
    return PAYOUT_AWAY;
}
