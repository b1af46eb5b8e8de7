#include "worker/click_counts.h"

#include "protocol/siphash.h"

#include <stdlib.h>

#define DAY_MS         86400000ULL
#define COUNTS_INITIAL 1024 /* twice that many slots; a power of two */
#define COUNTS_ARRAYS  13   /* at most */

_Static_assert(AFF_SUB_ID_MAX <= UINT8_MAX, "sub_id_len");

static void
click_table_clear(struct click_table *table)
{
    if (table->count != 0) {
        memset(table->slots, 0, table->slots_size * sizeof(*table->slots));
    }

    table->count = 0;
}

void
click_counts_clear(struct click_counts *counts)
{
    click_table_clear(&counts->by_sub_id);
    click_table_clear(&counts->by_link);
    click_table_clear(&counts->by_day);
    counts->texts.len = 0;
}

static void
click_table_free(struct click_table *table)
{
    free(table->counts);
    free(table->slots);
    *table = (struct click_table){0};
}

void
click_counts_free(struct click_counts *counts)
{
    click_table_free(&counts->by_sub_id);
    click_table_free(&counts->by_link);
    click_table_free(&counts->by_day);
    copy_free(&counts->texts);
    copy_free(&counts->rows);
}

/* --- tables --- */

static struct aff_slice
click_count_sub_id(const struct click_counts *counts, const struct click_count *count)
{
    return count->sub_id_len == 0
               ? aff_slice(NULL, 0)
               : aff_slice(counts->texts.data + count->sub_id, count->sub_id_len);
}

static uint64_t
click_counts_hash(
    const struct click_counts *counts, const struct click_count *count, struct aff_slice sub_id)
{
    uint8_t name[4 * 8 + 5 + AFF_SUB_ID_MAX];

    memcpy(name, &count->merchant_id, 8);
    memcpy(name + 8, &count->campaign_id, 8);
    memcpy(name + 16, &count->affiliate_id, 8);
    memcpy(name + 24, &count->link_id, 8);
    memcpy(name + 32, &count->day, 4);
    name[36] = count->livemode;
    if (sub_id.len != 0) {
        memcpy(name + 37, sub_id.data, sub_id.len);
    }

    return aff_siphash13(counts->key, name, 37 + sub_id.len);
}

static bool
click_counts_same(const struct click_counts *counts, const struct click_count *a,
    const struct click_count *b, struct aff_slice sub_id)
{
    return a->link_id == b->link_id && a->merchant_id == b->merchant_id &&
           a->affiliate_id == b->affiliate_id && a->campaign_id == b->campaign_id &&
           a->day == b->day && a->livemode == b->livemode && a->sub_id_len == sub_id.len &&
           (sub_id.len == 0 ||
               memcmp(counts->texts.data + a->sub_id, sub_id.data, sub_id.len) == 0);
}

/* The slot that holds `count`, or is to. */
static uint32_t *
click_counts_slot(const struct click_counts *counts, const struct click_table *table,
    const struct click_count *count, struct aff_slice sub_id)
{
    size_t mask = table->slots_size - 1;
    size_t i = click_counts_hash(counts, count, sub_id) & mask;

    while (table->slots[i] != 0 &&
           !click_counts_same(counts, &table->counts[table->slots[i] - 1], count, sub_id)) {
        i = (i + 1) & mask;
    }

    return &table->slots[i];
}

static bool
click_counts_grow(const struct click_counts *counts, struct click_table *table)
{
    size_t size = table->size == 0 ? COUNTS_INITIAL : 2 * table->size;
    struct click_count *grown = realloc(table->counts, size * sizeof(*grown));
    uint32_t *slots;

    if (grown == NULL) {
        return false;
    }

    table->counts = grown;
    slots = calloc(2 * size, sizeof(*slots));
    if (slots == NULL) {
        return false;
    }

    free(table->slots);
    table->slots = slots;
    table->slots_size = 2 * size;
    table->size = size;
    for (size_t i = 0; i < table->count; i++) {
        const struct click_count *count = &table->counts[i];

        *click_counts_slot(counts, table, count, click_count_sub_id(counts, count)) =
            (uint32_t) i + 1;
    }

    return true;
}

/* The table's row of the same name, a new one if there is none; NULL if memory is exhausted. `name`
 * counts nothing itself. */
static struct click_count *
click_counts_row(struct click_counts *counts, struct click_table *table,
    const struct click_count *name, struct aff_slice sub_id)
{
    uint32_t *slot;

    if (table->count == table->size && !click_counts_grow(counts, table)) {
        return NULL;
    }

    slot = click_counts_slot(counts, table, name, sub_id);
    if (*slot == 0) {
        uint8_t *text = sub_id.len == 0 ? NULL : copy_room(&counts->texts, sub_id.len);
        struct click_count *row = &table->counts[table->count];

        if (sub_id.len != 0 && text == NULL) {
            return NULL;
        }

        *row = *name;
        row->sub_id_len = (uint8_t) sub_id.len;
        row->sub_id = counts->texts.len;
        if (text != NULL) {
            memcpy(text, sub_id.data, sub_id.len);
            counts->texts.len += sub_id.len;
        }

        *slot = (uint32_t) ++table->count;
    }

    return &table->counts[*slot - 1];
}

bool
click_counts_add(struct click_counts *counts, const struct aff_click *click)
{
    struct click_count name = {.merchant_id = click->merchant_id,
        .campaign_id = click->campaign_id,
        .affiliate_id = click->affiliate_id,
        .link_id = click->link_id,
        .day = (uint32_t) (aff_uuid_ms(click->id) / DAY_MS),
        .livemode = click->livemode};
    struct aff_slice sub_id = click->sub_ids[0];
    struct click_count *row = click_counts_row(
        counts, sub_id.len == 0 ? &counts->by_link : &counts->by_sub_id, &name, sub_id);

    if (row == NULL) {
        return false;
    }

    row->clicks[click->verdict]++;
    return true;
}

/* Adds the rows of one table to another, whose names have no sub-id and, if so, no link. */
static bool
click_counts_fold(
    struct click_counts *counts, const struct click_table *from, struct click_table *to, bool links)
{
    for (size_t i = 0; i < from->count; i++) {
        const struct click_count *count = &from->counts[i];
        struct click_count name = {.merchant_id = count->merchant_id,
            .campaign_id = count->campaign_id,
            .affiliate_id = count->affiliate_id,
            .link_id = links ? count->link_id : 0,
            .day = count->day,
            .livemode = count->livemode};
        struct click_count *row = click_counts_row(counts, to, &name, aff_slice(NULL, 0));

        if (row == NULL) {
            return false;
        }

        for (unsigned v = 0; v < AFF_VERDICTS; v++) {
            row->clicks[v] += count->clicks[v];
        }
    }

    return true;
}

/* --- sending --- */

/* What the arrays are of, in the order of the parameters. Verdicts come last, a field each. */
enum field {
    FIELD_DAY,
    FIELD_MERCHANT,
    FIELD_LIVEMODE,
    FIELD_CAMPAIGN,
    FIELD_AFFILIATE,
    FIELD_LINK,
    FIELD_SUB_ID,
    FIELD_VERDICTS,
};

static const struct {
    uint32_t element;
    Oid array;
} field_types[] = {
    [FIELD_DAY] = {COPY_OID_INT4, COPY_OID_INT4_ARRAY},
    [FIELD_MERCHANT] = {COPY_OID_INT8, COPY_OID_INT8_ARRAY},
    [FIELD_LIVEMODE] = {COPY_OID_BOOL, COPY_OID_BOOL_ARRAY},
    [FIELD_CAMPAIGN] = {COPY_OID_INT8, COPY_OID_INT8_ARRAY},
    [FIELD_AFFILIATE] = {COPY_OID_INT8, COPY_OID_INT8_ARRAY},
    [FIELD_LINK] = {COPY_OID_INT8, COPY_OID_INT8_ARRAY},
    [FIELD_SUB_ID] = {COPY_OID_TEXT, COPY_OID_TEXT_ARRAY},
    [FIELD_VERDICTS] = {COPY_OID_INT8, COPY_OID_INT8_ARRAY},
};

static uint8_t *
click_counts_put(uint8_t *p, const struct click_counts *counts, const struct click_count *count,
    unsigned field, unsigned verdict)
{
    switch (field) {
    case FIELD_DAY:
        return copy_put_int4(p, count->day);
    case FIELD_MERCHANT:
        return copy_put_int8(p, count->merchant_id);
    case FIELD_LIVEMODE:
        return copy_put_bool(p, count->livemode);
    case FIELD_CAMPAIGN:
        return copy_put_int8(p, count->campaign_id);
    case FIELD_AFFILIATE:
        return copy_put_int8(p, count->affiliate_id);
    case FIELD_LINK:
        return copy_put_int8(p, count->link_id);
    case FIELD_SUB_ID:
        /* The same text as in the row. */
        return copy_put_sanitized(p, click_count_sub_id(counts, count));
    default:
        return copy_put_int8(p, count->clicks[verdict]);
    }
}

/* Calls `sql` with an array for each field up to `last`, and one for each verdict. */
static bool
click_counts_call(struct click_counts *counts, const struct click_table *table, const char *sql,
    unsigned last, PGconn *conn, struct pg_error *error)
{
    unsigned arrays = last + 1 + AFF_VERDICTS;
    Oid types[COUNTS_ARRAYS];
    const char *values[COUNTS_ARRAYS];
    int lengths[COUNTS_ARRAYS], formats[COUNTS_ARRAYS];
    size_t at[COUNTS_ARRAYS];
    PGresult *result;
    bool ok;

    if (table->count == 0) {
        return true;
    }

    counts->rows.len = 0;
    for (unsigned i = 0; i < arrays; i++) {
        unsigned field = i <= last ? i : FIELD_VERDICTS;
        uint8_t *begin = copy_room(&counts->rows,
            24 + table->count * 12 + (field == FIELD_SUB_ID ? 3 * counts->texts.len : 0));
        uint8_t *p;

        if (begin == NULL) {
            *error = (struct pg_error){.class = PG_CLASS_RETRY, .message = "out of memory"};
            return false;
        }

        p = copy_array_begin(begin, field_types[field].element, (uint32_t) table->count, false);
        for (size_t n = 0; n < table->count; n++) {
            p = click_counts_put(p, counts, &table->counts[n], field, i - last - 1);
        }

        types[i] = field_types[field].array;
        at[i] = counts->rows.len + 4; /* a parameter is told its length apart */
        counts->rows.len += (size_t) (p - begin);
        lengths[i] = (int) (counts->rows.len - at[i]);
        formats[i] = 1;
    }

    for (unsigned i = 0; i < arrays; i++) {
        values[i] = (const char *) counts->rows.data + at[i];
    }

    result = PQexecParams(conn, sql, (int) arrays, types, values, lengths, formats, 0);
    ok = PQresultStatus(result) == PGRES_TUPLES_OK;
    if (!ok) {
        pg_error_of(conn, result, error);
    }

    PQclear(result);
    return ok;
}

/* In the order in which everybody locks their rows. */
bool
click_counts_send(struct click_counts *counts, PGconn *conn, struct pg_error *error)
{
    if (!click_counts_fold(counts, &counts->by_sub_id, &counts->by_link, true) ||
        !click_counts_fold(counts, &counts->by_link, &counts->by_day, false)) {
        *error = (struct pg_error){.class = PG_CLASS_RETRY, .message = "out of memory"};
        return false;
    }

    return click_counts_call(counts, &counts->by_link,
               "select affiliate.count_link_clicks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, "
               "$12)",
               FIELD_LINK, conn, error) &&
           click_counts_call(counts, &counts->by_sub_id,
               "select affiliate.count_sub_clicks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, "
               "$12, $13)",
               FIELD_SUB_ID, conn, error) &&
           click_counts_call(counts, &counts->by_day,
               "select affiliate.count_day_clicks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
               FIELD_AFFILIATE, conn, error);
}
