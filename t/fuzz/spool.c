/*
 * Recovery of the spool. A byte of choices, then a segment's header and its frames, as they came or
 * put right, are the only file of a directory in which a worker looks for the segments of dead
 * ones. It ends up removed, kept aside, left alone or adopted; every batch that is adopted can be
 * read, frame by frame.
 */

#include "fuzz.h"

#include "../../ngx_module/ngx_http_affiliate_spool.c"

#include "crc32c.h"

#include <sys/stat.h>

#define NAME "0123456789abcdef.spool"

/* What there has to be of nginx. */

static ngx_time_t cached_time;
static ngx_cycle_t cycle;
static ngx_http_affiliate_stats_t stats;
ngx_http_affiliate_stats_t *ngx_http_affiliate_stats = &stats;
volatile ngx_time_t *ngx_cached_time = &cached_time;
volatile ngx_cycle_t *ngx_cycle = &cycle;
volatile ngx_msec_t ngx_current_msec;
ngx_uint_t ngx_exiting;
ngx_int_t ngx_ncpu = 1;
ngx_pid_t ngx_pid = 1;
ngx_uint_t ngx_pagesize = 4096;
ngx_rbtree_t ngx_event_timer_rbtree;
ngx_queue_t ngx_posted_events;

u_char *
ngx_cpystrn(u_char *dst, u_char *src, size_t n)
{
    return (u_char *) stpncpy((char *) dst, (char *) src, n - 1);
}

/* In the one form that makes a file's name. */
u_char *
ngx_sprintf(u_char *buf, const char *fmt, ...)
{
    va_list args;
    size_t len;
    const char *name, *suffix;

    require(strcmp(fmt, "%*s%s%Z") == 0);
    va_start(args, fmt);
    len = va_arg(args, size_t);
    name = va_arg(args, const char *);
    suffix = va_arg(args, const char *);
    va_end(args);

    memcpy(buf, name, len);
    return (u_char *) stpcpy((char *) buf + len, suffix) + 1;
}

/* An adopter that looks and checks calls none of these. */

ngx_queue_t ngx_posted_next_events;

/* clang-format off */
void *ngx_alloc(size_t size, ngx_log_t *log) { (void) size; (void) log; abort(); }
void *ngx_calloc(size_t size, ngx_log_t *log) { (void) size; (void) log; abort(); }
void *ngx_pcalloc(ngx_pool_t *pool, size_t size) { (void) pool; (void) size; abort(); }
void ngx_rbtree_insert(ngx_rbtree_t *tree, ngx_rbtree_node_t *node) { (void) tree; (void) node; abort(); }
void ngx_rbtree_delete(ngx_rbtree_t *tree, ngx_rbtree_node_t *node) { (void) tree; (void) node; abort(); }
off_t ngx_parse_offset(ngx_str_t *line) { (void) line; abort(); }
ngx_int_t ngx_parse_time(ngx_str_t *line, ngx_uint_t is_sec) { (void) line; (void) is_sec; abort(); }
ngx_int_t ngx_add_path(ngx_conf_t *cf, ngx_path_t **slot) { (void) cf; (void) slot; abort(); }
ngx_int_t ngx_conf_full_name(ngx_cycle_t *c, ngx_str_t *name, ngx_uint_t conf_prefix) { (void) c; (void) name; (void) conf_prefix; abort(); }
void ngx_conf_log_error(ngx_uint_t level, ngx_conf_t *cf, ngx_err_t err, const char *fmt, ...) { (void) level; (void) cf; (void) err; (void) fmt; abort(); }
void ngx_log_error_core(ngx_uint_t level, ngx_log_t *log, ngx_err_t err, const char *fmt, ...) { (void) level; (void) log; (void) err; (void) fmt; abort(); }
ngx_thread_pool_t *ngx_thread_pool_add(ngx_conf_t *cf, ngx_str_t *name) { (void) cf; (void) name; abort(); }
ngx_int_t ngx_thread_task_post(ngx_thread_pool_t *tp, ngx_thread_task_t *task) { (void) tp; (void) task; abort(); }
/* clang-format on */

static void
put_file(int dir, struct aff_slice header, struct aff_slice frames, size_t size)
{
    int fd = openat(dir, NAME, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);

    require(fd >= 0 && ftruncate(fd, (off_t) size) == 0);
    require(pwrite(fd, header.data, header.len, 0) == (ssize_t) header.len);
    require(pwrite(fd, frames.data, frames.len,
                size < AFF_SEGMENT_FRAMES ? 0 : AFF_SEGMENT_FRAMES) == (ssize_t) frames.len);
    require(close(fd) == 0);
}

static void
mend_header(uint8_t *header, size_t size)
{
    memcpy(header, AFF_SEGMENT_MARK_USED, AFF_SEGMENT_MARK_BYTES);
    aff_store_le32(header + 8, AFF_SEGMENT_VERSION);
    aff_store_le64(header + 16, 1 + (header[16] & 1));
    aff_store_le64(header + 48, size);
    aff_store_le64(header + 56, 0);
    aff_store_le32(
        header + 12, aff_crc32c(AFF_SEGMENT_VERSION, header + 16, AFF_SEGMENT_HEADER_BYTES - 16));
}

/* Up to the first that has no possible length; `spared` of them keep their crc. */
static void
mend_frames(uint8_t *p, size_t len, uint32_t seed, unsigned spared)
{
    while (len >= AFF_FRAME_HEADER_BYTES) {
        size_t length = aff_load_le32(p);

        if (length < AFF_FRAME_HEADER_BYTES || length > len) {
            return;
        }

        if (spared != 1) {
            aff_store_le32(p + 4, aff_crc32c(seed, p + 8, length - 8));
        }

        spared = spared > 0 ? spared - 1 : 0;
        p += length;
        len -= length;
    }
}

static void
check_batch(ngx_http_affiliate_segment_t *seg, ngx_http_affiliate_batch_t *batch)
{
    u_char *buf = malloc(batch->length);
    struct aff_slice rest = aff_slice(buf, batch->length);
    struct aff_frame frame;
    ngx_uint_t records = 0;

    require(buf != NULL);
    require(batch->offset >= AFF_SEGMENT_FRAMES && batch->offset + batch->length <= seg->size);
    require(batch->length <= AFF_BATCH_MAX - AFF_BATCH_HEADER_BYTES);
    require(ngx_http_affiliate_spool_payload(seg, batch, buf) == NGX_OK);

    while (rest.len > 0) {
        require(aff_frame_read(rest, seg->seed, &frame) == AFF_FRAME_OK);
        require(frame.type != AFF_FRAME_BOUNDARY);
        rest = aff_slice(rest.data + frame.length, rest.len - frame.length);
        records++;
    }

    require(records == batch->records);
    free(buf);
}

/* As a thread of nginx's pool would, file by file. */
static void
adopt(ngx_http_affiliate_spool_conf_t *conf)
{
    static u_char buf[NGX_HTTP_AFFILIATE_SPOOL_CHUNK + AFF_FRAME_MAX];
    ngx_http_affiliate_adopter_t ad = {.conf = conf, .buf = buf, .limit = 1, .threaded = 1};
    ngx_http_affiliate_segment_t *seg;
    uint32_t end = AFF_SEGMENT_FRAMES;

    ngx_http_affiliate_adopt_run(&ad);
    seg = ad.segment;

    if (seg != NULL) {
        require(ad.state == NGX_HTTP_AFFILIATE_CHECK_DONE);
        for (ngx_uint_t i = 0; i < seg->nbatches; i++) {
            require(seg->batches[i].offset >= end);
            end = seg->batches[i].offset + seg->batches[i].length;
            check_batch(seg, &seg->batches[i]);
        }

        require(ad.last >= end && ad.last <= seg->size);
        ngx_http_affiliate_spool_free(seg);
    }

    if (ad.dir != NULL) {
        (void) closedir(ad.dir);
    }
}

static char folder[] = "/dev/shm/affiliated-fuzz.XXXXXX";

static void
remove_folder(void)
{
    (void) rmdir(folder);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int dir = -1;
    static ngx_path_t path;
    ngx_http_affiliate_spool_conf_t conf = {.path = &path};
    _Alignas(8) uint8_t header[AFF_SEGMENT_HEADER_BYTES];
    size_t frames, whole;
    uint8_t *copy;

    if (dir < 0) {
        (void) atexit(remove_folder);
        require(mkdtemp(folder) != NULL);
        dir = open(folder, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
        require(dir >= 0);
        path.name.data = (u_char *) folder;
        path.name.len = sizeof(folder) - 1;
    }

    if (size < 1 + sizeof(header)) {
        return 0;
    }

    frames = size - 1 - sizeof(header);
    copy = malloc(frames + 1);
    require(copy != NULL);
    memcpy(header, data + 1, sizeof(header));
    memcpy(copy, data + 1 + sizeof(header), frames);

    /* The file ends with the last frame, or behind it, or is a header that somebody cut. */
    whole = (data[0] & 1) != 0 ? AFF_SEGMENT_FRAMES + frames : AFF_SEGMENT_FRAMES + frames + 4096;
    whole = (whole + 7) & ~(size_t) 7;
    if ((data[0] & 2) == 0) {
        mend_header(header, whole);
    }

    if ((data[0] & 4) == 0) {
        mend_frames(copy, frames,
            aff_frame_seed(aff_load_le64(header + 24), aff_load_le64(header + 32)), data[0] >> 4);
    }

    put_file(dir, aff_slice(header, (data[0] & 8) != 0 ? 17 : sizeof(header)),
        aff_slice(copy, frames), whole);
    adopt(&conf);
    (void) unlinkat(dir, NAME, 0);
    (void) unlinkat(dir, "0123456789abcdef" NGX_HTTP_AFFILIATE_SPOOL_CORRUPT, 0);
    free(copy);

    return 0;
}
