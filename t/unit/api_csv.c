/* CSV, and buffers that leave memory: rows as RFC 4180 and spreadsheets write them, whatever pieces
 * they come in; what is refused; and what is written, read again. */

#include "unit.h"

#include "worker/api/csv.h"

struct table {
    char text[4096]; /* cells in [], rows ended by / */
    const char *problem;
    unsigned long row;
};

static void
note(struct table *table, const struct csv_reader *reader)
{
    size_t used = strlen(table->text);

    for (unsigned n = 0; n < reader->columns; n++) {
        struct aff_slice cell = csv_cell(reader, n);

        used += (size_t) snprintf(table->text + used, sizeof(table->text) - used, "[%.*s]",
            (int) cell.len, (const char *) cell.data);
    }

    (void) snprintf(table->text + used, sizeof(table->text) - used, "/");
}

/* Reads `data` in pieces of `piece` bytes, each in a block of its own. */
static struct table
read_table(struct aff_slice data, size_t piece, size_t room)
{
    struct table table = {.text = ""};
    struct csv_reader reader;
    uint8_t *bytes = malloc(room);
    enum csv_event event = CSV_MORE;

    assert_non_null(bytes);
    csv_init(&reader, bytes, room);
    while (data.len > 0 && event != CSV_BAD) {
        struct aff_slice copy = exact(data.data, data.len < piece ? data.len : piece);
        struct aff_slice input = copy;

        while ((event = csv_read(&reader, &input)) == CSV_ROW) {
            note(&table, &reader);
        }

        data = aff_slice(data.data + copy.len, data.len - copy.len);
        drop(copy);
    }

    while (event != CSV_BAD && (event = csv_end(&reader)) == CSV_ROW) {
        note(&table, &reader);
    }

    table.problem = event == CSV_BAD ? reader.problem : NULL;
    table.row = reader.row;
    free(bytes);
    return table;
}

static void
rows(void **state)
{
    static const struct {
        const char *csv;
        const char *want;
    } table[] = {
        {"", ""},
        {"\n\r\n\r", ""},
        {"a", "[a]/"},
        {"a,b\n1,2\n", "[a][b]/[1][2]/"},
        {"a,b\r\n1,2", "[a][b]/[1][2]/"},
        {"a,b\r1,2\r", "[a][b]/[1][2]/"},
        {"a,b\n\n\r\n1,2\n\n", "[a][b]/[1][2]/"},
        {"a,b\n,\n", "[a][b]/[][]/"},
        {"a,b\n1,", "[a][b]/[1][]/"},
        {"a,b\n\"\"\n", "[a][b]/[]/"},
        {"\"a\",\"b\"\n\"1\n,\"\"2\"\"\",\"\"", "[a][b]/[1\n,\"2\"][]/"},
        {"a;b,c\n1;2,3", "[a][b,c]/[1][2,3]/"},
        {"\"x,y\";b\n1;2", "[x,y][b]/[1][2]/"},
        {"a\tb\n1\t2", "[a][b]/[1][2]/"},
        {"a\n1,2", "[a]/[1,2]/"},
        {"a,b\n5\" pipe,x\"\n", "[a][b]/[5\" pipe][x\"]/"},
        {"a,b\n1\n1,2,3\n", "[a][b]/[1]/[1][2][3]/"},
        {"\xef\xbb\xbf"
         "a,b\n",
            "[a][b]/"},
        {"\xef\xbb\xbf\"a\",b\n", "[a][b]/"},
        {"\xef\xa3\xbf,b\n", "[\xef\xa3\xbf][b]/"},
        {"\xef\xbb\xbe,b\n", "[\xef\xbb\xbe][b]/"},
        {"नाम,\xf0\x9f\x98\x80\n", "[नाम][\xf0\x9f\x98\x80]/"},
    };

    (void) state;
    for (size_t i = 0; i < COUNT(table); i++) {
        for (size_t piece = 1; piece < 12; piece++) {
            struct table got = read_table(aff_slice_of(table[i].csv), piece, 4096);

            assert_null(got.problem);
            assert_string_equal(got.text, table[i].want);
        }
    }
}

static void
refused(void **state)
{
    static const struct {
        const char *csv;
        size_t len;
        const char *problem;
        unsigned long row;
    } table[] = {
#define CSV(text) (text), sizeof(text) - 1
        {CSV("a\n\"b"), "must have an end to each quote", 2},
        {CSV("a,b\n\n1,2\n\"b\"x,\n"),
            "must have nothing between a closing quote and the next separator", 3},
        {CSV("a\nb\0c\n"), "must be text in UTF-8, without NUL", 2},
        {CSV("\0"), "must be text in UTF-8, without NUL", 1},
        {CSV("\xef\xbb"), "must be text in UTF-8, without NUL", 1},
        {CSV("\xff\xfe"
             "a\0"),
            "must be text in UTF-8, without NUL", 1},
        {CSV("a\n\xc3,\xa9"), "must be text in UTF-8, without NUL", 2},
        {CSV("a\n\xc0\xaf"), "must be text in UTF-8, without NUL", 2},
        {CSV("a\n\xe0\x80\xaf"), "must be text in UTF-8, without NUL", 2},
        {CSV("a\n\xed\xa0\x80"), "must be text in UTF-8, without NUL", 2},
        {CSV("a\n\xf4\x90\x80\x80"), "must be text in UTF-8, without NUL", 2},
        {CSV("a\n\xf0\x9f\x98"), "must be text in UTF-8, without NUL", 2},
        {CSV("a\n12345678,12345678,1"), "must be shorter", 2},
#undef CSV
    };

    (void) state;
    for (size_t i = 0; i < COUNT(table); i++) {
        for (size_t piece = 1; piece < 12; piece++) {
            struct table got = read_table(aff_slice(table[i].csv, table[i].len), piece, 17);

            assert_non_null(got.problem);
            assert_string_equal(got.problem, table[i].problem);
            assert_int_equal(got.row, table[i].row);
        }
    }
}

/* Exactly the most is taken, one more is not. */
static void
bounds(void **state)
{
    char *csv = malloc(CSV_CELL_MAX + 2);
    struct csv_reader reader;
    struct aff_slice input;
    uint8_t *bytes = malloc(2 * CSV_CELL_MAX);

    (void) state;
    assert_non_null(csv);
    assert_non_null(bytes);

    memset(csv, 'x', CSV_CELL_MAX + 1);
    csv[CSV_CELL_MAX] = '\n';
    input = aff_slice(csv, CSV_CELL_MAX + 1);
    csv_init(&reader, bytes, 2 * CSV_CELL_MAX);
    assert_int_equal(csv_read(&reader, &input), CSV_ROW);
    assert_int_equal(csv_cell(&reader, 0).len, CSV_CELL_MAX);

    csv[CSV_CELL_MAX] = 'x';
    input = aff_slice(csv, CSV_CELL_MAX + 1);
    csv_init(&reader, bytes, 2 * CSV_CELL_MAX);
    assert_int_equal(csv_read(&reader, &input), CSV_BAD);
    assert_string_equal(reader.problem, "must have no cell of more than 65536 bytes");
    assert_int_equal(csv_read(&reader, &input), CSV_BAD);
    assert_int_equal(csv_end(&reader), CSV_BAD);

    for (unsigned columns = CSV_COLUMNS_MAX; columns <= CSV_COLUMNS_MAX + 1; columns++) {
        memset(csv, ',', columns);
        csv[columns - 1] = '\n';
        input = aff_slice(csv, columns);
        csv_init(&reader, bytes, 2 * CSV_CELL_MAX);
        assert_int_equal(csv_read(&reader, &input), columns == CSV_COLUMNS_MAX ? CSV_ROW : CSV_BAD);
    }

    assert_string_equal(reader.problem, "must have at most 128 cells");
    free(csv);
    free(bytes);
}

static void
written(void **state)
{
    static const struct {
        const char *cell;
        const char *want;
    } table[] = {
        {"", ""},
        {"tea", "tea"},
        {"a,b", "\"a,b\""},
        {"a;b", "\"a;b\""},
        {"say \"hi\"", "\"say \"\"hi\"\"\""},
        {"\"", "\"\"\"\""},
        {"two\r\nlines", "\"two\r\nlines\""},
        {"=1+1", "'=1+1"},
        {"=\"x\",1", "\"'=\"\"x\"\",1\""},
        {"@SUM(A1)", "'@SUM(A1)"},
        {"+9779812345678", "+9779812345678"},
        {"+977-98", "'+977-98"},
        {"-12.50", "-12.50"},
        {"-1.", "'-1."},
        {"-.5", "'-.5"},
        {"-", "'-"},
        {"-2+3", "'-2+3"},
        {"\tx", "\"'\tx\""},
        {"\xef\xbc\x9d"
         "1",
            "'\xef\xbc\x9d"
            "1"},
        {"\xef\xbc\xa1", "\xef\xbc\xa1"},
    };

    (void) state;
    for (size_t i = 0; i < COUNT(table); i++) {
        struct buffer out;
        struct aff_slice whole;

        buffer_open(&out, 4096, NULL);
        csv_put(&out, aff_slice_of(table[i].cell));
        assert_true(buffer_whole(&out, &whole));
        assert_slice(whole, table[i].want);
        buffer_close(&out);
    }
}

/* Rows of random cells out of what is awkward, read again. */
static void
round_trip(void **state)
{
    static const char *const parts[] = {"\"", ",", ";", "\n", "\r", "\t", "a", "9", " ", "é"};

    (void) state;
    for (int round = 0; round < 3000; round++) {
        struct buffer out;
        struct aff_slice whole;
        char want[4096] = "[h][i]/";
        size_t used = strlen(want);
        struct table got;

        buffer_open(&out, 1 << 20, NULL);
        buffer_puts(&out, "h,i\r\n");
        for (uint64_t row = next_random() % 4; row > 0; row--) {
            for (int column = 0; column < 3; column++) {
                char cell[64] = "x";

                for (uint64_t n = next_random() % 8; n > 0; n--) {
                    (void) strcat(cell, parts[next_random() % COUNT(parts)]);
                }

                buffer_puts(&out, column == 0 ? "" : ",");
                csv_put(&out, aff_slice_of(cell));
                used += (size_t) snprintf(want + used, sizeof(want) - used, "[%s]", cell);
            }

            buffer_puts(&out, "\r\n");
            used += (size_t) snprintf(want + used, sizeof(want) - used, "/");
        }

        assert_true(buffer_whole(&out, &whole));
        got = read_table(whole, 1 + next_random() % 40, 4096);
        assert_null(got.problem);
        assert_string_equal(got.text, want);
        buffer_close(&out);
    }
}

static void
test_buffer(void **state)
{
    static uint8_t block[100000];
    struct buffer buffer;
    struct aff_slice whole;

    (void) state;
    buffer_open(&buffer, 5000000, "/tmp");
    for (int round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 40; i++) {
            memset(block, (int) i, sizeof(block));
            buffer_put(&buffer, block, sizeof(block));
        }

        assert_true(buffer_whole(&buffer, &whole));
        assert_int_equal(whole.len, 4000000);
        assert_int_equal(buffer_total(&buffer), 4000000);
        assert_true(buffer.size <= 2 * BUFFER_MEMORY_MAX);
        for (unsigned i = 0; i < 40; i++) {
            memset(block, (int) i, sizeof(block));
            assert_memory_equal(whole.data + i * sizeof(block), block, sizeof(block));
        }

        buffer_reset(&buffer);
        assert_true(buffer_whole(&buffer, &whole) && whole.len == 0);
    }

    /* More than it may have, and then nothing any more. */
    for (unsigned i = 0; i < 51; i++) {
        buffer_put(&buffer, block, sizeof(block));
    }
    assert_false(buffer_whole(&buffer, &whole));
    buffer_close(&buffer);

    buffer_open(&buffer, 100, NULL);
    buffer_json(&buffer, aff_slice_of("a\"\\\n\x7f\xc3\xa9"));
    assert_true(buffer_whole(&buffer, &whole));
    assert_true(aff_slice_equal(whole, aff_slice_of("\"a\\\"\\\\\\u000a\\u007f\xc3\xa9\"")));
    buffer_close(&buffer);

    buffer_open(&buffer, 5000000, "/nonexistent");
    for (unsigned i = 0; i < 20; i++) {
        buffer_put(&buffer, block, sizeof(block));
    }
    assert_false(buffer_whole(&buffer, &whole));
    buffer_close(&buffer);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows),
        cmocka_unit_test(refused),
        cmocka_unit_test(bounds),
        cmocka_unit_test(written),
        cmocka_unit_test(round_trip),
        cmocka_unit_test(test_buffer),
    };

    seed_random();
    return RUN(tests);
}
