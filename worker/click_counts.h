/*
 * Clicks of a transaction, added up by what reports tell apart: day, merchant, mode, campaign,
 * affiliate, link, first sub-id. What they come to is added to the rollups (sql/021_rollups.sql).
 */

#ifndef AFFILIATED_CLICK_COUNTS_H
#define AFFILIATED_CLICK_COUNTS_H

#include "protocol/click.h"
#include "worker/copy.h"

struct click_count {
    uint64_t merchant_id;
    uint64_t campaign_id;
    uint64_t affiliate_id;
    uint64_t link_id;
    uint32_t day; /* since 1970-01-01 */
    bool livemode;
    uint8_t sub_id_len;
    size_t sub_id; /* its place in `texts` */
    uint64_t clicks[AFF_VERDICTS];
};

struct click_table {
    struct click_count *counts;
    size_t count, size;
    uint32_t *slots; /* open addressing: 1 + index into counts; 0 is free */
    size_t slots_size;
};

/* Begin with one that is zero but for the key. Memory is kept from transaction to transaction. */
struct click_counts {
    uint8_t key[16]; /* random: visitors choose sub-ids, and must not be able to aim at the table */
    struct click_table by_sub_id; /* of clicks that have one */
    struct click_table by_link;   /* of the others; of all, once they are sent */
    struct click_table by_day;    /* of all, once they are sent */
    struct copy_buffer texts;     /* sub-ids, as they came */
    struct copy_buffer rows;      /* the arrays, as they are sent */
};

void click_counts_clear(struct click_counts *counts);
void click_counts_free(struct click_counts *counts);

/* False if memory is exhausted. */
bool click_counts_add(struct click_counts *counts, const struct aff_click *click);

/* Adds all of it to the rollups, within the open transaction; once, before they are cleared. */
bool click_counts_send(struct click_counts *counts, PGconn *conn, struct pg_error *error);

#endif
