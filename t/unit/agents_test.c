/*
 * User-Agents: every text of agents.txt (or of the file given as argument) gets the class written
 * before it, also when it is cut anywhere in upper or lower case, or has no byte behind it. The
 * class "declared", of other corpora, is bot or preview.
 */

#include "unit.h"

#include "../../ngx_module/ngx_http_affiliate_fraud.h"

static const char *corpus = "t/unit/agents.txt";

static const char *const names[] = {
    [NGX_HTTP_AFFILIATE_AGENT_HUMAN] = "human",
    [NGX_HTTP_AFFILIATE_AGENT_BOT] = "bot",
    [NGX_HTTP_AFFILIATE_AGENT_PREVIEW] = "preview",
};

/* A line's class and text; false at the end of the file. */
static bool
next_agent(FILE *f, char *line, size_t size, char **class, char **agent)
{
    while (fgets(line, (int) size, f) != NULL) {
        line[strcspn(line, "\n")] = '\0';

        if (line[0] == '#' || line[0] == '\0') {
            continue;
        }

        *class = line;
        *agent = strchr(line, '\t');
        assert_non_null(*agent);
        *(*agent)++ = '\0';
        return true;
    }

    return false;
}

static FILE *
open_corpus(void)
{
    FILE *f = fopen(corpus, "r");

    if (f == NULL) {
        fail_msg("can't open %s: run from the top of the tree", corpus);
    }

    return f;
}

static bool
is(ngx_http_affiliate_agent_e got, const char *want)
{
    if (strcmp(want, "declared") == 0) {
        return got != NGX_HTTP_AFFILIATE_AGENT_HUMAN;
    }

    return strcmp(names[got], want) == 0;
}

static ngx_http_affiliate_agent_e
classify(const char *agent)
{
    struct aff_slice copy = exact(agent, strlen(agent));
    ngx_http_affiliate_agent_e got = ngx_http_affiliate_agent_classify(copy.data, copy.len);

    drop(copy);
    return got;
}

static void
classes(void **state)
{
    FILE *f = open_corpus();
    unsigned counts[COUNT(names)] = {0};
    unsigned wrong = 0;
    char line[8192];
    char *class;
    char *agent;

    (void) state;

    while (next_agent(f, line, sizeof(line), &class, &agent)) {
        ngx_http_affiliate_agent_e got = classify(agent);

        counts[got]++;

        if (!is(got, class)) {
            printf("# %s, not %s: %s\n", names[got], class, agent);
            wrong++;
        }
    }

    (void) fclose(f);
    printf("# %u human, %u bot, %u preview\n", counts[0], counts[1], counts[2]);
    assert_int_equal(wrong, 0);
}

static void
case_is_no_matter(void **state)
{
    FILE *f = open_corpus();
    char line[8192];
    char *class;
    char *agent;

    (void) state;

    while (next_agent(f, line, sizeof(line), &class, &agent)) {
        ngx_http_affiliate_agent_e got = classify(agent);

        for (char *p = agent; *p != '\0'; p++) {
            if (*p >= 'a' && *p <= 'z') {
                *p = (char) (*p - 32);
            }
        }

        assert_int_equal(classify(agent), got);
    }

    (void) fclose(f);
}

static void
any_bytes(void **state)
{
    uint8_t bytes[300];

    (void) state;
    seed_random();

    for (unsigned i = 0; i < 20000; i++) {
        size_t len = next_random() % sizeof(bytes);
        struct aff_slice copy;

        fill_random(bytes, len);
        copy = exact(bytes, len);
        assert_true(ngx_http_affiliate_agent_classify(copy.data, copy.len) < COUNT(names));
        drop(copy);
    }
}

static void
boundaries(void **state)
{
    static const char *const agents[][2] = {
        {"bot", "Mozilla/5.0 (X11) Robot"},
        {"bot", "Mozilla/5.0 (X11) robot/1"},
        {"bot", "Mozilla/5.0 (X11) a_bot_b"},
        {"bot", "bot Mozilla/5.0 (X11)"},
        {"human", "Mozilla/5.0 (X11) Botany"},
        {"human", "Mozilla/5.0 (X11) bottle"},
        {"human", "Mozilla/5.0 (X11; CUBOT)"},
        {"bot", "Mozilla/5.0 (X11; AccuBot)"},
        {"bot", "Mozilla/5.0 (X11; CUBOT) curlbot"},
        {"bot", ""},
        {"bot", " bot"},
        {"human", " "},
    };

    (void) state;

    for (unsigned i = 0; i < COUNT(agents); i++) {
        if (!is(classify(agents[i][1]), agents[i][0])) {
            fail_msg("\"%s\" is no %s", agents[i][1], agents[i][0]);
        }
    }
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(classes),
        cmocka_unit_test(case_is_no_matter),
        cmocka_unit_test(boundaries),
        cmocka_unit_test(any_bytes),
    };

    if (argc > 1) {
        corpus = argv[1];
    }

    return RUN(tests);
}
