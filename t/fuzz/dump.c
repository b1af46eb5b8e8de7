/*
 * `affiliated dump` of any file, then with header and frames put right; and of any stream entry.
 * Whatever they are, what it prints is JSON, line by line.
 */

#include "fuzz.h"

#include "bytes.h"
#include "crc32c.h"
#include "frame.h"
#include "segment.h"
#include "worker/dump.h"

static void
check_lines(const char *text, size_t len)
{
    require(len > 0 && text[len - 1] == '\n');
    while (len > 0) {
        size_t line = (size_t) ((const char *) memchr(text, '\n', len) - text);
        json_t *object = json_loadb(text, line, 0, NULL);

        require(json_is_object(object) && json_object_get(object, "kind") != NULL);
        json_decref(object);
        text += line + 1;
        len -= line + 1;
    }
}

static void
dump_it(struct aff_slice data, bool segment, const struct aff_keyring *ring)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    require(out != NULL);
    if (segment) {
        (void) dump_segment(data, "a\xff file", out);
    } else {
        (void) dump_entry(data, "aff:clicks:0", "1-1", ring, out);
    }

    require(fclose(out) == 0);
    check_lines(text, len);
    free(text);
}

static void
mend(uint8_t *data, size_t len)
{
    uint32_t seed;

    memcpy(data, AFF_SEGMENT_MARK_USED, AFF_SEGMENT_MARK_BYTES);
    aff_store_le32(data + 8, AFF_SEGMENT_VERSION);
    aff_store_le64(data + 16, 1 + (data[16] & 1));
    aff_store_le64(data + 48, len);
    aff_store_le64(data + 56, 0);
    aff_store_le32(
        data + 12, aff_crc32c(AFF_SEGMENT_VERSION, data + 16, AFF_SEGMENT_HEADER_BYTES - 16));
    seed = aff_frame_seed(aff_load_le64(data + 24), aff_load_le64(data + 32));

    for (size_t at = AFF_SEGMENT_FRAMES; at + AFF_FRAME_HEADER_BYTES <= len;) {
        size_t length = aff_load_le32(data + at);

        if (length < AFF_FRAME_HEADER_BYTES || length > len - at) {
            return;
        }

        aff_store_le32(data + at + 4, aff_crc32c(seed, data + at + 8, length - 8));
        at += length;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t len = AFF_SEGMENT_FRAMES + size;
    uint8_t *copy;

    dump_it(aff_slice(data, size), true, NULL);
    dump_it(aff_slice(data, size), false, NULL);
    dump_it(aff_slice(data, size), false, fuzz_ring());

    if (size < AFF_SEGMENT_HEADER_BYTES) {
        return 0;
    }

    /* The header's page is left out of the input. */
    copy = calloc(1, len);
    require(copy != NULL);
    memcpy(copy, data, AFF_SEGMENT_HEADER_BYTES);
    memcpy(copy + AFF_SEGMENT_FRAMES, data + AFF_SEGMENT_HEADER_BYTES,
        size - AFF_SEGMENT_HEADER_BYTES);
    mend(copy, len - AFF_SEGMENT_HEADER_BYTES);
    dump_it(aff_slice(copy, len - AFF_SEGMENT_HEADER_BYTES), true, NULL);
    free(copy);

    return 0;
}
