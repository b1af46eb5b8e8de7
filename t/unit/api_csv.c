/* CSV in and out, and buffers that leave memory. */

#include "unit.h"

#include "worker/api/csv.h"

/* All rows as text: cells with | between, rows ended by /; then what the end was. */
static const char *
read_all(const char *csv, size_t len)
{
    static char out[4096];
    static struct csv_row row;
    struct csv_reader reader;
    enum csv_result result;
    size_t n = 0;

    csv_open(&reader, aff_slice(csv, len));
    while ((result = csv_next(&reader, &row)) == CSV_ROW) {
        for (unsigned i = 0; i < row.count; i++) {
            n += (size_t) snprintf(out + n, sizeof(out) - n, "%s%.*s", i == 0 ? "" : "|",
                (int) row.cells[i].len, (const char *) row.cells[i].data);
        }

        n += (size_t) snprintf(out + n, sizeof(out) - n, "/");
    }

    snprintf(out + n, sizeof(out) - n, "%s",
        result == CSV_END         ? "."
        : result == CSV_MALFORMED ? "!"
                                  : "#");
    csv_close(&reader);
    return out;
}

static void
test_read(void **state)
{
    static const char *const cases[][2] = {
        {"", "."},
        {"\r\n\n", "."},
        {"a,b\r\n1,2\r\n", "a|b/1|2/."},
        {"\xef\xbb\xbf"
         "a,b\n1,2",
            "a|b/1|2/."},
        {"a;b,c;d\n1;2;3\n", "a|b,c|d/1|2|3/."},
        {"a\tb\n\t\n", "a|b/|/."},
        {"a,b\n\"1,\"\"x\"\"\",\"l\r\nm\"\n", "a|b/1,\"x\"|l\r\nm/."},
        {"a,b\n\"\"\"\",\"\"\n", "a|b/\"|/."},
        {"a\n\"x\"\"y\",\"z\"\"\"\"\"\n", "a/x\"y|z\"\"/."},
        {"a,b\n\"1", "a|b/!"},
        {"a,b\n\"1\"x,2\n", "a|b/!"},
        {"a,b\n1\"x,2\n", "a|b/!"},
        {"a,b\n\xff,2\n", "a|b/!"},
        {"a,b\n1,\"\xff\"\n", "a|b/!"},
        {"a\n\n\nb\n", "a/b/."},
        {"a,\n", "a|/."},
    };

    (void) state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_string_equal(read_all(cases[i][0], strlen(cases[i][0])), cases[i][1]);
    }

    assert_string_equal(read_all("a\0b\n", 4), "!");
}

static void
test_read_limits(void **state)
{
    static char text[CSV_CELL_MAX + 16];

    (void) state;
    memset(text, 'x', sizeof(text));
    assert_string_equal(read_all(text, CSV_CELL_MAX + 1), "#");
    text[0] = '"';
    text[CSV_CELL_MAX + 2] = '"';
    assert_string_equal(read_all(text, CSV_CELL_MAX + 3), "#");
    memset(text, ',', sizeof(text));
    assert_string_equal(read_all(text, CSV_COLUMNS_MAX), "#");
}

static void
test_lines(void **state)
{
    static struct csv_row row;
    struct csv_reader reader;

    (void) state;
    csv_open(&reader, aff_slice_of("a,b\r\n\r\n\"1\n2\",3\nx,y\n"));
    assert_int_equal(csv_next(&reader, &row), CSV_ROW);
    assert_int_equal(reader.line, 1);
    assert_int_equal(csv_next(&reader, &row), CSV_ROW);
    assert_int_equal(reader.line, 3);
    assert_int_equal(csv_next(&reader, &row), CSV_ROW);
    assert_int_equal(reader.line, 5);
    csv_close(&reader);
}

static void
test_put(void **state)
{
    static const char *const cases[][2] = {
        {"", ""},
        {"plain", "plain"},
        {"a,b", "\"a,b\""},
        {"say \"hi\"", "\"say \"\"hi\"\"\""},
        {"two\nlines", "\"two\nlines\""},
        {"=1+2", "'=1+2"},
        {"=HYPERLINK(\"x\",\"y\")", "\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\""},
        {"+977", "'+977"},
        {"-", "'-"},
        {"-12.50", "-12.50"},
        {"-1-2", "'-1-2"},
        {"-1.2.3", "'-1.2.3"},
        {"@SUM(A1)", "'@SUM(A1)"},
        {"\tx", "\"'\tx\""},
        {"12.5", "12.5"},
        {"\"", "\"\"\"\""},
    };
    struct buffer out;
    struct aff_slice whole;

    (void) state;
    buffer_open(&out, 4096, NULL);
    for (size_t i = 0; i < COUNT(cases); i++) {
        buffer_reset(&out);
        csv_put(&out, aff_slice_of(cases[i][0]));
        assert_true(buffer_whole(&out, &whole));
        assert_true(aff_slice_equal(whole, aff_slice_of(cases[i][1])));
    }
    buffer_close(&out);
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
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_read_limits),
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_put),
        cmocka_unit_test(test_buffer),
    };

    return RUN(tests);
}
