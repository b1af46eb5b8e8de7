
/*
 * Segment files.
 *
 * A segment is a file of fixed size in the spool directory: a page of header
 * (protocol/segment.h), then frames.  It is allocated in full before it is
 * mapped and never truncated, so a store into it can't find a page without a
 * block.  The process that uses it holds its flock(); when that process dies,
 * in whatever way, the kernel drops the lock, and another worker adopts the
 * file.  Names mean nothing and never change; the header says what a file is.
 *
 * Why kill -9 between any two instructions loses nothing that was committed,
 * and invents nothing: the pages belong to the kernel, so what the process has
 * stored is what the next one reads, in the order of the stores as far as the
 * compiler keeps it; each step below ends in one aligned store with release
 * order, or in one system call.
 *
 *   - A new file is made under a name that nobody adopts; it is renamed when
 *     it is locked, allocated and has its header.
 *   - A segment that is recycled becomes AFSPFREE by one write of 8 bytes, gets
 *     its new header and a zero where its first frame will have its length,
 *     and becomes AFSPUSED by one store.  Frames of its former life do not
 *     verify: the seed of their CRC has gone.
 *   - A frame is complete before its length is stored; the length behind it
 *     was zeroed before that.  So a reader sees a chain of whole frames, and
 *     then a zero.
 *   - Batches are closed by boundary frames, written like any other frame
 *     before the batch is sent.  Room for one is kept at the end of a segment.
 *     An adopted segment is never written to: what follows its last boundary
 *     is its last batch, and is so for every later adopter too, because the
 *     chain of frames does not change any more.  Since batches are closed at a
 *     size far below AFF_BATCH_MAX by whoever writes, that batch fits.
 *   - A segment is made AFSPFREE, or unlinked, after PostgreSQL has
 *     acknowledged the last of its batches.  Dying before that means they are
 *     sent again, under the same names with the same bytes.
 *
 * After a power loss pages may be missing in any combination.  The chain then
 * ends at the first frame that does not verify.  If whole frames of the same
 * segment follow behind it, something else than the end was lost: the file is
 * kept aside after what precedes was delivered.
 *
 * Appending makes no system call.  All that may sleep (allocating, faulting
 * pages in, fdatasync(), unlink(), reading foreign files) is a job of nginx's
 * thread pool; in an nginx without threads jobs are done in small pieces in
 * the loop, and fdatasync() is not: durability then means that Redis holds the
 * batch too, except where there is no Redis at all.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>

#include <dirent.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>

#if (NGX_LINUX)
#include <linux/fs.h>
#include <sys/ioctl.h>
#endif

#include "ngx_http_affiliate_queue.h"
#include "ngx_http_affiliate_spool.h"
#include "ngx_http_affiliate_status.h"
#include "../protocol/bytes.h"
#include "../protocol/fault.h"
#include "../protocol/segment.h"


#define NGX_HTTP_AFFILIATE_SPOOL_BOUNDARY     24   /* a whole boundary frame */
/* Kept free behind the records: a boundary, and the zero that ends a chain. */
#define NGX_HTTP_AFFILIATE_SPOOL_RESERVE                                      \
    (NGX_HTTP_AFFILIATE_SPOOL_BOUNDARY + 8)

#define NGX_HTTP_AFFILIATE_SPOOL_SEGMENT_MIN  (256 * 1024)
/* Batches a segment has at most: memory of 48 bytes each until it's released */
#define NGX_HTTP_AFFILIATE_SPOOL_BATCHES      4096
#define NGX_HTTP_AFFILIATE_SPOOL_BATCH_MAX    (AFF_BATCH_MAX / 2)
#define NGX_HTTP_AFFILIATE_SPOOL_SPARES       4
#define NGX_HTTP_AFFILIATE_SPOOL_SPARE        64   /* what may be lost is taken
                                                      up to one in ... of the
                                                      spool, a log */
#define NGX_HTTP_AFFILIATE_SPOOL_GROUP        8    /* files of an fdatasync */
#define NGX_HTTP_AFFILIATE_SPOOL_CHUNK        (256 * 1024)
#define NGX_HTTP_AFFILIATE_SPOOL_PIECE        (128 * 1024)
#define NGX_HTTP_AFFILIATE_SPOOL_ENTRIES      32   /* of a directory, a step */
#define NGX_HTTP_AFFILIATE_SPOOL_ALIENS       16

/* Milliseconds. */
#define NGX_HTTP_AFFILIATE_SPOOL_UNWANTED     1000 /* batches, Redis away */
#define NGX_HTTP_AFFILIATE_SPOOL_RETRY        1000
#define NGX_HTTP_AFFILIATE_SPOOL_HOUSEKEEP    10000
#define NGX_HTTP_AFFILIATE_SPOOL_SCAN         5000
#define NGX_HTTP_AFFILIATE_SPOOL_AGE          3600000
/* Seconds. */
#define NGX_HTTP_AFFILIATE_SPOOL_LOG          60
#define NGX_HTTP_AFFILIATE_SPOOL_UNFINISHED   60

#define NGX_HTTP_AFFILIATE_SPOOL_SUFFIX       ".spool"
#define NGX_HTTP_AFFILIATE_SPOOL_NEW          ".new"
#define NGX_HTTP_AFFILIATE_SPOOL_CORRUPT      ".corrupt"
#define NGX_HTTP_AFFILIATE_SPOOL_NAME_LEN     16
#define NGX_HTTP_AFFILIATE_SPOOL_PATH_LEN     32   /* with any suffix */


/* What a thread, or a step in the loop, does; one at a time of each. */
typedef struct ngx_http_affiliate_job_s  ngx_http_affiliate_job_t;

struct ngx_http_affiliate_job_s {
    void                            *ident[4];
#if (NGX_THREADS)
    ngx_thread_task_t                task;
#endif
    ngx_event_t                      event;
    void                           (*run)(void *data);   /* may sleep */
    void                           (*done)(void *data);  /* in the loop */
    void                            *data;
    unsigned                         busy:1;
    unsigned                         threaded:1;
};


typedef struct {
    ngx_http_affiliate_job_t         job;
    ngx_http_affiliate_segment_t    *segment;
    ngx_err_t                        err;
    const char                      *failed;   /* NULL: it is ready */
    unsigned                         quick:1;  /* the first one */
} ngx_http_affiliate_prepare_t;


typedef struct {
    ngx_http_affiliate_job_t         job;
    ngx_http_affiliate_segment_t    *segments[NGX_HTTP_AFFILIATE_SPOOL_GROUP];
    ngx_err_t                        err[NGX_HTTP_AFFILIATE_SPOOL_GROUP];
    ngx_uint_t                       linked[NGX_HTTP_AFFILIATE_SPOOL_GROUP];
    ngx_uint_t                       n;
} ngx_http_affiliate_sync_t;


typedef struct {
    ngx_http_affiliate_job_t         job;
    ngx_queue_t                      waiting;
    ngx_queue_t                      running;
} ngx_http_affiliate_dispose_t;


struct ngx_http_affiliate_log_s {
    void                            *ident[4];

    /* appending */
    u_char                          *pos;
    u_char                          *end;         /* of room for records */
    u_char                          *batch;       /* the open batch's start */
    uint32_t                         seed;
    ngx_uint_t                       records;     /* in the open batch */
    uint64_t                         made;        /* of its first record */
    ngx_http_affiliate_segment_t    *active;      /* NULL: none yet */

    size_t                           batch_size;
    ngx_uint_t                       batch_records;
    ngx_msec_t                       batch_delay;
    ngx_event_t                      tick;        /* closes the open batch */

    ngx_http_affiliate_spool_conf_t *conf;
    enum aff_channel                 channel;
    uint64_t                         spool_id;
    uint64_t                         number;      /* of the next segment */
    size_t                           size;        /* of its segments */

    ngx_queue_t                      segments;    /* the active one is last */
    ngx_http_affiliate_segment_t    *ready;       /* to be the next */
    ngx_queue_t                      spares;      /* to be recycled */
    ngx_uint_t                       nspares;
    time_t                           spared;      /* when one was needed */

    ngx_http_affiliate_prepare_t     prepare;
    ngx_http_affiliate_sync_t        sync;
    ngx_http_affiliate_dispose_t     dispose;

    ngx_queue_t                      waiters;     /* in order of position */
    ngx_queue_t                      woken;
    ngx_event_t                      wake;
    ngx_event_t                      group;       /* begins an fdatasync() */
    ngx_http_affiliate_position_t    held;

    ngx_event_t                      flush;       /* the sync interval */
    ngx_event_t                      housekeep;

    ngx_http_affiliate_batch_pt      handler;
    void                            *data;

    ngx_uint_t                       dropped;     /* since the last line */
    time_t                           complained;
    time_t                           warned;
    time_t                           broken;
    unsigned                         wanted:1;
    unsigned                         failing:1;
    unsigned                         disk_failed:1;
};


typedef enum {
    NGX_HTTP_AFFILIATE_CHECK_WALK = 0,
    NGX_HTTP_AFFILIATE_CHECK_RESYNC,
    NGX_HTTP_AFFILIATE_CHECK_DONE
} ngx_http_affiliate_check_e;


/* The search for orphans; one a process. */
typedef struct {
    void                            *ident[4];
    ngx_http_affiliate_spool_conf_t *conf;
    ngx_http_affiliate_segment_pt    handler;
    void                            *data;
    ngx_uint_t                       limit;
    ngx_uint_t                       held;        /* given, not released */
    ngx_event_t                      timer;

    ngx_http_affiliate_job_t         job;
    ngx_http_affiliate_dispose_t     dispose;

    /* of the job */
    DIR                             *dir;
    ngx_http_affiliate_segment_t    *segment;     /* being checked */
    u_char                          *buf;
    size_t                           at;
    size_t                           first;       /* of the open batch */
    size_t                           last;        /* the chain ends there */
    ngx_uint_t                       records;
    ngx_http_affiliate_check_e       state;
    ngx_uint_t                       threaded;
    ngx_uint_t                       finished;    /* a pass */

    /* what it leaves for the log */
    ngx_uint_t                       adopted;
    u_char                           corrupt[
                                        NGX_HTTP_AFFILIATE_SPOOL_PATH_LEN];
    u_char                           alien[NGX_HTTP_AFFILIATE_SPOOL_PATH_LEN];
    ngx_err_t                        err;         /* 0: of another version */
    ino_t                            aliens[NGX_HTTP_AFFILIATE_SPOOL_ALIENS];
    ngx_uint_t                       naliens;
} ngx_http_affiliate_adopter_t;


static void ngx_http_affiliate_job_init(ngx_http_affiliate_job_t *job,
    void (*run)(void *data), void (*done)(void *data), void *data);
static ngx_int_t ngx_http_affiliate_job_post(
    ngx_http_affiliate_spool_conf_t *conf, ngx_http_affiliate_job_t *job);
#if (NGX_THREADS)
static void ngx_http_affiliate_job_thread(void *data, ngx_log_t *log);
#endif
static void ngx_http_affiliate_job_done(ngx_event_t *ev);

static int ngx_http_affiliate_spool_open_dir(
    ngx_http_affiliate_spool_conf_t *conf);
static void ngx_http_affiliate_spool_lock_dir(int dir, ngx_uint_t tries);
static off_t ngx_http_affiliate_spool_used(int dir);
static const char *ngx_http_affiliate_spool_create(
    ngx_http_affiliate_spool_conf_t *conf, ngx_http_affiliate_segment_t *seg,
    ngx_uint_t tries, ngx_uint_t hurry);
static const char *ngx_http_affiliate_spool_allocate(
    ngx_http_affiliate_spool_conf_t *conf, ngx_http_affiliate_segment_t *seg,
    int dir, const char *name);
static void ngx_http_affiliate_spool_in_place(int fd);
static const char *ngx_http_affiliate_spool_map(
    ngx_http_affiliate_segment_t *seg, ngx_uint_t hurry);
static void ngx_http_affiliate_spool_header(ngx_http_affiliate_segment_t *seg);
static const char *ngx_http_affiliate_spool_populate(
    ngx_http_affiliate_segment_t *seg, ngx_uint_t hurry);
static const char *ngx_http_affiliate_spool_populate_piece(u_char *p,
    size_t size);
static u_char *ngx_http_affiliate_spool_path(u_char *path,
    ngx_http_affiliate_segment_t *seg, const char *suffix);
static void ngx_http_affiliate_spool_remove(
    ngx_http_affiliate_spool_conf_t *conf, ngx_http_affiliate_segment_t *seg);
static void ngx_http_affiliate_spool_free(ngx_http_affiliate_segment_t *seg);

static void ngx_http_affiliate_spool_prepare(ngx_http_affiliate_log_t *log);
static ngx_http_affiliate_segment_t *ngx_http_affiliate_spool_blank(
    ngx_http_affiliate_log_t *log);
static void ngx_http_affiliate_spool_prepare_run(void *data);
static void ngx_http_affiliate_spool_prepare_done(void *data);
static ngx_int_t ngx_http_affiliate_spool_rotate(
    ngx_http_affiliate_log_t *log);
static void ngx_http_affiliate_spool_room(ngx_http_affiliate_log_t *log);
static void ngx_http_affiliate_spool_seal(ngx_http_affiliate_log_t *log);
static void ngx_http_affiliate_spool_cut(ngx_http_affiliate_log_t *log);
static void ngx_http_affiliate_spool_drop(ngx_http_affiliate_log_t *log);
static void ngx_http_affiliate_spool_tick_handler(ngx_event_t *ev);
static void ngx_http_affiliate_spool_housekeep_handler(ngx_event_t *ev);

static size_t ngx_http_affiliate_spool_segment_end(
    ngx_http_affiliate_log_t *log, ngx_http_affiliate_segment_t *seg);
static void ngx_http_affiliate_spool_sync(ngx_http_affiliate_log_t *log);
static void ngx_http_affiliate_spool_sync_run(void *data);
static void ngx_http_affiliate_spool_sync_done(void *data);
static void ngx_http_affiliate_spool_broken(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_segment_t *seg, ngx_err_t err);
static void ngx_http_affiliate_spool_writeback(ngx_http_affiliate_log_t *log);
static uint64_t ngx_http_affiliate_spool_exposed(
    ngx_http_affiliate_log_t *log);
static void ngx_http_affiliate_spool_flush_handler(ngx_event_t *ev);
static void ngx_http_affiliate_spool_group_handler(ngx_event_t *ev);
static ngx_int_t ngx_http_affiliate_spool_durable(
    ngx_http_affiliate_log_t *log, ngx_http_affiliate_position_t *position);
static void ngx_http_affiliate_spool_wake(ngx_http_affiliate_log_t *log);
static void ngx_http_affiliate_spool_wake_handler(ngx_event_t *ev);

static void ngx_http_affiliate_spool_recycle(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_segment_t *seg);
static void ngx_http_affiliate_spool_dispose(
    ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_dispose_t *dispose, ngx_http_affiliate_segment_t *seg);
static void ngx_http_affiliate_spool_dispose_post(
    ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_dispose_t *dispose);
static void ngx_http_affiliate_log_dispose_run(void *data);
static void ngx_http_affiliate_log_dispose_done(void *data);
static void ngx_http_affiliate_adopt_dispose_run(void *data);
static void ngx_http_affiliate_adopt_dispose_done(void *data);
static void ngx_http_affiliate_spool_dispose_run(
    ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_dispose_t *dispose);
static void ngx_http_affiliate_spool_dispose_free(
    ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_dispose_t *dispose);

static void ngx_http_affiliate_adopt_timer_handler(ngx_event_t *ev);
static void ngx_http_affiliate_adopt_run(void *data);
static void ngx_http_affiliate_adopt_done(void *data);
static void ngx_http_affiliate_adopt_search(ngx_http_affiliate_adopter_t *ad);
static ngx_int_t ngx_http_affiliate_adopt_try(ngx_http_affiliate_adopter_t *ad,
    int dir, const char *name);
static ngx_int_t ngx_http_affiliate_adopt_header(
    ngx_http_affiliate_adopter_t *ad, int dir,
    ngx_http_affiliate_segment_t *seg, struct stat *st);
static ngx_int_t ngx_http_affiliate_adopt_alien(
    ngx_http_affiliate_adopter_t *ad, const char *name, ino_t ino,
    ngx_err_t err);
static void ngx_http_affiliate_adopt_unfinished(int dir, const char *name);
static void ngx_http_affiliate_adopt_check(ngx_http_affiliate_adopter_t *ad);
static ngx_int_t ngx_http_affiliate_adopt_frame(
    ngx_http_affiliate_adopter_t *ad, struct aff_frame *frame, size_t offset);
static ngx_int_t ngx_http_affiliate_adopt_batch(
    ngx_http_affiliate_adopter_t *ad, size_t end);
static char *ngx_http_affiliate_spool_parameter(ngx_conf_t *cf,
    ngx_http_affiliate_spool_conf_t *scf, ngx_str_t *value, ngx_str_t *threads);


static const char  ngx_http_affiliate_spool_no_room[] = "max_size";

static ngx_http_affiliate_adopter_t  *ngx_http_affiliate_adopter;


static ngx_inline uint64_t
ngx_http_affiliate_spool_now(void)
{
    ngx_time_t  *tp;

    tp = ngx_timeofday();

    return (uint64_t) tp->sec * 1000 + tp->msec;
}


static const char *
ngx_http_affiliate_spool_channel(enum aff_channel channel)
{
    return (channel == AFF_CHANNEL_CLICKS) ? "clicks" : "conversions";
}


ngx_http_affiliate_log_t *
ngx_http_affiliate_spool_open(ngx_http_affiliate_spool_conf_t *conf,
    enum aff_channel channel, ngx_cycle_t *cycle)
{
    ngx_http_affiliate_log_t  *log;

    log = ngx_calloc(sizeof(ngx_http_affiliate_log_t), cycle->log);
    if (log == NULL) {
        return NULL;
    }

    if (getrandom(&log->spool_id, sizeof(log->spool_id), 0)
        != sizeof(log->spool_id))
    {
        ngx_log_error(NGX_LOG_ALERT, cycle->log, ngx_errno,
                      "getrandom() failed");
        ngx_free(log);
        return NULL;
    }

    log->ident[3] = (void *) -1;
    log->conf = conf;
    log->channel = channel;

    /* conversions are few, and each worker has a log of each channel */

    log->size = (channel == AFF_CHANNEL_CLICKS) ? conf->segment
                : ngx_max(conf->segment / 4,
                          NGX_HTTP_AFFILIATE_SPOOL_SEGMENT_MIN);

    log->batch_size = ngx_min(conf->batch_size,
                              NGX_HTTP_AFFILIATE_SPOOL_BATCH_MAX);
    log->batch_records = conf->batch_records;
    log->batch_delay = conf->batch_delay;
    log->spared = ngx_time();

    ngx_queue_init(&log->segments);
    ngx_queue_init(&log->spares);
    ngx_queue_init(&log->waiters);
    ngx_queue_init(&log->woken);
    ngx_queue_init(&log->dispose.waiting);
    ngx_queue_init(&log->dispose.running);

    ngx_http_affiliate_job_init(&log->prepare.job,
                                ngx_http_affiliate_spool_prepare_run,
                                ngx_http_affiliate_spool_prepare_done, log);
    ngx_http_affiliate_job_init(&log->sync.job,
                                ngx_http_affiliate_spool_sync_run,
                                ngx_http_affiliate_spool_sync_done, log);
    ngx_http_affiliate_job_init(&log->dispose.job,
                                ngx_http_affiliate_log_dispose_run,
                                ngx_http_affiliate_log_dispose_done, log);

    log->tick.handler = ngx_http_affiliate_spool_tick_handler;
    log->flush.handler = ngx_http_affiliate_spool_flush_handler;
    log->housekeep.handler = ngx_http_affiliate_spool_housekeep_handler;
    log->wake.handler = ngx_http_affiliate_spool_wake_handler;
    log->group.handler = ngx_http_affiliate_spool_group_handler;

    log->tick.data = log;
    log->flush.data = log;
    log->housekeep.data = log;
    log->wake.data = log;
    log->group.data = log;

    log->tick.log = cycle->log;
    log->flush.log = cycle->log;
    log->housekeep.log = cycle->log;
    log->wake.log = cycle->log;
    log->group.log = cycle->log;

    log->tick.cancelable = 1;
    log->flush.cancelable = 1;
    log->housekeep.cancelable = 1;

    /*
     * The first segment is needed by the first request: it is made here, from
     * the page cache alone.
     */

    log->prepare.segment = ngx_http_affiliate_spool_blank(log);

    if (log->prepare.segment != NULL) {
        log->prepare.quick = 1;
        log->prepare.job.busy = 1;
        ngx_http_affiliate_spool_prepare_run(log);
        log->prepare.job.busy = 0;
        log->prepare.quick = 0;
        ngx_http_affiliate_spool_prepare_done(log);
    }

    ngx_add_timer(&log->housekeep, log->failing
                                   ? NGX_HTTP_AFFILIATE_SPOOL_RETRY
                                   : NGX_HTTP_AFFILIATE_SPOOL_HOUSEKEEP);

    return log;
}


void
ngx_http_affiliate_spool_close(ngx_http_affiliate_log_t *log)
{
    ngx_queue_t                   *q;
    ngx_http_affiliate_segment_t  *seg;

    /*
     * The thread pools have ended before: a job that is marked busy has done
     * its work, and nobody is left to be told.
     */

    if (log->active) {
        log->active->end = log->pos - log->active->map;
    }

    if (log->prepare.job.busy && log->prepare.segment) {
        ngx_queue_insert_tail(&log->spares, &log->prepare.segment->queue);
    }

    if (log->ready) {
        ngx_queue_insert_tail(&log->spares, &log->ready->queue);
    }

    while (!ngx_queue_empty(&log->segments)) {
        q = ngx_http_affiliate_queue_take(&log->segments);
        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);

        if (seg->acked == seg->nbatches
            && (seg != log->active || log->records == 0))
        {
            ngx_http_affiliate_spool_remove(log->conf, seg);
        }

        ngx_http_affiliate_spool_free(seg);
    }

    while (!ngx_queue_empty(&log->spares)) {
        q = ngx_http_affiliate_queue_take(&log->spares);
        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);

        ngx_http_affiliate_spool_remove(log->conf, seg);
        ngx_http_affiliate_spool_free(seg);
    }

    ngx_http_affiliate_spool_dispose_free(log->conf, &log->dispose);

    if (log->tick.timer_set) {
        ngx_del_timer(&log->tick);
    }

    if (log->flush.timer_set) {
        ngx_del_timer(&log->flush);
    }

    if (log->housekeep.timer_set) {
        ngx_del_timer(&log->housekeep);
    }

    if (log->wake.posted) {
        ngx_delete_posted_event(&log->wake);
    }

    if (log->group.posted) {
        ngx_delete_posted_event(&log->group);
    }

    ngx_http_affiliate_stat_set(spool_full[log->channel], 0);

    /* a job's completion may still be in nginx's hands: the log stays */
}


u_char *
ngx_http_affiliate_spool_reserve(ngx_http_affiliate_log_t *log, size_t size)
{
    size_t  need;

    if (size > AFF_FRAME_PAYLOAD_MAX) {
        ngx_http_affiliate_stat_inc(dropped[log->channel]);
        return NULL;
    }

    need = aff_frame_length(size);

    if (need > (size_t) (log->end - log->pos)
        && ngx_http_affiliate_spool_rotate(log) != NGX_OK)
    {
        ngx_http_affiliate_spool_drop(log);
        return NULL;
    }

    return log->pos;
}


u_char *
ngx_http_affiliate_spool_reserve_spare(ngx_http_affiliate_log_t *log,
    size_t size)
{
    off_t         held;
    ngx_queue_t  *q;

    /* another segment at hand, so that this takes nobody's last room */

    if (log->ready == NULL
        && (size_t) (log->end - log->pos)
           < AFF_FRAME_MAX + aff_frame_length(size))
    {
        return NULL;
    }

    held = 0;

    for (q = ngx_queue_head(&log->segments);
         q != ngx_queue_sentinel(&log->segments);
         q = ngx_queue_next(q))
    {
        held += (off_t) log->size;

        if (held > (off_t) (2 * log->size)
            && held > log->conf->max_size / NGX_HTTP_AFFILIATE_SPOOL_SPARE)
        {
            return NULL;
        }
    }

    return ngx_http_affiliate_spool_reserve(log, size);
}


ngx_http_affiliate_position_t
ngx_http_affiliate_spool_commit(ngx_http_affiliate_log_t *log,
    enum aff_frame_type type, u_char version, size_t payload)
{
    ngx_msec_t                     delay;
    ngx_http_affiliate_position_t  position;

    /* the chain ends behind this frame, before this frame is in it */
    ngx_memzero(log->pos + aff_frame_length(payload), sizeof(uint32_t));

    log->pos += aff_frame_seal(log->pos, type, version, payload, log->seed);

    position.segment = log->active->number;
    position.offset = log->pos - log->active->map;

    ngx_http_affiliate_stat_inc(recorded[log->channel]);

    if (log->records++ == 0) {
        log->made = ngx_http_affiliate_spool_now();

        if (!log->tick.timer_set) {
            delay = log->wanted ? log->batch_delay
                                : NGX_HTTP_AFFILIATE_SPOOL_UNWANTED;
            ngx_add_timer(&log->tick, delay);
        }
    }

    if ((size_t) (log->pos - log->batch) >= log->batch_size
        || log->records >= log->batch_records)
    {
        ngx_http_affiliate_spool_cut(log);
    }

    return position;
}


ngx_int_t
ngx_http_affiliate_spool_status(ngx_http_affiliate_log_t *log)
{
    if (log->ready || log->end - log->pos >= AFF_FRAME_MAX) {
        return NGX_OK;
    }

    return NGX_BUSY;
}


void
ngx_http_affiliate_spool_watch(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_batch_pt handler, void *data)
{
    log->handler = handler;
    log->data = data;
}


void
ngx_http_affiliate_spool_wanted(ngx_http_affiliate_log_t *log,
    ngx_uint_t wanted)
{
    if (log->wanted == wanted) {
        return;
    }

    log->wanted = wanted;

    if (wanted && log->records) {
        ngx_add_timer(&log->tick, log->batch_delay);
    }

    if (!wanted && log->disk_failed) {
        ngx_http_affiliate_spool_wake(log);
    }
}


ngx_queue_t *
ngx_http_affiliate_spool_segments(ngx_http_affiliate_log_t *log)
{
    return &log->segments;
}


ngx_uint_t
ngx_http_affiliate_spool_oldest(ngx_http_affiliate_segment_t *seg)
{
    while (seg->oldest < seg->nbatches
           && seg->batches[seg->oldest].state
              == NGX_HTTP_AFFILIATE_BATCH_ACKED)
    {
        seg->oldest++;
    }

    return seg->oldest;
}


ngx_uint_t
ngx_http_affiliate_spool_tail(ngx_http_affiliate_log_t *log, size_t *bytes,
    uint64_t *oldest)
{
    *bytes = log->pos - log->batch;
    *oldest = log->records ? log->made : 0;

    return log->records;
}


ngx_int_t
ngx_http_affiliate_spool_payload(ngx_http_affiliate_segment_t *seg,
    ngx_http_affiliate_batch_t *batch, u_char *buf)
{
    size_t   done;
    ssize_t  n;

    if (seg->map) {
        ngx_memcpy(buf, seg->map + batch->offset, batch->length);
        return NGX_OK;
    }

    for (done = 0; done < batch->length; done += n) {

        n = pread(seg->fd, buf + done, batch->length - done,
                  (off_t) (batch->offset + done));

        if (n == -1 && ngx_errno == NGX_EINTR) {
            n = 0;
            continue;
        }

        if (n <= 0) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


void
ngx_http_affiliate_spool_release(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_segment_t *seg)
{
    ngx_queue_remove(&seg->queue);

    ngx_http_affiliate_stat_inc(released);

    (void) AFF_FAULT("spool.releasing");

    if (log == NULL) {
        ngx_http_affiliate_adopter->held--;
        ngx_http_affiliate_spool_dispose(ngx_http_affiliate_adopter->conf,
                                         &ngx_http_affiliate_adopter->dispose,
                                         seg);
        return;
    }

    /*
     * By a call, not by a store: after all this time the page may have to be
     * allocated again where the file system copies on write.
     */

    if (pwrite(seg->fd, AFF_SEGMENT_MARK_FREE, AFF_SEGMENT_MARK_BYTES, 0)
        != AFF_SEGMENT_MARK_BYTES)
    {
        seg->broken = 1;
    }

    (void) AFF_FAULT("spool.released");

    if (seg->busy) {
        /* an fdatasync() has its descriptor */
        seg->released = 1;
        return;
    }

    ngx_http_affiliate_spool_recycle(log, seg);
}


static void
ngx_http_affiliate_spool_recycle(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_segment_t *seg)
{
    if (log->nspares >= NGX_HTTP_AFFILIATE_SPOOL_SPARES || seg->broken) {
        ngx_http_affiliate_spool_dispose(log->conf, &log->dispose, seg);
        return;
    }

    ngx_queue_insert_tail(&log->spares, &seg->queue);
    log->nspares++;

    if (log->failing) {
        ngx_http_affiliate_spool_prepare(log);
    }
}


static void
ngx_http_affiliate_job_init(ngx_http_affiliate_job_t *job,
    void (*run)(void *data), void (*done)(void *data), void *data)
{
    job->ident[3] = (void *) -1;
    job->run = run;
    job->done = done;
    job->data = data;

    job->event.handler = ngx_http_affiliate_job_done;
    job->event.data = job;
    job->event.log = ngx_cycle->log;

#if (NGX_THREADS)
    job->task.ctx = job;
    job->task.handler = ngx_http_affiliate_job_thread;
    job->task.event.handler = ngx_http_affiliate_job_done;
    job->task.event.data = job;
    job->task.event.log = ngx_cycle->log;
#endif
}


static ngx_int_t
ngx_http_affiliate_job_post(ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_job_t *job)
{
#if (NGX_THREADS)

    if (conf->threads) {
        job->threaded = 1;

        if (ngx_thread_task_post(conf->threads, &job->task) != NGX_OK) {
            return NGX_ERROR;
        }

        job->busy = 1;
        return NGX_OK;
    }

#else
    (void) conf;
#endif

    job->busy = 1;
    job->run(job->data);

    /* the next iteration: this may be called before the first one */
    ngx_post_event(&job->event, &ngx_posted_next_events);

    return NGX_OK;
}


#if (NGX_THREADS)

static void
ngx_http_affiliate_job_thread(void *data, ngx_log_t *log)
{
    ngx_http_affiliate_job_t *job = data;

    (void) log;

    job->run(job->data);
}

#endif


static void
ngx_http_affiliate_job_done(ngx_event_t *ev)
{
    ngx_http_affiliate_job_t *job = ev->data;

    job->busy = 0;
    job->done(job->data);
}


static int
ngx_http_affiliate_spool_open_dir(ngx_http_affiliate_spool_conf_t *conf)
{
    return open((char *) conf->path->name.data,
                O_RDONLY|O_DIRECTORY|O_CLOEXEC);
}


/*
 * Workers count and allocate one after the other, so that together they keep
 * to max_size.  A process that is stopped while it holds the lock must not
 * stop the others: it's waited for a while only.
 */

static void
ngx_http_affiliate_spool_lock_dir(int dir, ngx_uint_t tries)
{
    while (flock(dir, LOCK_EX|LOCK_NB) == -1 && --tries) {
        ngx_msleep(1);
    }
}


/* Bytes of all files in the directory, whatever they are; -1: can't tell. */

static off_t
ngx_http_affiliate_spool_used(int dir)
{
    int             fd;
    DIR            *d;
    off_t           used;
    struct stat     st;
    struct dirent  *de;

    fd = openat(dir, ".", O_RDONLY|O_DIRECTORY|O_CLOEXEC);
    if (fd == -1) {
        return -1;
    }

    d = fdopendir(fd);
    if (d == NULL) {
        (void) close(fd);
        return -1;
    }

    used = 0;

    while ((de = readdir(d)) != NULL) {
        if (fstatat(dir, de->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0
            && S_ISREG(st.st_mode))
        {
            used += st.st_size;
        }
    }

    (void) closedir(d);

    return used;
}


static u_char *
ngx_http_affiliate_spool_path(u_char *path, ngx_http_affiliate_segment_t *seg,
    const char *suffix)
{
    return ngx_sprintf(path, "%*s%s%Z",
                       (size_t) NGX_HTTP_AFFILIATE_SPOOL_NAME_LEN, seg->name,
                       suffix);
}


/*
 * Makes seg->name, fd and map; NULL, or what failed (errno tells why; ENOSPC
 * also at max_size).  May sleep.
 */

static const char *
ngx_http_affiliate_spool_create(ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_segment_t *seg, ngx_uint_t tries, ngx_uint_t hurry)
{
    int          dir;
    u_char       temp[NGX_HTTP_AFFILIATE_SPOOL_PATH_LEN];
    u_char       name[NGX_HTTP_AFFILIATE_SPOOL_PATH_LEN];
    uint64_t     random;
    ngx_err_t    err;
    const char  *failed;

    dir = ngx_http_affiliate_spool_open_dir(conf);
    if (dir == -1) {
        return "open() of the directory";
    }

    seg->fd = NGX_INVALID_FILE;
    failed = "getrandom()";

    if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
        goto unlink;
    }

    ngx_sprintf(seg->name, "%016xL", random);
    ngx_http_affiliate_spool_path(temp, seg, NGX_HTTP_AFFILIATE_SPOOL_NEW);
    ngx_http_affiliate_spool_path(name, seg, NGX_HTTP_AFFILIATE_SPOOL_SUFFIX);

    ngx_http_affiliate_spool_lock_dir(dir, tries);

    failed = ngx_http_affiliate_spool_allocate(conf, seg, dir, (char *) temp);
    if (failed) {
        goto unlink;
    }

    /* it counts now: the others may go on */
    (void) flock(dir, LOCK_UN);

    failed = ngx_http_affiliate_spool_map(seg, hurry);
    if (failed) {
        goto unlink;
    }

    ngx_http_affiliate_spool_header(seg);

    if (AFF_FAULT("spool.created")
        || renameat(dir, (char *) temp, dir, (char *) name) == -1)
    {
        failed = "rename()";
        goto unlink;
    }

    (void) AFF_FAULT("spool.named");

    (void) close(dir);

    return NULL;

unlink:

    err = ngx_errno;

    if (seg->map) {
        (void) munmap(seg->map, seg->size);
        seg->map = NULL;
    }

    if (seg->fd != NGX_INVALID_FILE) {
        (void) unlinkat(dir, (char *) temp, 0);
        (void) close(seg->fd);
        seg->fd = NGX_INVALID_FILE;
    }

    (void) close(dir);
    ngx_set_errno(err);

    return failed;
}


/* The file itself, if there is room for it; seg->fd may be left open. */

static const char *
ngx_http_affiliate_spool_allocate(ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_segment_t *seg, int dir, const char *name)
{
    off_t      used;
    ngx_err_t  err;

    used = ngx_http_affiliate_spool_used(dir);

    if (used == -1) {
        return "readdir()";
    }

    if (used + (off_t) seg->size > conf->max_size) {
        ngx_set_errno(NGX_ENOSPC);
        return ngx_http_affiliate_spool_no_room;
    }

    seg->fd = openat(dir, name, O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0600);

    if (seg->fd == NGX_INVALID_FILE) {
        return "open()";
    }

    if (flock(seg->fd, LOCK_EX|LOCK_NB) == -1) {
        return "flock()";
    }

    ngx_http_affiliate_spool_in_place(seg->fd);

    err = posix_fallocate(seg->fd, 0, (off_t) seg->size);

    if (err) {
        ngx_set_errno(err);
        return "posix_fallocate()";
    }

    return NULL;
}


/*
 * Asks for blocks that are written where they are (btrfs), else allocating
 * ahead would promise nothing; others refuse, and need not be asked.
 */

static void
ngx_http_affiliate_spool_in_place(int fd)
{
#if (NGX_LINUX && defined FS_NOCOW_FL)
    int  flags;

    if (ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
        flags |= FS_NOCOW_FL;
        (void) ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
#else
    (void) fd;
#endif
}


static const char *
ngx_http_affiliate_spool_map(ngx_http_affiliate_segment_t *seg,
    ngx_uint_t hurry)
{
    void  *map;

    map = mmap(NULL, seg->size, PROT_READ|PROT_WRITE, MAP_SHARED, seg->fd, 0);
    if (map == MAP_FAILED) {
        return "mmap()";
    }

    seg->map = map;

    return ngx_http_affiliate_spool_populate(seg, hurry);
}


/*
 * Takes the page faults here, not in the event loop.  In small pieces with
 * pauses, unless somebody waits: the thread may share the loop's core, and
 * would keep requests waiting for the whole of a scheduler's slice.
 */

static const char *
ngx_http_affiliate_spool_populate(ngx_http_affiliate_segment_t *seg,
    ngx_uint_t hurry)
{
    size_t       at, size;
    const char  *failed;

    for (at = 0; at < seg->size; at += size) {

        if (at && !hurry) {
            ngx_msleep(1);
        }

        size = ngx_min(seg->size - at, NGX_HTTP_AFFILIATE_SPOOL_PIECE);

        failed = ngx_http_affiliate_spool_populate_piece(seg->map + at, size);
        if (failed) {
            return failed;
        }
    }

    return NULL;
}


static const char *
ngx_http_affiliate_spool_populate_piece(u_char *p, size_t size)
{
    size_t            i;
    u_char            byte;
    volatile u_char  *page;

#ifdef MADV_POPULATE_WRITE

    if (madvise(p, size, MADV_POPULATE_WRITE) == 0) {
        return NULL;
    }

    /* kernels before 5.14 don't know it */

    if (ngx_errno != NGX_EINVAL) {
        return "madvise()";
    }

#endif

    page = p;

    for (i = 0; i < size; i += ngx_pagesize) {
        byte = page[i];
        page[i] = byte;
    }

    return NULL;
}


/* Of a file that is new or marked free; see the top of the file. */

static void
ngx_http_affiliate_spool_header(ngx_http_affiliate_segment_t *seg)
{
    struct aff_segment  header;

    header.channel = (uint8_t) seg->channel;
    header.spool_id = seg->spool_id;
    header.number = seg->number;
    header.made_ms = seg->made;
    header.size = seg->size;

    ngx_memzero(seg->map + AFF_SEGMENT_FRAMES, sizeof(uint64_t));
    aff_segment_seal(seg->map, &header);
}


/* Unlinks, or puts aside what must be kept; the lock is held until after. */

static void
ngx_http_affiliate_spool_remove(ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_segment_t *seg)
{
    int     dir;
    u_char  name[NGX_HTTP_AFFILIATE_SPOOL_PATH_LEN];
    u_char  aside[NGX_HTTP_AFFILIATE_SPOOL_PATH_LEN];

    if (seg->fd == NGX_INVALID_FILE) {
        return;
    }

    dir = ngx_http_affiliate_spool_open_dir(conf);
    if (dir == -1) {
        return;
    }

    ngx_http_affiliate_spool_path(name, seg, NGX_HTTP_AFFILIATE_SPOOL_SUFFIX);

    if (seg->keep) {
        ngx_http_affiliate_spool_path(aside, seg,
                                      NGX_HTTP_AFFILIATE_SPOOL_CORRUPT);
        (void) renameat(dir, (char *) name, dir, (char *) aside);

    } else {
        (void) unlinkat(dir, (char *) name, 0);
    }

    (void) close(dir);
}


/* Closes, unmaps, and frees; the file stays. */

static void
ngx_http_affiliate_spool_free(ngx_http_affiliate_segment_t *seg)
{
    if (seg->map) {
        (void) munmap(seg->map, seg->size);
    }

    if (seg->fd != NGX_INVALID_FILE) {
        (void) close(seg->fd);
    }

    if (seg->batches) {
        ngx_free(seg->batches);
    }

    ngx_free(seg);
}


/* Makes the next segment ready, unless that is done or on its way. */

static void
ngx_http_affiliate_spool_prepare(ngx_http_affiliate_log_t *log)
{
    ngx_http_affiliate_prepare_t  *pr;

    pr = &log->prepare;

    if (pr->job.busy || log->ready) {
        return;
    }

    pr->segment = ngx_http_affiliate_spool_blank(log);

    if (pr->segment == NULL) {
        log->failing = 1;
        return;
    }

    if (ngx_http_affiliate_job_post(log->conf, &pr->job) != NGX_OK) {
        pr->err = NGX_EAGAIN;
        pr->failed = "ngx_thread_task_post()";
        ngx_http_affiliate_spool_prepare_done(log);
    }
}


/* The next segment: a spare one or an empty structure; NULL: no memory. */

static ngx_http_affiliate_segment_t *
ngx_http_affiliate_spool_blank(ngx_http_affiliate_log_t *log)
{
    u_char                         name[sizeof(((ngx_http_affiliate_segment_t *)
                                                0)->name)];
    u_char                        *map;
    ngx_fd_t                       fd;
    ngx_uint_t                     linked;
    ngx_queue_t                   *q;
    ngx_http_affiliate_batch_t    *batches;
    ngx_http_affiliate_segment_t  *seg;

    batches = ngx_alloc(NGX_HTTP_AFFILIATE_SPOOL_BATCHES
                        * sizeof(ngx_http_affiliate_batch_t), ngx_cycle->log);
    if (batches == NULL) {
        return NULL;
    }

    if (ngx_queue_empty(&log->spares)) {
        seg = ngx_calloc(sizeof(ngx_http_affiliate_segment_t), ngx_cycle->log);
        if (seg == NULL) {
            ngx_free(batches);
            return NULL;
        }

        seg->fd = NGX_INVALID_FILE;
        log->spared = ngx_time();

    } else {
        q = ngx_http_affiliate_queue_take(&log->spares);
        log->nspares--;

        if (log->nspares == 0) {
            log->spared = ngx_time();
        }

        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);

        map = seg->map;
        fd = seg->fd;
        linked = seg->linked;
        ngx_memcpy(name, seg->name, sizeof(name));

        ngx_free(seg->batches);
        ngx_memzero(seg, sizeof(ngx_http_affiliate_segment_t));

        seg->map = map;
        seg->fd = fd;
        seg->linked = linked;
        ngx_memcpy(seg->name, name, sizeof(name));
    }

    seg->spool_id = log->spool_id;
    seg->number = log->number++;
    seg->channel = log->channel;
    seg->seed = aff_frame_seed(seg->spool_id, seg->number);
    seg->size = log->size;
    seg->made = ngx_http_affiliate_spool_now();
    seg->batches = batches;
    seg->capacity = NGX_HTTP_AFFILIATE_SPOOL_BATCHES;
    seg->end = AFF_SEGMENT_FRAMES;

    return seg;
}


/*
 * Nothing is written to disk here.  A record is said to be on disk after an
 * fdatasync() of its file, which takes the header along; until then a power
 * loss may leave records behind the header of a former life, and they are lost
 * like any that were not written yet.
 */

static void
ngx_http_affiliate_spool_prepare_run(void *data)
{
    ngx_uint_t                     hurry;
    ngx_http_affiliate_log_t      *log;
    ngx_http_affiliate_prepare_t  *pr;
    ngx_http_affiliate_segment_t  *seg;

    log = data;
    pr = &log->prepare;
    seg = pr->segment;

    hurry = pr->quick || !pr->job.threaded;

    if (seg->map == NULL) {
        pr->failed = ngx_http_affiliate_spool_create(log->conf, seg,
                                     (pr->quick || pr->job.threaded) ? 20 : 1,
                                     hurry);

    } else {
        pr->failed = ngx_http_affiliate_spool_populate(seg, hurry);

        if (pr->failed == NULL) {
            ngx_http_affiliate_spool_header(seg);
        }
    }

    if (pr->failed) {
        pr->err = ngx_errno;
    }
}


static void
ngx_http_affiliate_spool_prepare_done(void *data)
{
    ngx_uint_t                     level;
    ngx_http_affiliate_log_t      *log;
    ngx_http_affiliate_prepare_t  *pr;
    ngx_http_affiliate_segment_t  *seg;

    log = data;
    pr = &log->prepare;
    seg = pr->segment;
    pr->segment = NULL;

    if (pr->failed == NULL) {
        log->ready = seg;
        log->failing = 0;
        ngx_http_affiliate_spool_room(log);

        if (log->active == NULL) {
            (void) ngx_http_affiliate_spool_rotate(log);
        }

        return;
    }

    log->failing = 1;

    if (ngx_time() - log->warned >= NGX_HTTP_AFFILIATE_SPOOL_LOG) {
        log->warned = ngx_time();
        level = log->active ? NGX_LOG_WARN : NGX_LOG_ERR;

        if (pr->failed == ngx_http_affiliate_spool_no_room) {
            ngx_log_error(level, ngx_cycle->log, 0,
                          "affiliate spool \"%V\" has reached max_size=%O, "
                          "no new segment for %s", &log->conf->path->name,
                          log->conf->max_size,
                          ngx_http_affiliate_spool_channel(log->channel));

        } else {
            ngx_log_error(level, ngx_cycle->log, pr->err,
                          "affiliate spool \"%V\": %s failed, no new segment "
                          "for %s", &log->conf->path->name, pr->failed,
                          ngx_http_affiliate_spool_channel(log->channel));
        }
    }

    ngx_http_affiliate_spool_dispose(log->conf, &log->dispose, seg);

    ngx_add_timer(&log->housekeep, NGX_HTTP_AFFILIATE_SPOOL_RETRY);
}


/* The active segment is full, or there is none: goes on in the ready one. */

static ngx_int_t
ngx_http_affiliate_spool_rotate(ngx_http_affiliate_log_t *log)
{
    ngx_http_affiliate_segment_t  *seg;

    seg = log->ready;

    if (seg == NULL) {
        ngx_http_affiliate_spool_prepare(log);
        return NGX_BUSY;
    }

    if (log->active) {
        ngx_http_affiliate_spool_seal(log);
    }

    (void) AFF_FAULT("spool.rotating");

    log->ready = NULL;
    log->active = seg;
    log->seed = seg->seed;
    log->pos = seg->map + AFF_SEGMENT_FRAMES;
    log->batch = log->pos;
    log->end = seg->map + seg->size - NGX_HTTP_AFFILIATE_SPOOL_RESERVE;

    seg->made = ngx_http_affiliate_spool_now();
    ngx_queue_insert_tail(&log->segments, &seg->queue);

    ngx_http_affiliate_spool_room(log);

    return NGX_OK;
}


/* There is room, used or not yet: smaller records may still fit before it. */

static void
ngx_http_affiliate_spool_room(ngx_http_affiliate_log_t *log)
{
    ngx_http_affiliate_stat_set(spool_full[log->channel], 0);

    if (log->dropped) {
        ngx_log_error(NGX_LOG_WARN, ngx_cycle->log, 0,
                      "affiliate spool \"%V\" takes %s again, %ui were dropped",
                      &log->conf->path->name,
                      ngx_http_affiliate_spool_channel(log->channel),
                      log->dropped);
        log->dropped = 0;
    }
}


/* Ends the active segment. */

static void
ngx_http_affiliate_spool_seal(ngx_http_affiliate_log_t *log)
{
    ngx_http_affiliate_segment_t  *seg;

    seg = log->active;

    ngx_http_affiliate_spool_cut(log);

    seg->end = log->pos - seg->map;
    seg->sealed = 1;

    if (log->handler) {
        log->handler(log->data, seg, NULL);
    }
}


/* Closes the open batch, if it has records. */

static void
ngx_http_affiliate_spool_cut(ngx_http_affiliate_log_t *log)
{
    u_char                        *p;
    ngx_http_affiliate_batch_t    *batch;
    ngx_http_affiliate_segment_t  *seg;

    if (log->records == 0) {
        return;
    }

    seg = log->active;

    (void) AFF_FAULT("spool.cutting");

    batch = &seg->batches[seg->nbatches];
    ngx_memzero(batch, sizeof(ngx_http_affiliate_batch_t));

    batch->offset = (uint32_t) (log->batch - seg->map);
    batch->length = (uint32_t) (log->pos - log->batch);
    batch->records = (uint32_t) log->records;
    batch->made = log->made;

    p = log->pos + AFF_FRAME_HEADER_BYTES;
    aff_store_le32(p, (uint32_t) seg->nbatches);
    aff_store_le32(p + 4, batch->records);
    ngx_memzero(log->pos + NGX_HTTP_AFFILIATE_SPOOL_BOUNDARY,
                sizeof(uint32_t));

    log->pos += aff_frame_seal(log->pos, AFF_FRAME_BOUNDARY, 1, 8, log->seed);
    log->batch = log->pos;
    log->records = 0;
    seg->nbatches++;

    (void) AFF_FAULT("spool.cut");

    if (log->pos > log->end || seg->nbatches == seg->capacity) {
        /* the boundary took the reserve, or there is no number left */
        log->end = log->pos;
    }

    if (log->handler) {
        log->handler(log->data, seg, batch);
    }

    if ((size_t) (log->pos - seg->map) >= seg->size / 4
        || seg->nbatches >= seg->capacity / 4)
    {
        ngx_http_affiliate_spool_prepare(log);
    }

    if (log->conf->sync && !log->flush.timer_set) {
        ngx_add_timer(&log->flush, log->conf->sync);
    }
}


static void
ngx_http_affiliate_spool_drop(ngx_http_affiliate_log_t *log)
{
    ngx_http_affiliate_stat_inc(dropped[log->channel]);
    ngx_http_affiliate_stat_set(spool_full[log->channel], 1);

    log->dropped++;

    if (ngx_time() - log->complained < NGX_HTTP_AFFILIATE_SPOOL_LOG) {
        return;
    }

    ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                  "affiliate spool \"%V\" is full: %ui %s dropped; "
                  "see that Redis and affiliated run, or raise max_size=",
                  &log->conf->path->name, log->dropped,
                  ngx_http_affiliate_spool_channel(log->channel));

    log->complained = ngx_time();
    log->dropped = 0;
}


static void
ngx_http_affiliate_spool_tick_handler(ngx_event_t *ev)
{
    ngx_http_affiliate_spool_cut(ev->data);
}


static void
ngx_http_affiliate_spool_housekeep_handler(ngx_event_t *ev)
{
    ngx_queue_t                   *q;
    ngx_http_affiliate_log_t      *log;
    ngx_http_affiliate_batch_t    *batches;
    ngx_http_affiliate_segment_t  *seg;

    log = ev->data;

    if (log->failing || log->active == NULL) {
        ngx_http_affiliate_spool_prepare(log);
    }

    /*
     * An old segment of a quiet site is closed, so that its space is freed;
     * a broken one, so that the disk is tried again.
     */

    if (log->active
        && (log->active->nbatches || log->records)
        && (log->active->broken
            || ngx_http_affiliate_spool_now() - log->active->made
               > NGX_HTTP_AFFILIATE_SPOOL_AGE))
    {
        (void) ngx_http_affiliate_spool_rotate(log);

    } else if (log->active && log->active->broken) {
        ngx_http_affiliate_spool_prepare(log);
    }

    /* sealed segments need no room for batches to come */

    for (q = ngx_queue_head(&log->segments);
         q != ngx_queue_sentinel(&log->segments);
         q = ngx_queue_next(q))
    {
        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);

        if (seg->sealed && seg->nbatches && seg->capacity > seg->nbatches) {
            batches = realloc(seg->batches, seg->nbatches
                                      * sizeof(ngx_http_affiliate_batch_t));
            if (batches) {
                seg->batches = batches;
                seg->capacity = seg->nbatches;
            }
        }
    }

    if (log->nspares && ngx_time() - log->spared > 60) {
        q = ngx_http_affiliate_queue_take(&log->spares);
        log->nspares--;
        log->spared = ngx_time();

        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);
        ngx_http_affiliate_spool_dispose(log->conf, &log->dispose, seg);
    }

    ngx_http_affiliate_spool_dispose_post(log->conf, &log->dispose);

    if (!ev->timer_set) {
        ngx_add_timer(ev, log->failing ? NGX_HTTP_AFFILIATE_SPOOL_RETRY
                                       : NGX_HTTP_AFFILIATE_SPOOL_HOUSEKEEP);
    }
}


/* Where a segment's records end now. */

static size_t
ngx_http_affiliate_spool_segment_end(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_segment_t *seg)
{
    return (seg == log->active) ? (size_t) (log->pos - seg->map) : seg->end;
}


/* Begins an fdatasync() of what is not on disk, if none runs. */

static void
ngx_http_affiliate_spool_sync(ngx_http_affiliate_log_t *log)
{
    size_t                         end;
    ngx_queue_t                   *q;
    ngx_http_affiliate_sync_t     *sync;
    ngx_http_affiliate_segment_t  *seg;

    sync = &log->sync;

    if (sync->job.busy) {
        return;
    }

    sync->n = 0;

    for (q = ngx_queue_head(&log->segments);
         q != ngx_queue_sentinel(&log->segments)
         && sync->n < NGX_HTTP_AFFILIATE_SPOOL_GROUP;
         q = ngx_queue_next(q))
    {
        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);
        end = ngx_http_affiliate_spool_segment_end(log, seg);

        if (seg->broken || seg->synced >= end) {
            continue;
        }

        seg->syncing = end;
        seg->busy = 1;
        sync->linked[sync->n] = seg->linked;
        sync->segments[sync->n++] = seg;
    }

    if (sync->n == 0) {
        return;
    }

    if (ngx_http_affiliate_job_post(log->conf, &sync->job) == NGX_OK) {
        return;
    }

    while (sync->n) {
        sync->segments[--sync->n]->busy = 0;
    }

    if (!log->flush.timer_set) {
        ngx_add_timer(&log->flush, NGX_HTTP_AFFILIATE_SPOOL_RETRY);
    }
}


static void
ngx_http_affiliate_spool_sync_run(void *data)
{
    int                         dir;
    ngx_uint_t                  i;
    ngx_http_affiliate_log_t   *log;
    ngx_http_affiliate_sync_t  *sync;

    log = data;
    sync = &log->sync;

    for (i = 0; i < sync->n; i++) {

        /* "busy" keeps the descriptor open */

        sync->err[i] = (fdatasync(sync->segments[i]->fd) == -1) ? ngx_errno : 0;

        if (AFF_FAULT("spool.synced")) {
            sync->err[i] = EIO;
        }

        if (sync->err[i] || sync->linked[i]) {
            continue;
        }

        dir = ngx_http_affiliate_spool_open_dir(log->conf);

        if (dir == -1 || fsync(dir) == -1) {
            sync->err[i] = ngx_errno;
        }

        if (dir != -1) {
            (void) close(dir);
        }
    }
}


static void
ngx_http_affiliate_spool_sync_done(void *data)
{
    ngx_uint_t                     i;
    ngx_http_affiliate_log_t      *log;
    ngx_http_affiliate_sync_t     *sync;
    ngx_http_affiliate_segment_t  *seg;

    log = data;
    sync = &log->sync;

    for (i = 0; i < sync->n; i++) {
        seg = sync->segments[i];
        seg->busy = 0;

        if (sync->err[i] == 0) {
            ngx_http_affiliate_stat_inc(syncs[log->channel]);
            seg->synced = seg->syncing;
            seg->linked = 1;

        } else {

            /*
             * The kernel may take the pages for clean now, so a later success
             * would prove nothing about them: this segment is never again
             * said to be on disk, and records go to another one.
             */

            ngx_http_affiliate_spool_broken(log, seg, sync->err[i]);

            if (seg == log->active) {
                log->end = log->pos;
                ngx_http_affiliate_spool_prepare(log);
            }
        }

        if (seg->released) {
            ngx_http_affiliate_spool_recycle(log, seg);
        }
    }

    ngx_http_affiliate_spool_wake(log);

    if (!ngx_queue_empty(&log->waiters)) {
        ngx_http_affiliate_spool_sync(log);
    }
}


static void
ngx_http_affiliate_spool_broken(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_segment_t *seg, ngx_err_t err)
{
    seg->broken = 1;
    log->disk_failed = 1;

    if (ngx_time() - log->broken < NGX_HTTP_AFFILIATE_SPOOL_LOG) {
        return;
    }

    log->broken = ngx_time();

    ngx_log_error(NGX_LOG_CRIT, ngx_cycle->log, err,
                  "affiliate spool: fdatasync() of \"%V/%s%s\" failed, %s are "
                  "held by memory and Redis only", &log->conf->path->name,
                  seg->name, NGX_HTTP_AFFILIATE_SPOOL_SUFFIX,
                  ngx_http_affiliate_spool_channel(log->channel));
}


/* Only asks the kernel to begin: for an nginx without threads. */

static void
ngx_http_affiliate_spool_writeback(ngx_http_affiliate_log_t *log)
{
#ifdef SYNC_FILE_RANGE_WRITE

    if (log->active) {
        (void) sync_file_range(log->active->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
    }

#else
    (void) log;
#endif
}


/*
 * The oldest record that neither the disk nor PostgreSQL holds: unix ms, 0 if
 * there is none.
 */

static uint64_t
ngx_http_affiliate_spool_exposed(ngx_http_affiliate_log_t *log)
{
    ngx_uint_t                     i;
    ngx_queue_t                   *q;
    ngx_http_affiliate_batch_t    *batch;
    ngx_http_affiliate_segment_t  *seg;

    for (q = ngx_queue_head(&log->segments);
         q != ngx_queue_sentinel(&log->segments);
         q = ngx_queue_next(q))
    {
        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);

        if (seg->broken) {
            continue;
        }

        for (i = ngx_http_affiliate_spool_oldest(seg); i < seg->nbatches; i++) {
            batch = &seg->batches[i];

            if (batch->state != NGX_HTTP_AFFILIATE_BATCH_ACKED
                && batch->offset + batch->length > seg->synced)
            {
                return batch->made;
            }
        }
    }

    return log->records ? log->made : 0;
}


/*
 * What PostgreSQL acknowledges within the sync interval, as it does unless
 * something is down, is not written to disk for nothing.
 */

static void
ngx_http_affiliate_spool_flush_handler(ngx_event_t *ev)
{
    uint64_t                   made, now;
    ngx_http_affiliate_log_t  *log;

    log = ev->data;

    made = ngx_http_affiliate_spool_exposed(log);
    now = ngx_http_affiliate_spool_now();

    if (made == 0) {
        return;
    }

    if (made <= now && now - made < log->conf->sync) {
        ngx_add_timer(ev, (ngx_msec_t) (made + log->conf->sync - now));
        return;
    }

#if (NGX_THREADS)

    if (log->conf->threads) {
        ngx_http_affiliate_spool_sync(log);
        return;
    }

#endif

    ngx_http_affiliate_spool_writeback(log);
}


void
ngx_http_affiliate_spool_wait(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_waiter_t *w)
{
    w->waiting = 1;

    ngx_queue_insert_tail(&log->waiters, &w->queue);

    if (ngx_http_affiliate_spool_durable(log, &w->position) != NGX_AGAIN) {
        ngx_http_affiliate_spool_wake(log);
        return;
    }

    /* from a posted event: those of the same iteration share one */

    ngx_post_event(&log->group, &ngx_posted_events);
}


void
ngx_http_affiliate_spool_forget(ngx_http_affiliate_waiter_t *w)
{
    if (w->waiting) {
        w->waiting = 0;
        ngx_queue_remove(&w->queue);
    }
}


static void
ngx_http_affiliate_spool_group_handler(ngx_event_t *ev)
{
    ngx_http_affiliate_log_t  *log;

    log = ev->data;

    if (ngx_queue_empty(&log->waiters)) {
        return;
    }

#if (NGX_THREADS)

    if (log->conf->threads) {
        ngx_http_affiliate_spool_sync(log);
        return;
    }

#endif

    /* without threads it would block; but somebody has to hold the records */

    if (log->handler == NULL) {
        ngx_http_affiliate_spool_sync(log);
    }
}


/*
 * NGX_OK; NGX_AGAIN; NGX_ERROR: never on disk, and Redis is away.  A segment
 * that is not there any more was released: PostgreSQL holds it.
 */

static ngx_int_t
ngx_http_affiliate_spool_durable(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_position_t *position)
{
    ngx_queue_t                   *q;
    ngx_http_affiliate_segment_t  *seg;

    if (position->segment < log->held.segment
        || (position->segment == log->held.segment
            && position->offset <= log->held.offset))
    {
        return NGX_OK;
    }

    for (q = ngx_queue_last(&log->segments);
         q != ngx_queue_sentinel(&log->segments);
         q = ngx_queue_prev(q))
    {
        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);

        if (seg->number != position->segment) {
            continue;
        }

        if (seg->synced >= position->offset) {
            return NGX_OK;
        }

        return (seg->broken && !log->wanted) ? NGX_ERROR : NGX_AGAIN;
    }

    return NGX_OK;
}


void
ngx_http_affiliate_spool_held(ngx_http_affiliate_log_t *log,
    ngx_http_affiliate_position_t *position)
{
    log->held = *position;

    ngx_http_affiliate_spool_wake(log);
}


static void
ngx_http_affiliate_spool_wake(ngx_http_affiliate_log_t *log)
{
    ngx_int_t                     rc;
    ngx_queue_t                  *q, *next;
    ngx_http_affiliate_waiter_t  *w;

    for (q = ngx_queue_head(&log->waiters);
         q != ngx_queue_sentinel(&log->waiters);
         q = next)
    {
        next = ngx_queue_next(q);
        w = ngx_queue_data(q, ngx_http_affiliate_waiter_t, queue);

        rc = ngx_http_affiliate_spool_durable(log, &w->position);

        if (rc == NGX_AGAIN) {

            if (!log->disk_failed) {
                /* they are in order: so are the others */
                break;
            }

            continue;
        }

        w->rc = rc;
        ngx_queue_remove(&w->queue);
        ngx_queue_insert_tail(&log->woken, &w->queue);
    }

    if (!ngx_queue_empty(&log->woken)) {
        ngx_post_event(&log->wake, &ngx_posted_events);
    }
}


static void
ngx_http_affiliate_spool_wake_handler(ngx_event_t *ev)
{
    ngx_queue_t                  *q;
    ngx_http_affiliate_log_t     *log;
    ngx_http_affiliate_waiter_t  *w;

    log = ev->data;

    /* a handler may forget others of them */

    while (!ngx_queue_empty(&log->woken)) {
        q = ngx_http_affiliate_queue_take(&log->woken);

        w = ngx_queue_data(q, ngx_http_affiliate_waiter_t, queue);
        w->waiting = 0;
        w->handler(w->data, w->rc);
    }
}


/* Removes a segment's file and frees it, sooner or later. */

static void
ngx_http_affiliate_spool_dispose(ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_dispose_t *dispose, ngx_http_affiliate_segment_t *seg)
{
    ngx_queue_insert_tail(&dispose->waiting, &seg->queue);
    ngx_http_affiliate_spool_dispose_post(conf, dispose);
}


static void
ngx_http_affiliate_spool_dispose_post(ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_dispose_t *dispose)
{
    if (dispose->job.busy || ngx_queue_empty(&dispose->waiting)) {
        return;
    }

    ngx_queue_add(&dispose->running, &dispose->waiting);
    ngx_queue_init(&dispose->waiting);

    if (ngx_http_affiliate_job_post(conf, &dispose->job) != NGX_OK) {
        ngx_queue_add(&dispose->waiting, &dispose->running);
        ngx_queue_init(&dispose->running);
    }
}


static void
ngx_http_affiliate_log_dispose_run(void *data)
{
    ngx_http_affiliate_log_t *log = data;

    ngx_http_affiliate_spool_dispose_run(log->conf, &log->dispose);
}


static void
ngx_http_affiliate_log_dispose_done(void *data)
{
    ngx_http_affiliate_log_t *log = data;

    ngx_http_affiliate_spool_dispose_post(log->conf, &log->dispose);
}


static void
ngx_http_affiliate_adopt_dispose_run(void *data)
{
    ngx_http_affiliate_adopter_t *ad = data;

    ngx_http_affiliate_spool_dispose_run(ad->conf, &ad->dispose);
}


static void
ngx_http_affiliate_adopt_dispose_done(void *data)
{
    ngx_http_affiliate_adopter_t *ad = data;

    ngx_http_affiliate_spool_dispose_post(ad->conf, &ad->dispose);
}


static void
ngx_http_affiliate_spool_dispose_run(ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_dispose_t *dispose)
{
    ngx_queue_t                   *q;
    ngx_http_affiliate_segment_t  *seg;

    while (!ngx_queue_empty(&dispose->running)) {
        q = ngx_http_affiliate_queue_take(&dispose->running);
        seg = ngx_queue_data(q, ngx_http_affiliate_segment_t, queue);

        ngx_http_affiliate_spool_remove(conf, seg);
        ngx_http_affiliate_spool_free(seg);
    }
}


/* The same when the process exits. */

static void
ngx_http_affiliate_spool_dispose_free(ngx_http_affiliate_spool_conf_t *conf,
    ngx_http_affiliate_dispose_t *dispose)
{
    ngx_http_affiliate_spool_dispose_run(conf, dispose);

    ngx_queue_add(&dispose->running, &dispose->waiting);
    ngx_queue_init(&dispose->waiting);

    ngx_http_affiliate_spool_dispose_run(conf, dispose);
}


ngx_int_t
ngx_http_affiliate_spool_adopt(ngx_http_affiliate_spool_conf_t *conf,
    ngx_uint_t limit, ngx_http_affiliate_segment_pt handler, void *data)
{
    ngx_http_affiliate_adopter_t  *ad;

    ad = ngx_calloc(sizeof(ngx_http_affiliate_adopter_t), ngx_cycle->log);
    if (ad == NULL) {
        return NGX_ERROR;
    }

    ad->buf = ngx_alloc(NGX_HTTP_AFFILIATE_SPOOL_CHUNK + AFF_FRAME_MAX,
                        ngx_cycle->log);
    if (ad->buf == NULL) {
        ngx_free(ad);
        return NGX_ERROR;
    }

    ad->ident[3] = (void *) -1;
    ad->conf = conf;
    ad->limit = limit;
    ad->handler = handler;
    ad->data = data;

#if (NGX_THREADS)
    ad->threaded = (conf->threads != NULL);
#endif

    ngx_queue_init(&ad->dispose.waiting);
    ngx_queue_init(&ad->dispose.running);

    ngx_http_affiliate_job_init(&ad->job, ngx_http_affiliate_adopt_run,
                                ngx_http_affiliate_adopt_done, ad);
    ngx_http_affiliate_job_init(&ad->dispose.job,
                                ngx_http_affiliate_adopt_dispose_run,
                                ngx_http_affiliate_adopt_dispose_done, ad);

    ad->timer.handler = ngx_http_affiliate_adopt_timer_handler;
    ad->timer.data = ad;
    ad->timer.log = ngx_cycle->log;
    ad->timer.cancelable = 1;

    ngx_http_affiliate_adopter = ad;

    ngx_add_timer(&ad->timer, 100);

    return NGX_OK;
}


void
ngx_http_affiliate_spool_adopt_done(void)
{
    ngx_http_affiliate_adopter_t  *ad;

    ad = ngx_http_affiliate_adopter;
    if (ad == NULL) {
        return;
    }

    ngx_http_affiliate_adopter = NULL;

    if (ad->timer.timer_set) {
        ngx_del_timer(&ad->timer);
    }

    if (ad->segment) {
        ngx_http_affiliate_spool_free(ad->segment);
        ad->segment = NULL;
    }

    if (ad->dir) {
        (void) closedir(ad->dir);
        ad->dir = NULL;
    }

    ngx_http_affiliate_spool_dispose_free(ad->conf, &ad->dispose);

    ngx_free(ad->buf);

    /* as a log, the structure stays for a job's late completion */
}


void
ngx_http_affiliate_spool_abandon(ngx_http_affiliate_segment_t *seg)
{
    ngx_queue_remove(&seg->queue);
    ngx_http_affiliate_spool_free(seg);
}


static void
ngx_http_affiliate_adopt_timer_handler(ngx_event_t *ev)
{
    ngx_http_affiliate_adopter_t  *ad;

    ad = ev->data;

    ngx_http_affiliate_spool_dispose_post(ad->conf, &ad->dispose);

    if (ngx_exiting || ad->job.busy) {
        return;
    }

    if (ad->held >= ad->limit
        || ngx_http_affiliate_job_post(ad->conf, &ad->job) != NGX_OK)
    {
        ngx_add_timer(ev, NGX_HTTP_AFFILIATE_SPOOL_RETRY);
    }
}


/* A step: some of the directory, or some of a file. */

static void
ngx_http_affiliate_adopt_run(void *data)
{
    ngx_http_affiliate_adopter_t *ad = data;

    ad->finished = 0;

    do {
        if (ad->segment == NULL) {
            ngx_http_affiliate_adopt_search(ad);

        } else {
            ngx_http_affiliate_adopt_check(ad);
        }

    } while (ad->threaded && !ad->finished
             && ad->corrupt[0] == '\0' && ad->alien[0] == '\0'
             && (ad->segment == NULL
                 || ad->state != NGX_HTTP_AFFILIATE_CHECK_DONE));

    if (ad->segment == NULL || ad->state != NGX_HTTP_AFFILIATE_CHECK_DONE) {
        return;
    }

    /* what follows the last boundary is the last batch: see the top */

    if (ad->records && ngx_http_affiliate_adopt_batch(ad, ad->last) != NGX_OK) {
        ad->segment->keep = 1;
    }

    /* the sync interval of its owner is over */

    if (ad->threaded && ad->conf->sync) {
        (void) fdatasync(ad->segment->fd);
    }
}


static void
ngx_http_affiliate_adopt_done(void *data)
{
    ngx_http_affiliate_adopter_t  *ad;
    ngx_http_affiliate_segment_t  *seg;

    ad = data;

    if (ad != ngx_http_affiliate_adopter) {
        return;
    }

    if (ad->corrupt[0]) {
        ngx_log_error(NGX_LOG_CRIT, ngx_cycle->log, 0,
                      "affiliate spool: \"%V/%s\" could not be read, "
                      "it is kept aside as %s", &ad->conf->path->name,
                      ad->corrupt, NGX_HTTP_AFFILIATE_SPOOL_CORRUPT);
        ngx_http_affiliate_stat_inc(corrupt);
        ad->corrupt[0] = '\0';
    }

    if (ad->alien[0] && ad->err) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, ad->err,
                      "affiliate spool: open() of \"%V/%s\" failed, give it "
                      "to the user that nginx runs as",
                      &ad->conf->path->name, ad->alien);
        ad->alien[0] = '\0';
        ad->err = 0;

    } else if (ad->alien[0]) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "affiliate spool: \"%V/%s\" is of another version of "
                      "this module, it is left alone; start that version to "
                      "deliver it", &ad->conf->path->name, ad->alien);
        ad->alien[0] = '\0';
    }

    seg = ad->segment;

    if (seg && ad->state == NGX_HTTP_AFFILIATE_CHECK_DONE) {
        ad->segment = NULL;

        if (seg->keep) {
            ngx_log_error(NGX_LOG_CRIT, ngx_cycle->log, 0,
                          "affiliate spool: \"%V/%s%s\" is damaged at %uz, "
                          "it will be kept aside as %s",
                          &ad->conf->path->name, seg->name,
                          NGX_HTTP_AFFILIATE_SPOOL_SUFFIX, ad->last,
                          NGX_HTTP_AFFILIATE_SPOOL_CORRUPT);
            ngx_http_affiliate_stat_inc(corrupt);
        }

        if (seg->nbatches == 0) {
            ngx_http_affiliate_spool_dispose(ad->conf, &ad->dispose, seg);

        } else {
            ad->held++;
            ad->adopted++;
            ngx_http_affiliate_stat_inc(adopted);
            ad->handler(ad->data, seg);
        }
    }

    if (!ad->finished) {
        ngx_add_timer(&ad->timer, 1);
        return;
    }

    if (ad->adopted) {
        ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                      "affiliate spool: %ui segments of other workers adopted",
                      ad->adopted);
        ad->adopted = 0;
    }

    ngx_add_timer(&ad->timer, NGX_HTTP_AFFILIATE_SPOOL_SCAN);
}


static void
ngx_http_affiliate_adopt_search(ngx_http_affiliate_adopter_t *ad)
{
    int             dir;
    size_t          len;
    ngx_uint_t      i;
    struct dirent  *de;

    if (ad->dir == NULL) {
        ad->dir = opendir((char *) ad->conf->path->name.data);
        if (ad->dir == NULL) {
            ad->finished = 1;
            return;
        }
    }

    dir = dirfd(ad->dir);

    for (i = 0; i < NGX_HTTP_AFFILIATE_SPOOL_ENTRIES; i++) {

        de = readdir(ad->dir);

        if (de == NULL) {
            (void) closedir(ad->dir);
            ad->dir = NULL;
            ad->finished = 1;
            return;
        }

        len = ngx_strlen(de->d_name);

        if (len <= NGX_HTTP_AFFILIATE_SPOOL_NAME_LEN
            || len >= NGX_HTTP_AFFILIATE_SPOOL_PATH_LEN)
        {
            continue;
        }

        if (ngx_strcmp(de->d_name + NGX_HTTP_AFFILIATE_SPOOL_NAME_LEN,
                       NGX_HTTP_AFFILIATE_SPOOL_NEW) == 0)
        {
            ngx_http_affiliate_adopt_unfinished(dir, de->d_name);
            continue;
        }

        if (ngx_strcmp(de->d_name + NGX_HTTP_AFFILIATE_SPOOL_NAME_LEN,
                       NGX_HTTP_AFFILIATE_SPOOL_SUFFIX) != 0)
        {
            continue;
        }

        if (ngx_http_affiliate_adopt_try(ad, dir, de->d_name) != NGX_DECLINED) {
            return;
        }
    }
}


/* A file that was never finished has no records. */

static void
ngx_http_affiliate_adopt_unfinished(int dir, const char *name)
{
    int          fd;
    struct stat  st;

    fd = openat(dir, name, O_RDONLY|O_NOFOLLOW|O_CLOEXEC);
    if (fd == -1) {
        return;
    }

    if (flock(fd, LOCK_EX|LOCK_NB) == 0
        && fstat(fd, &st) == 0 && S_ISREG(st.st_mode)
        && st.st_mtime + NGX_HTTP_AFFILIATE_SPOOL_UNFINISHED < ngx_time())
    {
        (void) unlinkat(dir, name, 0);
    }

    (void) close(fd);
}


/* NGX_OK: it is being checked; NGX_DECLINED: nothing to do; NGX_DONE: said. */

static ngx_int_t
ngx_http_affiliate_adopt_try(ngx_http_affiliate_adopter_t *ad, int dir,
    const char *name)
{
    int                            fd;
    ngx_err_t                      err;
    ngx_int_t                      rc;
    struct stat                    st;
    ngx_http_affiliate_segment_t  *seg;

    fd = openat(dir, name, O_RDONLY|O_NOFOLLOW|O_NONBLOCK|O_CLOEXEC);
    if (fd == -1) {
        err = ngx_errno;

        if (err == NGX_ENOENT
            || fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == -1)
        {
            return NGX_DECLINED;
        }

        return ngx_http_affiliate_adopt_alien(ad, name, st.st_ino, err);
    }

    /* its owner may have removed it between: then it has no name any more */

    if (flock(fd, LOCK_EX|LOCK_NB) == -1
        || fstat(fd, &st) == -1 || st.st_nlink == 0 || !S_ISREG(st.st_mode))
    {
        (void) close(fd);
        return NGX_DECLINED;
    }

    seg = AFF_FAULT("spool.adopting")
          ? NULL : calloc(1, sizeof(ngx_http_affiliate_segment_t));
    if (seg == NULL) {
        (void) close(fd);
        return NGX_DECLINED;
    }

    seg->fd = fd;
    ngx_memcpy(seg->name, name, NGX_HTTP_AFFILIATE_SPOOL_NAME_LEN);

    rc = ngx_http_affiliate_adopt_header(ad, dir, seg, &st);

    if (rc != NGX_OK) {
        ngx_http_affiliate_spool_free(seg);
        return rc;
    }

    ad->segment = seg;
    ad->state = NGX_HTTP_AFFILIATE_CHECK_WALK;
    ad->at = AFF_SEGMENT_FRAMES;
    ad->first = ad->at;
    ad->records = 0;

    return NGX_OK;
}


static ngx_int_t
ngx_http_affiliate_adopt_header(ngx_http_affiliate_adopter_t *ad, int dir,
    ngx_http_affiliate_segment_t *seg, struct stat *st)
{
    u_char              h[AFF_SEGMENT_HEADER_BYTES];
    u_char              name[NGX_HTTP_AFFILIATE_SPOOL_PATH_LEN];
    u_char              aside[NGX_HTTP_AFFILIATE_SPOOL_PATH_LEN];
    uint64_t            first;
    struct aff_segment  header;

    ngx_http_affiliate_spool_path(name, seg, NGX_HTTP_AFFILIATE_SPOOL_SUFFIX);

    if (st->st_size == 0) {
        goto empty;
    }

    if (pread(seg->fd, h, sizeof(h), 0) != (ssize_t) sizeof(h)) {
        goto corrupt;
    }

    switch (aff_segment_read(aff_slice(h, sizeof(h)), &header)) {

    case AFF_SEGMENT_USED:
        break;

    case AFF_SEGMENT_FREE:
        goto empty;

    case AFF_SEGMENT_BLANK:

        /* power was lost before its header: no record was said to be there */

        first = 1;

        if (pread(seg->fd, &first, sizeof(first), AFF_SEGMENT_FRAMES)
            == (ssize_t) sizeof(first)
            && first == 0)
        {
            goto empty;
        }

        goto corrupt;

    case AFF_SEGMENT_NEWER:
        goto alien;

    default: /* AFF_SEGMENT_FOREIGN, AFF_SEGMENT_CORRUPT */
        goto corrupt;
    }

    if (header.size != (uint64_t) st->st_size) {
        goto corrupt;
    }

    seg->channel = (enum aff_channel) header.channel;
    seg->spool_id = header.spool_id;
    seg->number = header.number;
    seg->made = header.made_ms;
    seg->size = (size_t) header.size;
    seg->seed = aff_frame_seed(seg->spool_id, seg->number);
    seg->sealed = 1;

    return NGX_OK;

empty:

    (void) unlinkat(dir, (char *) name, 0);

    return NGX_DECLINED;

corrupt:

    ngx_http_affiliate_spool_path(aside, seg,
                                  NGX_HTTP_AFFILIATE_SPOOL_CORRUPT);

    (void) renameat(dir, (char *) name, dir, (char *) aside);
    ngx_memcpy(ad->corrupt, name, sizeof(name));

    return NGX_DONE;

alien:

    return ngx_http_affiliate_adopt_alien(ad, (char *) name, st->st_ino, 0);
}


/* A file that stays where it is; said once. */

static ngx_int_t
ngx_http_affiliate_adopt_alien(ngx_http_affiliate_adopter_t *ad,
    const char *name, ino_t ino, ngx_err_t err)
{
    ngx_uint_t  i;

    for (i = 0; i < ad->naliens; i++) {
        if (ad->aliens[i] == ino) {
            return NGX_DECLINED;
        }
    }

    if (ad->naliens == NGX_HTTP_AFFILIATE_SPOOL_ALIENS) {
        return NGX_DECLINED;
    }

    ad->aliens[ad->naliens++] = ino;
    ad->err = err;
    ngx_cpystrn(ad->alien, (u_char *) name, NGX_HTTP_AFFILIATE_SPOOL_PATH_LEN);

    return NGX_DONE;
}


/*
 * Follows the chain of frames through one more piece of the file.  It is read,
 * not mapped: an error of the disk is then an error, and not a signal.
 */

static void
ngx_http_affiliate_adopt_check(ngx_http_affiliate_adopter_t *ad)
{
    size_t                         n, pos;
    struct aff_frame               frame;
    enum aff_frame_result          rc;
    ngx_http_affiliate_segment_t  *seg;

    seg = ad->segment;

    n = ngx_min(seg->size - ad->at,
                NGX_HTTP_AFFILIATE_SPOOL_CHUNK + AFF_FRAME_MAX);

    if (pread(seg->fd, ad->buf, n, (off_t) ad->at) != (ssize_t) n) {
        seg->keep = 1;

        if (ad->state == NGX_HTTP_AFFILIATE_CHECK_WALK) {
            ad->last = ad->at;
        }

        ad->state = NGX_HTTP_AFFILIATE_CHECK_DONE;
        return;
    }

    for (pos = 0; pos < n && pos < NGX_HTTP_AFFILIATE_SPOOL_CHUNK; ) {

        rc = aff_frame_read(aff_slice(ad->buf + pos, n - pos), seg->seed,
                            &frame);

        if (ad->state == NGX_HTTP_AFFILIATE_CHECK_RESYNC) {

            if (rc == AFF_FRAME_OK) {
                /* records that the chain does not reach */
                seg->keep = 1;
                ad->state = NGX_HTTP_AFFILIATE_CHECK_DONE;
                return;
            }

            pos += AFF_FRAME_ALIGN;
            continue;
        }

        if (rc == AFF_FRAME_END) {
            ad->last = ad->at + pos;
            ad->state = NGX_HTTP_AFFILIATE_CHECK_DONE;
            return;
        }

        if (rc == AFF_FRAME_OK
            && ngx_http_affiliate_adopt_frame(ad, &frame, ad->at + pos)
               == NGX_OK)
        {
            pos += frame.length;
            continue;
        }

        ad->last = ad->at + pos;
        ad->state = NGX_HTTP_AFFILIATE_CHECK_RESYNC;

        if (rc == AFF_FRAME_OK) {
            /* not a torn write: a boundary that contradicts its batch */
            seg->keep = 1;
            ad->state = NGX_HTTP_AFFILIATE_CHECK_DONE;
            return;
        }
    }

    ad->at += pos;

    if (ad->at >= seg->size) {

        if (ad->state == NGX_HTTP_AFFILIATE_CHECK_WALK) {
            ad->last = seg->size;
        }

        ad->state = NGX_HTTP_AFFILIATE_CHECK_DONE;
    }
}


static ngx_int_t
ngx_http_affiliate_adopt_frame(ngx_http_affiliate_adopter_t *ad,
    struct aff_frame *frame, size_t offset)
{
    const u_char  *p;

    if (frame->type != AFF_FRAME_BOUNDARY) {
        ad->records++;
        return NGX_OK;
    }

    p = frame->payload.data;

    if (frame->payload.len != 8
        || aff_load_le32(p) != ad->segment->nbatches
        || aff_load_le32(p + 4) != ad->records
        || ngx_http_affiliate_adopt_batch(ad, offset) != NGX_OK)
    {
        return NGX_ERROR;
    }

    ad->first = offset + frame->length;
    ad->records = 0;

    return NGX_OK;
}


/* Notes the batch of the frames from ad->first to end. */

static ngx_int_t
ngx_http_affiliate_adopt_batch(ngx_http_affiliate_adopter_t *ad, size_t end)
{
    ngx_uint_t                     capacity;
    ngx_http_affiliate_batch_t    *batch;
    ngx_http_affiliate_segment_t  *seg;

    seg = ad->segment;

    if (end - ad->first > AFF_BATCH_MAX - AFF_BATCH_HEADER_BYTES
        || ad->records == 0)
    {
        return NGX_ERROR;
    }

    if (seg->nbatches == seg->capacity) {
        capacity = seg->capacity ? seg->capacity * 2 : 64;
        batch = realloc(seg->batches,
                        capacity * sizeof(ngx_http_affiliate_batch_t));
        if (batch == NULL) {
            return NGX_ERROR;
        }

        seg->batches = batch;
        seg->capacity = capacity;
    }

    batch = &seg->batches[seg->nbatches++];
    ngx_memzero(batch, sizeof(ngx_http_affiliate_batch_t));

    batch->offset = (uint32_t) ad->first;
    batch->length = (uint32_t) (end - ad->first);
    batch->records = (uint32_t) ad->records;
    batch->made = seg->made;

    return NGX_OK;
}


char *
ngx_http_affiliate_spool_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    char                             *p, *rv;
    ngx_str_t                        *value, threads;
    ngx_uint_t                        i;
    ngx_path_t                       *path;
    ngx_http_affiliate_spool_conf_t  *scf;

    p = conf;
    scf = (ngx_http_affiliate_spool_conf_t *) (p + cmd->offset);

    if (scf->path != NULL && scf->path != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    scf->path = NULL;
    scf->max_size = (off_t) 1024 * 1024 * 1024;
    scf->segment = 4 * 1024 * 1024;
    scf->sync = 1000;
    ngx_str_null(&threads);

    value = cf->args->elts;

    for (i = 2; i < cf->args->nelts; i++) {
        rv = ngx_http_affiliate_spool_parameter(cf, scf, &value[i], &threads);
        if (rv != NGX_CONF_OK) {
            return rv;
        }
    }

    /* every worker and channel has one segment in use and one ready */

    if (scf->max_size < (off_t) scf->segment * 4) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"max_size\" must be at least four times the size "
                           "of a segment in \"%V\" directive", &cmd->name);
        return NGX_CONF_ERROR;
    }

    path = ngx_pcalloc(cf->pool, sizeof(ngx_path_t));
    if (path == NULL) {
        return NGX_CONF_ERROR;
    }

    path->name = value[1];

    if (path->name.len > 1 && path->name.data[path->name.len - 1] == '/') {
        path->name.len--;
    }

    if (ngx_conf_full_name(cf->cycle, &path->name, 0) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    path->conf_file = cf->conf_file->file.name.data;
    path->line = cf->conf_file->line;

    scf->path = path;

    if (ngx_add_path(cf, &scf->path) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

#if (NGX_THREADS)

    scf->threads = ngx_thread_pool_add(cf, threads.len ? &threads : NULL);
    if (scf->threads == NULL) {
        return NGX_CONF_ERROR;
    }

#endif

    return NGX_CONF_OK;
}


static char *
ngx_http_affiliate_spool_parameter(ngx_conf_t *cf,
    ngx_http_affiliate_spool_conf_t *scf, ngx_str_t *value, ngx_str_t *threads)
{
    char      *rule;
    off_t      size;
    ngx_str_t  s;

    rule = "is no parameter of affiliate_spool";

    if (ngx_strncmp(value->data, "max_size=", 9) == 0) {
        s.len = value->len - 9;
        s.data = value->data + 9;

        size = ngx_parse_offset(&s);
        if (size == NGX_ERROR) {
            rule = "must be a size";
            goto invalid;
        }

        scf->max_size = size;
        return NGX_CONF_OK;
    }

    if (ngx_strncmp(value->data, "segment=", 8) == 0) {
        s.len = value->len - 8;
        s.data = value->data + 8;

        size = ngx_parse_offset(&s);

        if (size < NGX_HTTP_AFFILIATE_SPOOL_SEGMENT_MIN
            || size > AFF_SEGMENT_MAX)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"%V\" must be between 256k and 64m", value);
            return NGX_CONF_ERROR;
        }

        scf->segment = ngx_align((size_t) size, ngx_pagesize);
        return NGX_CONF_OK;
    }

    if (ngx_strcmp(value->data, "sync=off") == 0) {
        scf->sync = 0;
        return NGX_CONF_OK;
    }

    if (ngx_strncmp(value->data, "sync=", 5) == 0) {
        s.len = value->len - 5;
        s.data = value->data + 5;

        scf->sync = ngx_parse_time(&s, 0);

        if (scf->sync == (ngx_msec_t) NGX_ERROR || scf->sync == 0) {
            rule = "must be a time above 0, or \"off\"";
            goto invalid;
        }

        return NGX_CONF_OK;
    }

    if (ngx_strncmp(value->data, "threads=", 8) == 0 && value->len > 8) {
#if (NGX_THREADS)
        threads->len = value->len - 8;
        threads->data = value->data + 8;
        return NGX_CONF_OK;
#else
        (void) threads;
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" needs nginx built with threads", value);
        return NGX_CONF_ERROR;
#endif
    }

invalid:

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" %s", value, rule);
    return NGX_CONF_ERROR;
}
