/*
 * From streams to PostgreSQL, exactly once: what the roles clicks and conversions have in common.
 *
 * One transaction holds a load of batches: the inbox rows of those it has not seen, their records,
 * and dead letters for what can't be stored. After COMMIT, and only then, each batch's bit is set
 * for the producer and its entry is acknowledged. See stream.c for why that is safe at any
 * instruction.
 */

#ifndef AFFILIATED_STREAM_H
#define AFFILIATED_STREAM_H

#include "protocol/batch.h"
#include "worker/copy.h"
#include "worker/role.h"

#define STREAM_GROUP      "affiliated"
#define STREAM_DETAIL_MAX 96

/* What both roles count. */
#define STREAM_COUNTERS                                                                            \
    (1ULL << COUNTER_TRANSACTIONS | 1ULL << COUNTER_ENTRIES | 1ULL << COUNTER_BYTES |              \
        1ULL << COUNTER_RECORDS | 1ULL << COUNTER_REPEATED | 1ULL << COUNTER_REPLAYED |            \
        1ULL << COUNTER_CLAIMED | 1ULL << COUNTER_DEAD_LETTERS | 1ULL << COUNTER_FORGED |          \
        1ULL << COUNTER_LOST | 1ULL << COUNTER_TRIMMED | 1ULL << COUNTER_FAILURES |                \
        1ULL << GAUGE_LENGTH | 1ULL << GAUGE_LAG | 1ULL << GAUGE_PENDING |                         \
        1ULL << GAUGE_OLDEST_MS)

enum entry_state {
    ENTRY_NEW,      /* verified; not known to be in the inbox */
    ENTRY_ACCEPTED, /* its inbox row was inserted in this transaction */
    ENTRY_REPEATED, /* applied before */
    ENTRY_JUNK,     /* no batch, or not made by a key of ours: its name means nothing */
    ENTRY_GONE,     /* pending, but Redis has its content no more */
};

struct entry {
    unsigned stream; /* index */
    enum entry_state state;
    const char *id;      /* stream id; like data, owned by the load's replies */
    const char *problem; /* ENTRY_JUNK: reason of the dead letter */
    struct aff_slice data;
    struct aff_batch batch; /* unless ENTRY_JUNK or ENTRY_GONE */
};

/* Entries for one transaction, with the replies that own their bytes. */
struct load {
    redisReply **replies;
    size_t replies_count, replies_size;
    struct entry *entries;
    size_t count, size;
    size_t bytes;
};

struct dead_letter {
    const struct entry *entry;
    int64_t record; /* position within its batch; -1: the batch as a whole */
    const char *reason;
    char detail[STREAM_DETAIL_MAX];
    struct aff_slice payload; /* a record's whole frame, the rest of a batch, or a whole entry */
};

struct stream;

struct stream_kind {
    enum aff_channel channel;
    const char *name; /* in keys: aff:<name>:N */

    /* After connecting to PostgreSQL, and from time to time: whatever the session needs. */
    bool (*prepare)(struct stream *stream, struct pg_error *error);

    /*
     * Within a transaction: stores the records of the entries that are ENTRY_ACCEPTED, giving what
     * can't be stored to stream_bury(). `only` < 0, or the one record to store.
     */
    bool (*store)(struct stream *stream, const struct entry *entries, size_t count, int64_t only,
        struct pg_error *error);

    /* Around all of a transaction's store(); either may be NULL. What store() has gathered for
     * finish() is what it stored: a record that was refused is in no savepoint of it. */
    void (*begin)(struct stream *stream);
    bool (*finish)(struct stream *stream, struct pg_error *error);

    /* Once a turn, outside of transactions. */
    bool (*turn)(struct stream *stream, struct pg_error *error);
};

struct stream {
    struct role *role;
    const struct stream_kind *kind;
    unsigned streams;
    int64_t batch_bytes;
    int64_t batch_delay_ms;

    struct redis redis;
    PGconn *pg;
    struct aff_keyring ring;

    char consumer[160];
    char (*keys)[64];              /* aff:<name>:N */
    char (*cursors)[REDIS_ID_MAX]; /* own pending entries read so far; empty: done, read new ones */
    unsigned read_count;           /* entries of each stream that the next read asks for */
    struct load load, next;        /* at work; read ahead while PostgreSQL commits */

    struct dead_letter *dead;
    size_t dead_count, dead_size;
    bool dead_failed; /* one could not be noted: the transaction must not commit */
    uint64_t stored;  /* records of this transaction */
    int64_t begun_ms, accepted_ms, stored_ms;

    char identity[PG_IDENTITY_MAX];
    int64_t next_gauge_ms, next_claim_ms, next_trim_ms, next_prepare_ms, next_turn_ms;
    int64_t next_warning_ms; /* that the replay window is cut */

    void *data; /* the kind's own */
};

/* One life of a role. The kind's data outlives it only as the caller wants. */
bool stream_serve(struct role *role, const struct stream_kind *kind, int64_t batch_bytes,
    int64_t batch_delay_ms, void *data);

/* A dead letter for this transaction; `detail` is copied, `payload` stays the entry's. */
void stream_bury(struct stream *stream, const struct entry *entry, int64_t record,
    const char *reason, const char *detail, struct aff_slice payload);

/* The frame from its header on, as a dead letter keeps it: type and version say how to read it, now
 * and later. */
static inline struct aff_slice
stream_frame_bytes(const struct aff_frame *frame)
{
    return aff_slice(frame->payload.data - AFF_FRAME_HEADER_BYTES, frame->length);
}

/*
 * Walks the frames of an entry: true with the next record and its position, false at the end. What
 * can't be walked is buried as corrupt_frame, unless the walk is `quiet`. Begin with a walk that is
 * zero but for that.
 */
struct walk {
    size_t offset;
    int64_t record;
    uint32_t seed;
    bool begun;
    bool quiet;
};

bool stream_walk(
    struct stream *stream, const struct entry *entry, struct walk *walk, struct aff_frame *frame);

#endif
