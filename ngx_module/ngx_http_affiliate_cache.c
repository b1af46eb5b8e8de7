
/*
 * Entries live in an arena of 64-byte blocks: a node, and a chain that holds
 * the rest.  Blocks are all alike, so that evicting always makes room, and the
 * arena is ours alone, so that it can be begun anew: "dirty" stands while the
 * tree, the queues or the free list are in between two states, and whoever
 * takes the mutex after a worker that died there empties the cache instead of
 * following its pointers.
 *
 * Negatives have a share of the blocks that links and keys can't take, and the
 * other way round: guessing codes does not evict what is in use.
 */

#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_affiliate_cache.h"


#define NGX_HTTP_AFFILIATE_BLOCK           64
#define NGX_HTTP_AFFILIATE_BLOCKS_MIN      256
#define NGX_HTTP_AFFILIATE_NEGATIVE_SHARE  8    /* one block of so many */
#define NGX_HTTP_AFFILIATE_RECENT          64
#define NGX_HTTP_AFFILIATE_NAME_MAX        64
#define NGX_HTTP_AFFILIATE_VARINT_MAX      10


typedef struct ngx_http_affiliate_block_s  ngx_http_affiliate_block_t;

struct ngx_http_affiliate_block_s {
    ngx_http_affiliate_block_t     *next;
    u_char                          data[NGX_HTTP_AFFILIATE_BLOCK
                                         - sizeof(void *)];
};


/* The first block of an entry's chain: name and record begin in it. */
typedef struct {
    ngx_http_affiliate_block_t     *next;
    ngx_msec_t                      fetched;
    ngx_msec_t                      locked;   /* until */
    uint32_t                        epoch;
    uint32_t                        used;     /* second of the last touch */
    uint16_t                        len;      /* of name and record */
    unsigned                        kind:4;
    unsigned                        negative:1;
    unsigned                        changed:1;
    unsigned                        name_len:8;
    u_char                          data[NGX_HTTP_AFFILIATE_BLOCK
                                         - sizeof(void *)
                                         - 2 * sizeof(ngx_msec_t) - 12];
} ngx_http_affiliate_head_t;


typedef struct {
    ngx_rbtree_node_t               node;     /* key is the name's hash */
    ngx_queue_t                     queue;
    ngx_http_affiliate_head_t      *head;
} ngx_http_affiliate_entry_t;


/* Links and keys, or negatives. */
typedef struct {
    ngx_queue_t                     lru;      /* most recently used first */
    ngx_uint_t                      used;     /* blocks */
    ngx_uint_t                      max;
} ngx_http_affiliate_share_t;


struct ngx_http_affiliate_cache_s {
    ngx_slab_pool_t                *shpool;
    ngx_rbtree_t                    rbtree;
    ngx_rbtree_node_t               sentinel;
    ngx_http_affiliate_share_t      shares[2];   /* by head->negative */
    ngx_http_affiliate_block_t     *free;
    ngx_http_affiliate_block_t     *fresh;       /* never used from here on */
    ngx_http_affiliate_block_t     *begin;
    ngx_uint_t                      blocks;
    ngx_uint_t                      dirty;
    uint32_t                        epoch;
    uint32_t                        version;     /* changes with any answer */

    /* the names invalidated last, by their hashes */
    uint32_t                        changes;
    uint32_t                        recent[NGX_HTTP_AFFILIATE_RECENT];

    ngx_uint_t                      entries[NGX_HTTP_AFFILIATE_KINDS];
    ngx_uint_t                      negatives;
    uint64_t                        evictions;
    uint64_t                        resets;
};


_Static_assert(sizeof(ngx_http_affiliate_block_t) == NGX_HTTP_AFFILIATE_BLOCK,
               "a block has another size");
_Static_assert(sizeof(ngx_http_affiliate_head_t) == NGX_HTTP_AFFILIATE_BLOCK,
               "an entry's head is not a block");
_Static_assert(sizeof(ngx_http_affiliate_entry_t) <= NGX_HTTP_AFFILIATE_BLOCK,
               "an entry's node does not fit a block");
_Static_assert(sizeof(((ngx_http_affiliate_head_t *) 0)->data)
               + sizeof(((ngx_http_affiliate_block_t *) 0)->data)
               >= NGX_HTTP_AFFILIATE_NAME_MAX,
               "a name may need a third block");
_Static_assert(AFF_CODE_MAX <= NGX_HTTP_AFFILIATE_NAME_MAX,
               "a code is longer than a name");
_Static_assert(7 * NGX_HTTP_AFFILIATE_VARINT_MAX + 1
               + 2 * (2 + AFF_URL_MAX) + 1 + AFF_PARAM_MAX
               + AFF_LINK_HOSTS_MAX * (2 + 2 + AFF_HOST_MAX)
               <= NGX_HTTP_AFFILIATE_RECORD_MAX,
               "the largest link does not fit its packed record");


static void ngx_http_affiliate_cache_lock(ngx_http_affiliate_cache_t *cache);
static void ngx_http_affiliate_cache_unlock(
    ngx_http_affiliate_cache_t *cache);
static void ngx_http_affiliate_cache_change(ngx_http_affiliate_cache_t *cache);
static void ngx_http_affiliate_cache_empty(ngx_http_affiliate_cache_t *cache);
static void ngx_http_affiliate_cache_insert_value(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel);
static ngx_http_affiliate_entry_t *ngx_http_affiliate_cache_find(
    ngx_http_affiliate_cache_t *cache, uint32_t hash,
    ngx_http_affiliate_kind_e kind, ngx_str_t *name);
static void ngx_http_affiliate_cache_delete(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_entry_t *entry);
static ngx_int_t ngx_http_affiliate_cache_room(
    ngx_http_affiliate_cache_t *cache, ngx_http_affiliate_share_t *share,
    ngx_uint_t n);
static void ngx_http_affiliate_cache_add(ngx_http_affiliate_cache_t *cache,
    uint32_t hash, ngx_http_affiliate_head_t *meta, ngx_str_t *name,
    ngx_http_affiliate_record_t *record);
static ngx_uint_t ngx_http_affiliate_cache_changed(
    ngx_http_affiliate_cache_t *cache, uint32_t hash,
    ngx_http_affiliate_cache_mark_t *mark);


ngx_http_affiliate_cache_t *
ngx_http_affiliate_cache_init(ngx_slab_pool_t *shpool)
{
    size_t                       size;
    ngx_uint_t                   pages;
    ngx_http_affiliate_cache_t  *cache;

    cache = ngx_slab_calloc(shpool, sizeof(ngx_http_affiliate_cache_t));
    if (cache == NULL) {
        return NULL;
    }

    /* one run of pages, unless somebody has cut the zone into pieces */

    for (pages = shpool->pfree; pages != 0; pages--) {
        size = pages * ngx_pagesize;

        if (size < NGX_HTTP_AFFILIATE_BLOCKS_MIN * NGX_HTTP_AFFILIATE_BLOCK) {
            break;
        }

        cache->begin = ngx_slab_alloc(shpool, size);

        if (cache->begin != NULL) {
            cache->shpool = shpool;
            cache->blocks = size / NGX_HTTP_AFFILIATE_BLOCK;
            cache->shares[1].max = cache->blocks
                                   / NGX_HTTP_AFFILIATE_NEGATIVE_SHARE;
            cache->shares[0].max = cache->blocks - cache->shares[1].max;

            ngx_http_affiliate_cache_empty(cache);

            return cache;
        }
    }

    ngx_slab_free(shpool, cache);

    return NULL;
}


ngx_http_affiliate_found_e
ngx_http_affiliate_cache_get(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_kind_e kind, ngx_str_t *name,
    ngx_http_affiliate_cache_times_t *times, ngx_msec_t lock,
    ngx_http_affiliate_record_t *record, ngx_uint_t *refresh)
{
    size_t                       len, n, skip;
    u_char                      *p;
    uint32_t                     hash, second;
    ngx_msec_int_t               age;
    ngx_http_affiliate_head_t   *head;
    ngx_http_affiliate_block_t  *block;
    ngx_http_affiliate_entry_t  *entry;
    ngx_http_affiliate_found_e   found;

    *refresh = 0;
    hash = ngx_http_affiliate_cache_hash(kind, name);

    ngx_http_affiliate_cache_lock(cache);

    entry = ngx_http_affiliate_cache_find(cache, hash, kind, name);

    if (entry == NULL) {
        ngx_http_affiliate_cache_unlock(cache);
        return NGX_HTTP_AFFILIATE_ABSENT;
    }

    head = entry->head;
    age = (ngx_msec_int_t) (ngx_current_msec - head->fetched);

    if (head->negative) {
        found = (age < (ngx_msec_int_t) times->negative
                 && head->epoch == cache->epoch)
                ? NGX_HTTP_AFFILIATE_NOT_THERE : NGX_HTTP_AFFILIATE_ABSENT;

        ngx_http_affiliate_cache_unlock(cache);
        return found;
    }

    if (age >= (ngx_msec_int_t) times->stale) {
        ngx_http_affiliate_cache_unlock(cache);
        return NGX_HTTP_AFFILIATE_ABSENT;
    }

    found = NGX_HTTP_AFFILIATE_FRESH;

    if (head->changed) {
        found = NGX_HTTP_AFFILIATE_CHANGED;

    } else if (age >= (ngx_msec_int_t) times->valid
               || head->epoch != cache->epoch)
    {
        found = NGX_HTTP_AFFILIATE_OLD;

        if (lock && (ngx_msec_int_t) (ngx_current_msec - head->locked) >= 0) {
            head->locked = ngx_current_msec + lock;
            *refresh = 1;
        }
    }

    /* a hot entry is moved once a second at most */

    second = (uint32_t) (ngx_current_msec / 1000);

    if (head->used != second) {
        head->used = second;

        cache->dirty = 1;
        ngx_memory_barrier();

        ngx_queue_remove(&entry->queue);
        ngx_queue_insert_head(&cache->shares[0].lru, &entry->queue);

        ngx_memory_barrier();
        cache->dirty = 0;
    }

    /* the name is known: only the record behind it is copied */

    skip = head->name_len;
    len = head->len - skip;
    record->len = len;
    record->version = cache->version;
    record->fresh = head->fetched + times->valid;
    p = record->data;

    if (skip < sizeof(head->data)) {
        n = ngx_min(len, sizeof(head->data) - skip);
        p = ngx_cpymem(p, head->data + skip, n);
        len -= n;
        skip = 0;

    } else {
        skip -= sizeof(head->data);
    }

    for (block = head->next; len != 0; block = block->next) {
        n = ngx_min(len, sizeof(block->data) - skip);
        p = ngx_cpymem(p, block->data + skip, n);
        len -= n;
        skip = 0;
    }

    ngx_http_affiliate_cache_unlock(cache);

    return found;
}


void
ngx_http_affiliate_cache_put(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_kind_e kind, ngx_str_t *name,
    ngx_http_affiliate_cache_mark_t *mark, ngx_http_affiliate_record_t *record)
{
    size_t                       len;
    uint32_t                     hash;
    ngx_uint_t                   n;
    ngx_http_affiliate_head_t    meta;
    ngx_http_affiliate_entry_t  *entry;

    if (name->len > NGX_HTTP_AFFILIATE_NAME_MAX) {
        return;
    }

    len = name->len + (record ? record->len : 0);

    ngx_memzero(&meta, sizeof(ngx_http_affiliate_head_t));

    meta.fetched = ngx_current_msec;
    meta.locked = ngx_current_msec;
    meta.epoch = mark->epoch;
    meta.used = (uint32_t) (ngx_current_msec / 1000);
    meta.len = (uint16_t) len;
    meta.kind = kind;
    meta.negative = (record == NULL);
    meta.name_len = name->len;

    n = 2;

    if (len > sizeof(meta.data)) {
        len -= sizeof(meta.data);
        n += (len + sizeof(((ngx_http_affiliate_block_t *) 0)->data) - 1)
             / sizeof(((ngx_http_affiliate_block_t *) 0)->data);
    }

    hash = ngx_http_affiliate_cache_hash(kind, name);

    ngx_http_affiliate_cache_lock(cache);

    meta.changed = ngx_http_affiliate_cache_changed(cache, hash, mark);

    cache->dirty = 1;
    ngx_memory_barrier();

    entry = ngx_http_affiliate_cache_find(cache, hash, kind, name);

    if (entry) {
        ngx_http_affiliate_cache_delete(cache, entry);
    }

    /* a negative that may be wrong already is worth nothing */

    if (!(meta.negative && meta.changed)
        && ngx_http_affiliate_cache_room(cache, &cache->shares[meta.negative],
                                         n)
           == NGX_OK)
    {
        ngx_http_affiliate_cache_add(cache, hash, &meta, name, record);
    }

    ngx_memory_barrier();
    cache->dirty = 0;

    ngx_http_affiliate_cache_change(cache);
    ngx_http_affiliate_cache_unlock(cache);
}


void
ngx_http_affiliate_cache_mark(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_cache_mark_t *mark)
{
    ngx_http_affiliate_cache_lock(cache);

    mark->epoch = cache->epoch;
    mark->changes = cache->changes;

    ngx_http_affiliate_cache_unlock(cache);
}


void
ngx_http_affiliate_cache_invalidate(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_kind_e kind, ngx_str_t *name)
{
    uint32_t                     hash;
    ngx_http_affiliate_entry_t  *entry;

    hash = ngx_http_affiliate_cache_hash(kind, name);

    ngx_http_affiliate_cache_lock(cache);

    cache->recent[cache->changes % NGX_HTTP_AFFILIATE_RECENT] = hash;
    cache->changes++;

    entry = ngx_http_affiliate_cache_find(cache, hash, kind, name);

    if (entry && entry->head->negative) {
        cache->dirty = 1;
        ngx_memory_barrier();

        ngx_http_affiliate_cache_delete(cache, entry);

        ngx_memory_barrier();
        cache->dirty = 0;

    } else if (entry) {
        entry->head->changed = 1;
    }

    ngx_http_affiliate_cache_change(cache);
    ngx_http_affiliate_cache_unlock(cache);
}


void
ngx_http_affiliate_cache_invalidate_all(ngx_http_affiliate_cache_t *cache)
{
    ngx_http_affiliate_cache_lock(cache);

    cache->epoch++;

    ngx_http_affiliate_cache_change(cache);
    ngx_http_affiliate_cache_unlock(cache);
}


void
ngx_http_affiliate_cache_use(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_cache_use_t *use)
{
    ngx_http_affiliate_cache_lock(cache);

    use->size = cache->blocks * NGX_HTTP_AFFILIATE_BLOCK;
    use->used = (cache->shares[0].used + cache->shares[1].used)
                * NGX_HTTP_AFFILIATE_BLOCK;
    use->links = cache->entries[NGX_HTTP_AFFILIATE_LINK];
    use->keys = cache->entries[NGX_HTTP_AFFILIATE_KEY];
    use->negatives = cache->negatives;
    use->evictions = cache->evictions;
    use->resets = cache->resets;

    ngx_http_affiliate_cache_unlock(cache);
}


uint32_t
ngx_http_affiliate_cache_hash(ngx_http_affiliate_kind_e kind, ngx_str_t *name)
{
    return ngx_murmur_hash2(name->data, name->len) ^ (uint32_t) kind;
}


static void
ngx_http_affiliate_cache_lock(ngx_http_affiliate_cache_t *cache)
{
    ngx_shmtx_lock(&cache->shpool->mutex);

    if (cache->dirty) {
        ngx_http_affiliate_cache_empty(cache);
        ngx_http_affiliate_cache_change(cache);
        cache->resets++;
    }
}


/* Under the mutex: what a worker keeps for itself is worth nothing now. */

static void
ngx_http_affiliate_cache_change(ngx_http_affiliate_cache_t *cache)
{
    __atomic_store_n(&cache->version, cache->version + 1, __ATOMIC_RELEASE);
}


uint32_t
ngx_http_affiliate_cache_version(ngx_http_affiliate_cache_t *cache)
{
    return __atomic_load_n(&cache->version, __ATOMIC_ACQUIRE);
}


static void
ngx_http_affiliate_cache_unlock(ngx_http_affiliate_cache_t *cache)
{
    ngx_shmtx_unlock(&cache->shpool->mutex);
}


static void
ngx_http_affiliate_cache_empty(ngx_http_affiliate_cache_t *cache)
{
    cache->dirty = 1;
    ngx_memory_barrier();

    ngx_rbtree_init(&cache->rbtree, &cache->sentinel,
                    ngx_http_affiliate_cache_insert_value);
    ngx_queue_init(&cache->shares[0].lru);
    ngx_queue_init(&cache->shares[1].lru);

    cache->shares[0].used = 0;
    cache->shares[1].used = 0;
    cache->free = NULL;
    cache->fresh = cache->begin;
    cache->entries[NGX_HTTP_AFFILIATE_LINK] = 0;
    cache->entries[NGX_HTTP_AFFILIATE_KEY] = 0;
    cache->negatives = 0;

    ngx_memory_barrier();
    cache->dirty = 0;
}


static ngx_int_t
ngx_http_affiliate_cache_compare(ngx_http_affiliate_kind_e kind,
    const u_char *name, size_t len, ngx_http_affiliate_head_t *head)
{
    ngx_int_t  rc;

    if (kind != head->kind) {
        return (ngx_int_t) kind - (ngx_int_t) head->kind;
    }

    if (len != head->name_len) {
        return (ngx_int_t) len - (ngx_int_t) head->name_len;
    }

    rc = ngx_memcmp(name, head->data, ngx_min(len, sizeof(head->data)));

    if (rc != 0 || len <= sizeof(head->data)) {
        return rc;
    }

    return ngx_memcmp(name + sizeof(head->data), head->next->data,
                      len - sizeof(head->data));
}


static void
ngx_http_affiliate_cache_insert_value(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel)
{
    u_char                       name[NGX_HTTP_AFFILIATE_NAME_MAX];
    size_t                       n;
    ngx_rbtree_node_t          **p;
    ngx_http_affiliate_head_t   *head;
    ngx_http_affiliate_entry_t  *entry, *other;

    entry = ngx_rbtree_data(node, ngx_http_affiliate_entry_t, node);
    head = entry->head;

    n = ngx_min(head->name_len, sizeof(head->data));
    ngx_memcpy(name, head->data, n);

    if (n < head->name_len) {
        ngx_memcpy(name + n, head->next->data, head->name_len - n);
    }

    for ( ;; ) {

        if (node->key != temp->key) {
            p = (node->key < temp->key) ? &temp->left : &temp->right;

        } else {
            other = ngx_rbtree_data(temp, ngx_http_affiliate_entry_t, node);

            p = (ngx_http_affiliate_cache_compare(head->kind, name,
                                                  head->name_len, other->head)
                 < 0)
                ? &temp->left : &temp->right;
        }

        if (*p == sentinel) {
            break;
        }

        temp = *p;
    }

    *p = node;
    node->parent = temp;
    node->left = sentinel;
    node->right = sentinel;
    ngx_rbt_red(node);
}


static ngx_http_affiliate_entry_t *
ngx_http_affiliate_cache_find(ngx_http_affiliate_cache_t *cache, uint32_t hash,
    ngx_http_affiliate_kind_e kind, ngx_str_t *name)
{
    ngx_int_t                    rc;
    ngx_rbtree_node_t           *node, *sentinel;
    ngx_http_affiliate_entry_t  *entry;

    node = cache->rbtree.root;
    sentinel = cache->rbtree.sentinel;

    while (node != sentinel) {

        if (hash != node->key) {
            node = (hash < node->key) ? node->left : node->right;
            continue;
        }

        entry = ngx_rbtree_data(node, ngx_http_affiliate_entry_t, node);

        rc = ngx_http_affiliate_cache_compare(kind, name->data, name->len,
                                              entry->head);
        if (rc == 0) {
            return entry;
        }

        node = (rc < 0) ? node->left : node->right;
    }

    return NULL;
}


static void
ngx_http_affiliate_cache_delete(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_entry_t *entry)
{
    ngx_uint_t                   n, negative;
    ngx_http_affiliate_block_t  *block, *last;

    negative = entry->head->negative;

    if (negative) {
        cache->negatives--;

    } else {
        cache->entries[entry->head->kind]--;
    }

    ngx_rbtree_delete(&cache->rbtree, &entry->node);
    ngx_queue_remove(&entry->queue);

    /* the node goes in front of its chain, the chain in front of the rest */

    n = 2;
    last = (ngx_http_affiliate_block_t *) entry->head;

    while (last->next) {
        last = last->next;
        n++;
    }

    block = (ngx_http_affiliate_block_t *) entry;
    block->next = (ngx_http_affiliate_block_t *) entry->head;
    last->next = cache->free;
    cache->free = block;

    cache->shares[negative].used -= n;
}


/* Evicts from one share only: what it holds is never more than its maximum. */

static ngx_int_t
ngx_http_affiliate_cache_room(ngx_http_affiliate_cache_t *cache,
    ngx_http_affiliate_share_t *share, ngx_uint_t n)
{
    ngx_queue_t                 *q;
    ngx_http_affiliate_entry_t  *entry;

    if (n > share->max) {
        return NGX_DECLINED;
    }

    while (share->used + n > share->max) {

        q = ngx_queue_last(&share->lru);
        entry = ngx_queue_data(q, ngx_http_affiliate_entry_t, queue);

        ngx_http_affiliate_cache_delete(cache, entry);
        cache->evictions++;
    }

    return NGX_OK;
}


static ngx_http_affiliate_block_t *
ngx_http_affiliate_cache_block(ngx_http_affiliate_cache_t *cache)
{
    ngx_http_affiliate_block_t  *block;

    block = cache->free;

    if (block) {
        cache->free = block->next;

    } else {
        block = cache->fresh++;
    }

    block->next = NULL;

    return block;
}


/* The room for it has been made: no allocation can fail. */

static void
ngx_http_affiliate_cache_add(ngx_http_affiliate_cache_t *cache, uint32_t hash,
    ngx_http_affiliate_head_t *meta, ngx_str_t *name,
    ngx_http_affiliate_record_t *record)
{
    u_char                       *src, *end, *dst, *full;
    size_t                        n;
    ngx_uint_t                    used, part;
    ngx_http_affiliate_head_t    *head;
    ngx_http_affiliate_block_t  **next;
    ngx_http_affiliate_entry_t   *entry;

    entry = (ngx_http_affiliate_entry_t *)
                ngx_http_affiliate_cache_block(cache);
    head = (ngx_http_affiliate_head_t *)
               ngx_http_affiliate_cache_block(cache);

    *head = *meta;
    entry->head = head;
    entry->node.key = hash;

    used = 2;
    next = &head->next;
    dst = head->data;
    full = head->data + sizeof(head->data);

    /* the name first, the record behind it */

    src = name->data;
    end = src + name->len;

    for (part = 0; part < 2; part++) {

        while (src != end) {

            if (dst == full) {
                *next = ngx_http_affiliate_cache_block(cache);
                dst = (*next)->data;
                full = dst + sizeof((*next)->data);
                next = &(*next)->next;
                used++;
            }

            n = ngx_min(end - src, full - dst);
            dst = ngx_cpymem(dst, src, n);
            src += n;
        }

        if (record == NULL) {
            break;
        }

        src = record->data;
        end = src + record->len;
    }

    if (head->negative) {
        cache->negatives++;

    } else {
        cache->entries[head->kind]++;
    }

    cache->shares[head->negative].used += used;

    ngx_rbtree_insert(&cache->rbtree, &entry->node);
    ngx_queue_insert_head(&cache->shares[head->negative].lru, &entry->queue);
}


/* Whether the name was, or may have been, invalidated after the mark. */

static ngx_uint_t
ngx_http_affiliate_cache_changed(ngx_http_affiliate_cache_t *cache,
    uint32_t hash, ngx_http_affiliate_cache_mark_t *mark)
{
    uint32_t  n, i;

    n = cache->changes - mark->changes;

    if (n > NGX_HTTP_AFFILIATE_RECENT) {
        return 1;
    }

    for (i = 0; i < n; i++) {
        if (cache->recent[(mark->changes + i) % NGX_HTTP_AFFILIATE_RECENT]
            == hash)
        {
            return 1;
        }
    }

    return 0;
}


/*
 * Packed records.  Numbers are seven bits a byte, least significant first,
 * strings follow their length; a link is
 *
 *     version, link id, merchant id, campaign id, affiliate id, expires,
 *     a byte of state, livemode and number of hosts,
 *     url, param, fallback, hosts
 *
 * and a key
 *
 *     version, merchant id, a byte of livemode and revoked, master key's id
 */

static u_char *
ngx_http_affiliate_pack_number(u_char *p, uint64_t n)
{
    while (n >= 0x80) {
        *p++ = (u_char) (n | 0x80);
        n >>= 7;
    }

    *p++ = (u_char) n;

    return p;
}


static u_char *
ngx_http_affiliate_pack_slice(u_char *p, struct aff_slice s)
{
    p = ngx_http_affiliate_pack_number(p, s.len);

    return s.len ? ngx_cpymem(p, s.data, s.len) : p;
}


static uint64_t
ngx_http_affiliate_unpack_number(struct aff_reader *in)
{
    u_char      c;
    uint64_t    n;
    ngx_uint_t  shift;

    n = 0;

    for (shift = 0; shift < 64 && in->pos != in->end; shift += 7) {
        c = *in->pos++;
        n |= (uint64_t) (c & 0x7f) << shift;

        if (!(c & 0x80)) {
            return n;
        }
    }

    in->failed = true;

    return 0;
}


static struct aff_slice
ngx_http_affiliate_unpack_slice(struct aff_reader *in)
{
    size_t          len;
    const uint8_t  *p;

    len = ngx_http_affiliate_unpack_number(in);
    p = aff_take(in, len);

    return aff_slice(p, p ? len : 0);
}


ngx_int_t
ngx_http_affiliate_link_pack(const struct aff_link *link,
    ngx_http_affiliate_record_t *record)
{
    u_char    *p;
    unsigned   i;

    if (link->url.len > AFF_URL_MAX || link->fallback.len > AFF_URL_MAX
        || link->param.len > AFF_PARAM_MAX
        || link->hosts_count > AFF_LINK_HOSTS_MAX)
    {
        return NGX_ERROR;
    }

    p = record->data;
    p = ngx_http_affiliate_pack_number(p, link->version);
    p = ngx_http_affiliate_pack_number(p, link->link_id);
    p = ngx_http_affiliate_pack_number(p, link->merchant_id);
    p = ngx_http_affiliate_pack_number(p, link->campaign_id);
    p = ngx_http_affiliate_pack_number(p, link->affiliate_id);
    p = ngx_http_affiliate_pack_number(p, link->expires_ms);
    *p++ = (u_char) (link->state | link->livemode << 3
                     | link->hosts_count << 4);
    p = ngx_http_affiliate_pack_slice(p, link->url);
    p = ngx_http_affiliate_pack_slice(p, link->param);
    p = ngx_http_affiliate_pack_slice(p, link->fallback);

    for (i = 0; i < link->hosts_count; i++) {

        if (link->hosts[i].len > AFF_HOST_MAX + 2) {
            return NGX_ERROR;
        }

        p = ngx_http_affiliate_pack_slice(p, link->hosts[i]);
    }

    record->len = p - record->data;

    return NGX_OK;
}


ngx_int_t
ngx_http_affiliate_key_pack(const struct aff_key *key,
    ngx_http_affiliate_record_t *record)
{
    u_char  *p;

    if (key->master_id.len > AFF_MASTER_KEY_ID_MAX) {
        return NGX_ERROR;
    }

    p = record->data;
    p = ngx_http_affiliate_pack_number(p, key->version);
    p = ngx_http_affiliate_pack_number(p, key->merchant_id);
    *p++ = (u_char) (key->livemode | key->revoked << 1);
    p = ngx_http_affiliate_pack_slice(p, key->master_id);

    record->len = p - record->data;

    return NGX_OK;
}


ngx_int_t
ngx_http_affiliate_link_unpack(struct aff_link *link, u_char *p,
    ngx_str_t *code, const u_char *data, size_t len)
{
    unsigned           i, bits;
    const char        *rule;
    struct aff_reader  in;

    link->code = aff_slice(p, code->len);
    p = ngx_cpymem(p, code->data, code->len);
    ngx_memcpy(p, data, len);

    in.pos = p;
    in.end = p + len;
    in.failed = false;

    link->version = ngx_http_affiliate_unpack_number(&in);
    link->link_id = ngx_http_affiliate_unpack_number(&in);
    link->merchant_id = ngx_http_affiliate_unpack_number(&in);
    link->campaign_id = ngx_http_affiliate_unpack_number(&in);
    link->affiliate_id = ngx_http_affiliate_unpack_number(&in);
    link->expires_ms = ngx_http_affiliate_unpack_number(&in);

    bits = aff_get_u8(&in);
    link->state = bits & 7;
    link->livemode = (bits >> 3) & 1;
    link->hosts_count = bits >> 4;

    link->url = ngx_http_affiliate_unpack_slice(&in);
    link->param = ngx_http_affiliate_unpack_slice(&in);
    link->fallback = ngx_http_affiliate_unpack_slice(&in);

    if (link->hosts_count > AFF_LINK_HOSTS_MAX) {
        return NGX_ERROR;
    }

    for (i = 0; i < link->hosts_count; i++) {
        link->hosts[i] = ngx_http_affiliate_unpack_slice(&in);
    }

    if (in.failed || in.pos != in.end) {
        return NGX_ERROR;
    }

    if (!aff_url_check(link->url, NULL, &rule)
        || (link->fallback.len != 0
            && !aff_url_check(link->fallback, NULL, &rule)))
    {
        ngx_log_error(NGX_LOG_ALERT, ngx_cycle->log, 0,
                      "affiliate link \"%V\" leads nowhere: it %s", code, rule);
        return NGX_ERROR;
    }

    return NGX_OK;
}


struct aff_key *
ngx_http_affiliate_key_unpack(ngx_pool_t *pool, ngx_str_t *id,
    const u_char *data, size_t len)
{
    u_char             *p;
    unsigned            bits;
    struct aff_key     *key;
    struct aff_reader   in;

    key = ngx_palloc(pool, sizeof(struct aff_key) + id->len + len);
    if (key == NULL) {
        return NULL;
    }

    p = (u_char *) key + sizeof(struct aff_key);
    key->id = aff_slice(p, id->len);
    p = ngx_cpymem(p, id->data, id->len);
    ngx_memcpy(p, data, len);

    in.pos = p;
    in.end = p + len;
    in.failed = false;

    key->version = ngx_http_affiliate_unpack_number(&in);
    key->merchant_id = ngx_http_affiliate_unpack_number(&in);

    bits = aff_get_u8(&in);
    key->livemode = bits & 1;
    key->revoked = (bits >> 1) & 1;

    key->master_id = ngx_http_affiliate_unpack_slice(&in);

    return (in.failed || in.pos != in.end) ? NULL : key;
}
