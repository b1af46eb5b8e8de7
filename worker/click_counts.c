#include "worker/click_counts.h"

#include "protocol/siphash.h"

#include <stdlib.h>

#define DAY_MS         86400000ULL
#define COUNTS_INITIAL 1024 /* twice that many slots; a power of two */
#define COUNTS_ARRAYS  13   /* of affiliate.count_clicks() */

_Static_assert(AFF_SUB_ID_MAX <= UINT8_MAX, "sub_id_len");

void
click_counts_clear(struct click_counts *counts)
{
    if (counts->count != 0) {
        memset(counts->slots, 0, counts->slots_size * sizeof(*counts->slots));
    }

    counts->count = 0;
    counts->texts.len = 0;
}

void
click_counts_free(struct click_counts *counts)
{
    free(counts->counts);
    free(counts->slots);
    copy_free(&counts->texts);
    copy_free(&counts->rows);
    counts->counts = NULL;
    counts->slots = NULL;
    counts->count = counts->size = counts->slots_size = 0;
}

static uint64_t
click_counts_hash(
    const struct click_counts *counts, const struct click_count *count, const uint8_t *sub_id)
{
    uint8_t name[4 * 8 + 5 + AFF_SUB_ID_MAX];

    memcpy(name, &count->merchant_id, 8);
    memcpy(name + 8, &count->campaign_id, 8);
    memcpy(name + 16, &count->affiliate_id, 8);
    memcpy(name + 24, &count->link_id, 8);
    memcpy(name + 32, &count->day, 4);
    name[36] = count->livemode;
    if (count->sub_id_len != 0) {
        memcpy(name + 37, sub_id, count->sub_id_len);
    }

    return aff_siphash13(counts->key, name, 37U + count->sub_id_len);
}

static bool
click_counts_same(const struct click_counts *counts, const struct click_count *a,
    const struct click_count *b, const uint8_t *sub_id)
{
    return a->link_id == b->link_id && a->merchant_id == b->merchant_id &&
           a->affiliate_id == b->affiliate_id && a->campaign_id == b->campaign_id &&
           a->day == b->day && a->livemode == b->livemode && a->sub_id_len == b->sub_id_len &&
           (a->sub_id_len == 0 ||
               memcmp(counts->texts.data + a->sub_id, sub_id, a->sub_id_len) == 0);
}

/* The slot that holds `count`, or is to. */
static uint32_t *
click_counts_slot(
    const struct click_counts *counts, const struct click_count *count, const uint8_t *sub_id)
{
    size_t mask = counts->slots_size - 1;
    size_t i = click_counts_hash(counts, count, sub_id) & mask;

    while (counts->slots[i] != 0 &&
           !click_counts_same(counts, &counts->counts[counts->slots[i] - 1], count, sub_id)) {
        i = (i + 1) & mask;
    }

    return &counts->slots[i];
}

static bool
click_counts_grow(struct click_counts *counts)
{
    size_t size = counts->size == 0 ? COUNTS_INITIAL : 2 * counts->size;
    struct click_count *grown = realloc(counts->counts, size * sizeof(*grown));
    uint32_t *slots;

    if (grown == NULL) {
        return false;
    }

    counts->counts = grown;
    slots = calloc(2 * size, sizeof(*slots));
    if (slots == NULL) {
        return false;
    }

    free(counts->slots);
    counts->slots = slots;
    counts->slots_size = 2 * size;
    counts->size = size;
    for (size_t i = 0; i < counts->count; i++) {
        const struct click_count *count = &counts->counts[i];
        const uint8_t *sub_id = count->sub_id_len == 0 ? NULL : counts->texts.data + count->sub_id;

        *click_counts_slot(counts, count, sub_id) = (uint32_t) i + 1;
    }

    return true;
}

bool
click_counts_add(struct click_counts *counts, const struct aff_click *click)
{
    struct click_count count = {.merchant_id = click->merchant_id,
        .campaign_id = click->campaign_id,
        .affiliate_id = click->affiliate_id,
        .link_id = click->link_id,
        .day = (uint32_t) (aff_uuid_ms(click->id) / DAY_MS),
        .livemode = click->livemode,
        .sub_id_len = (uint8_t) click->sub_ids[0].len};
    const uint8_t *sub_id = click->sub_ids[0].data;
    uint32_t *slot;

    if (counts->count == counts->size && !click_counts_grow(counts)) {
        return false;
    }

    slot = click_counts_slot(counts, &count, sub_id);
    if (*slot == 0) {
        if (count.sub_id_len != 0) {
            uint8_t *text = copy_room(&counts->texts, count.sub_id_len);

            if (text == NULL) {
                return false;
            }

            memcpy(text, sub_id, count.sub_id_len);
            count.sub_id = counts->texts.len;
            counts->texts.len += count.sub_id_len;
        }

        counts->counts[counts->count] = count;
        *slot = (uint32_t) ++counts->count;
    }

    counts->counts[*slot - 1].clicks[click->verdict]++;
    return true;
}

/* --- sending --- */

/* One field of each count; `which` says which of COUNTS_ARRAYS, in the order of the function's
 * parameters. */
static uint8_t *
click_counts_put(
    uint8_t *p, const struct click_counts *counts, const struct click_count *count, unsigned which)
{
    switch (which) {
    case 0:
        return copy_put_int4(p, count->day);
    case 1:
        return copy_put_int8(p, count->merchant_id);
    case 2:
        return copy_put_bool(p, count->livemode);
    case 3:
        return copy_put_int8(p, count->campaign_id);
    case 4:
        return copy_put_int8(p, count->affiliate_id);
    case 5:
        return copy_put_int8(p, count->link_id);
    case 6:
        /* The same text as in the row. */
        return count->sub_id_len == 0
                   ? copy_put_null(p)
                   : copy_put_sanitized(
                         p, aff_slice(counts->texts.data + count->sub_id, count->sub_id_len));
    default:
        return copy_put_int8(p, count->clicks[which - 7]);
    }
}

bool
click_counts_send(struct click_counts *counts, PGconn *conn, struct pg_error *error)
{
    static const char sql[] = "select affiliate.count_clicks($1, $2, $3, $4, $5, $6, $7, $8, $9, "
                              "$10, $11, $12, $13)";
    static const Oid arrays[COUNTS_ARRAYS] = {COPY_OID_INT4_ARRAY, COPY_OID_INT8_ARRAY,
        COPY_OID_BOOL_ARRAY, COPY_OID_INT8_ARRAY, COPY_OID_INT8_ARRAY, COPY_OID_INT8_ARRAY,
        COPY_OID_TEXT_ARRAY, COPY_OID_INT8_ARRAY, COPY_OID_INT8_ARRAY, COPY_OID_INT8_ARRAY,
        COPY_OID_INT8_ARRAY, COPY_OID_INT8_ARRAY, COPY_OID_INT8_ARRAY};
    static const uint32_t elements[COUNTS_ARRAYS] = {COPY_OID_INT4, COPY_OID_INT8, COPY_OID_BOOL,
        COPY_OID_INT8, COPY_OID_INT8, COPY_OID_INT8, COPY_OID_TEXT, COPY_OID_INT8, COPY_OID_INT8,
        COPY_OID_INT8, COPY_OID_INT8, COPY_OID_INT8, COPY_OID_INT8};
    const char *values[COUNTS_ARRAYS];
    int lengths[COUNTS_ARRAYS], formats[COUNTS_ARRAYS];
    size_t at[COUNTS_ARRAYS + 1];
    PGresult *result;
    bool ok;

    if (counts->count == 0) {
        return true;
    }

    counts->rows.len = 0;
    for (unsigned i = 0; i < COUNTS_ARRAYS; i++) {
        uint8_t *begin = copy_room(
            &counts->rows, 24 + counts->count * 12 + (i == 6 ? 3 * counts->texts.len : 0));
        uint8_t *p;

        if (begin == NULL) {
            *error = (struct pg_error){.class = PG_CLASS_RETRY, .message = "out of memory"};
            return false;
        }

        p = copy_array_begin(begin, elements[i], (uint32_t) counts->count, i == 6);
        for (size_t n = 0; n < counts->count; n++) {
            p = click_counts_put(p, counts, &counts->counts[n], i);
        }

        at[i] = counts->rows.len + 4; /* a parameter is told its length apart */
        counts->rows.len += (size_t) (p - begin);
        lengths[i] = (int) (counts->rows.len - at[i]);
        formats[i] = 1;
    }

    for (unsigned i = 0; i < COUNTS_ARRAYS; i++) {
        values[i] = (const char *) counts->rows.data + at[i];
    }

    result = PQexecParams(conn, sql, COUNTS_ARRAYS, arrays, values, lengths, formats, 0);
    ok = PQresultStatus(result) == PGRES_TUPLES_OK;
    if (!ok) {
        pg_error_of(conn, result, error);
    }

    PQclear(result);
    return ok;
}
