
/*
 * The spool: append-only logs in mapped, preallocated, recycled segment
 * files; one log per worker and channel.  Knows nothing of Redis.
 */

#ifndef _NGX_HTTP_AFFILIATE_SPOOL_H_INCLUDED_
#define _NGX_HTTP_AFFILIATE_SPOOL_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#if (NGX_THREADS)
#include <ngx_thread_pool.h>
#endif

#include "../protocol/batch.h"
#include "../protocol/frame.h"


typedef struct {
    ngx_path_t                      *path;      /* NULL: no spool */
    off_t                            max_size;  /* of the directory */
    size_t                           segment;   /* bytes of a segment file */
    ngx_msec_t                       sync;      /* clicks; 0 is off */
    ngx_uint_t                       batch_records;
    size_t                           batch_size;
    ngx_msec_t                       batch_delay;
    struct aff_keyring              *keyring;   /* set by the main conf */
#if (NGX_THREADS)
    ngx_thread_pool_t               *threads;
#endif
} ngx_http_affiliate_spool_conf_t;


typedef struct ngx_http_affiliate_log_s  ngx_http_affiliate_log_t;


/* Where a record ends: it is durable once everything before is. */
typedef struct {
    uint64_t                         segment;
    size_t                           offset;
} ngx_http_affiliate_position_t;


/*
 * Somebody who waits until a position is durable: on disk, or held by the
 * spool and Redis both.  Owned by the caller, who takes it back with
 * ngx_http_affiliate_spool_forget().  The handler gets NGX_OK, or NGX_ERROR
 * when the disk failed and Redis is away; it is called from a posted event,
 * once.
 */
typedef struct {
    ngx_queue_t                      queue;
    ngx_http_affiliate_position_t    position;
    void                           (*handler)(void *data, ngx_int_t rc);
    void                            *data;
    ngx_int_t                        rc;        /* for the handler */
    unsigned                         waiting:1;
} ngx_http_affiliate_waiter_t;


/*
 * "affiliate_spool path [max_size=] [segment=] [sync=] [threads=]", the last
 * one a thread pool's name: the directive's setter; conf is the
 * ngx_http_affiliate_spool_conf_t at cmd->offset.
 */
char *ngx_http_affiliate_spool_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

/*
 * Opens this worker's log of a channel.  Called in init_process of workers
 * only; does nothing that blocks for long: segments are made ready by the
 * thread pool (in the calling thread where nginx has none).  NULL only if out
 * of memory; a log without a usable segment takes no records and heals
 * itself.
 */
ngx_http_affiliate_log_t *ngx_http_affiliate_spool_open(
    ngx_http_affiliate_spool_conf_t *conf, enum aff_channel channel,
    ngx_cycle_t *cycle);

/* exit_process: closes; what is not acknowledged stays for another worker. */
void ngx_http_affiliate_spool_close(ngx_http_affiliate_log_t *log);

/*
 * Room for a frame with up to "size" bytes of payload, or NULL when the spool
 * can't take it (counted as dropped, logged once a minute).  The payload goes
 * to the returned address + AFF_FRAME_HEADER_BYTES.  Nothing is recorded
 * before ngx_http_affiliate_spool_commit(), which must follow before anything
 * else is asked of this log; giving up needs no call.
 */
u_char *ngx_http_affiliate_spool_reserve(ngx_http_affiliate_log_t *log,
    size_t size);

/*
 * The same for what may be lost: NULL, counted and logged nowhere, unless the
 * log has plenty of room and little that is not acknowledged.
 */
u_char *ngx_http_affiliate_spool_reserve_spare(ngx_http_affiliate_log_t *log,
    size_t size);

/* Records the reserved frame, and tells where it ends. */
ngx_http_affiliate_position_t ngx_http_affiliate_spool_commit(
    ngx_http_affiliate_log_t *log, enum aff_frame_type type, u_char version,
    size_t payload);

/* Waits for durability of w->position; see the structure. */
void ngx_http_affiliate_spool_wait(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_waiter_t *w);
void ngx_http_affiliate_spool_forget(ngx_http_affiliate_waiter_t *w);

/* Whether a record would be taken now: NGX_OK, NGX_BUSY (full or broken). */
ngx_int_t ngx_http_affiliate_spool_status(ngx_http_affiliate_log_t *log);


/*
 * What follows is for the shipper.
 */


/* A batch's way; only WAITING ones are to be sent. */
typedef enum {
    NGX_HTTP_AFFILIATE_BATCH_WAITING = 0,
    NGX_HTTP_AFFILIATE_BATCH_SENDING,     /* Redis has not replied yet */
    NGX_HTTP_AFFILIATE_BATCH_SENT,        /* Redis holds it */
    NGX_HTTP_AFFILIATE_BATCH_ACKED        /* PostgreSQL holds it */
} ngx_http_affiliate_batch_state_e;


typedef struct {
    uint32_t                         offset;   /* of its first frame */
    uint32_t                         length;   /* bytes of frames */
    uint32_t                         records;
    uint8_t                          state;
    uint8_t                          tries;    /* verifications in a row */
    uint64_t                         made;     /* unix ms of its oldest
                                                  record */
    uint64_t                         id[2];    /* of its stream entry */
    ngx_msec_t                       due;      /* to be verified */
} ngx_http_affiliate_batch_t;


typedef struct {
    ngx_queue_t                      queue;
    uint64_t                         spool_id;
    uint64_t                         number;
    enum aff_channel                 channel;
    uint32_t                         seed;     /* of its frames */

    ngx_fd_t                         fd;
    u_char                          *map;      /* NULL: an adopted one */
    size_t                           size;
    u_char                           name[24]; /* of the file */

    ngx_http_affiliate_batch_t      *batches;
    ngx_uint_t                       nbatches;
    ngx_uint_t                       capacity;
    uint64_t                         made;     /* unix ms */

    /* of the spool */
    size_t                           end;      /* of its records */
    size_t                           synced;   /* on disk up to here */
    size_t                           syncing;
    unsigned                         sealed:1; /* no more batches */
    unsigned                         busy:1;   /* a thread works on it */
    unsigned                         released:1;
    unsigned                         broken:1; /* its fdatasync() failed */
    unsigned                         keep:1;   /* has unreadable records that
                                                  may be valid */
    unsigned                         linked:1; /* its name is on disk */

    /* of the shipper, zeroed when the segment begins */
    ngx_uint_t                       flights;  /* commands that refer to it */
    ngx_uint_t                       waiting;  /* batches of that state */
    ngx_uint_t                       acked;
    ngx_uint_t                       next;     /* none before is WAITING */
    ngx_uint_t                       oldest;   /* all before are ACKED */
    uint64_t                         unacked_bytes;
    uint64_t                         waiting_records;
    ngx_msec_t                       poll;     /* when to ask for its acks */
    ngx_msec_t                       interval;
    unsigned                         polling:1;
    unsigned                         verifying:1;
    unsigned                         polled:1; /* since it was adopted */
    unsigned                         forged:1; /* a seal, as was logged */
} ngx_http_affiliate_segment_t;


typedef void (*ngx_http_affiliate_batch_pt)(void *data,
    ngx_http_affiliate_segment_t *seg, ngx_http_affiliate_batch_t *batch);
typedef void (*ngx_http_affiliate_segment_pt)(void *data,
    ngx_http_affiliate_segment_t *seg);


/*
 * From now on handler() is called for each batch that is closed, and, with a
 * batch of NULL, when a segment is sealed.  It must not call back.  What was
 * closed before is in the segments.
 */
void ngx_http_affiliate_spool_watch(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_batch_pt handler, void *data);

/* Whether batches can be sent now: then they are closed sooner. */
void ngx_http_affiliate_spool_wanted(ngx_http_affiliate_log_t *log,
    ngx_uint_t wanted);

/* The log's segments, oldest first; the last one may still grow. */
ngx_queue_t *ngx_http_affiliate_spool_segments(ngx_http_affiliate_log_t *log);

/* The first batch that is not ACKED, or nbatches. */
ngx_uint_t ngx_http_affiliate_spool_oldest(ngx_http_affiliate_segment_t *seg);

/* Records that are in no batch yet, their bytes, and the oldest's unix ms. */
ngx_uint_t ngx_http_affiliate_spool_tail(ngx_http_affiliate_log_t *log,
    size_t *bytes, uint64_t *oldest);

/* Redis holds everything up to here: wakes who waits for that. */
void ngx_http_affiliate_spool_held(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_position_t *position);

/*
 * Copies a batch's frames to buf (batch->length bytes); from the file where
 * the segment is not mapped.  NGX_ERROR when it can't be read.
 */
ngx_int_t ngx_http_affiliate_spool_payload(ngx_http_affiliate_segment_t *seg,
    ngx_http_affiliate_batch_t *batch, u_char *buf);

/*
 * A sealed segment all of which PostgreSQL holds: recycled, or removed.  The
 * log is NULL for an adopted one.  The segment is gone for the caller.
 */
void ngx_http_affiliate_spool_release(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_segment_t *seg);

/*
 * Looks for the segments of dead workers from now on, in the thread pool or in
 * small steps, and gives each, checked and cut into the batches it had, to
 * handler(), as long as no more than "limit" of them are not released yet.
 * One a process; NGX_ERROR if out of memory.
 */
ngx_int_t ngx_http_affiliate_spool_adopt(ngx_http_affiliate_spool_conf_t *conf,
    ngx_uint_t limit, ngx_http_affiliate_segment_pt handler, void *data);

/* Ends it.  Segments given are left to another worker by the next call. */
void ngx_http_affiliate_spool_adopt_done(void);

/* Lets go of an adopted segment that is not released. */
void ngx_http_affiliate_spool_abandon(ngx_http_affiliate_segment_t *seg);


#endif /* _NGX_HTTP_AFFILIATE_SPOOL_H_INCLUDED_ */
