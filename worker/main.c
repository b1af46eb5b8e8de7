/* affiliated: options, then one of the commands. */

#include "worker/check.h"
#include "worker/command.h"
#include "worker/migrate.h"
#include "worker/run.h"

#include <getopt.h>
#include <string.h>

#ifndef AFFILIATED_VERSION
#define AFFILIATED_VERSION "0.1.0"
#endif

#define MAIN_WIDTH 98

static int main_help(struct config *config, int argc, char **argv);

const struct command daemon_commands[] = {
    {"run", run_command, "[--roles=ROLE,...]",
        "do the work: drain the streams, release holds, project links"},
    {"migrate", migrate_command, "", "bring the database's schema up to date"},
    {"check", check_command, "", "look whether everything is there that `run` needs (also -t)"},
    {"help", main_help, "", "this text"},
    {NULL, NULL, NULL, NULL},
};

static const struct command *const main_tables[] = {daemon_commands, control_commands};

#define TABLES (sizeof(main_tables) / sizeof(main_tables[0]))

/* An option stays whole: lines break in front of " [" alone. */
static void
main_print_command(FILE *out, const struct command *command)
{
    const char *usage = command->usage;
    size_t column = 2 + strlen(command->name);

    fprintf(out, "  %s", command->name);
    while (*usage != '\0') {
        const char *end = strstr(usage, " [");
        size_t len = end == NULL ? strlen(usage) : (size_t) (end - usage);

        if (column + 1 + len > MAIN_WIDTH) {
            fputs("\n     ", out);
            column = 5;
        }

        fprintf(out, " %.*s", (int) len, usage);
        column += 1 + len;
        usage += end == NULL ? len : len + 1;
    }

    fprintf(out, "\n      %s\n", command->summary);
}

static void
main_usage(FILE *out)
{
    fputs("usage: affiliated [-c FILE] COMMAND ...\n"
          "       affiliated [-c FILE] -t    check configuration, database, Redis\n"
          "       affiliated -T              print every setting with its default\n"
          "       affiliated -V              print the version\n"
          "       affiliated -h              print this text\n\n",
        out);

    for (size_t t = 0; t < TABLES; t++) {
        for (const struct command *command = main_tables[t]; command->name != NULL; command++) {
            main_print_command(out, command);
        }
    }

    fputs("\nFILE is " CONFIG_PATH " unless said otherwise. `list` takes --after ID and\n"
          "--limit N, too. A SPAN is like '30 days', a TIME like 2026-01-31T12:00:00Z.\n",
        out);
}

static int
main_help(struct config *config, int argc, char **argv)
{
    (void) config;
    (void) argc;
    (void) argv;
    main_usage(stdout);
    return COMMAND_OK;
}

static const struct command *
main_find(const char *name)
{
    for (size_t t = 0; t < TABLES; t++) {
        for (const struct command *command = main_tables[t]; command->name != NULL; command++) {
            if (strcmp(command->name, name) == 0) {
                return command;
            }
        }
    }

    return NULL;
}

static int
main_dispatch(const char *path, int argc, char **argv)
{
    const struct command *command = main_find(argv[0]);
    struct config *config;
    int code;

    if (command == NULL) {
        fprintf(stderr, "affiliated: there is no command \"%s\"; see `affiliated help`\n", argv[0]);
        return COMMAND_USAGE;
    }

    if (command->run == main_help) {
        return main_help(NULL, argc, argv);
    }

    config = config_load(path, stderr);
    if (config == NULL) {
        return COMMAND_USAGE;
    }

    code = command->run(config, argc, argv);
    config_release(config);
    return code;
}

int
main(int argc, char **argv)
{
    const char *path = CONFIG_PATH;
    char *check[] = {"check", NULL};
    static const struct option options[] = {
        {"help", no_argument, NULL, 'h'}, {"version", no_argument, NULL, 'V'}, {NULL, 0, NULL, 0}};
    bool test = false;
    int option;

    /* Only options in front of the command are ours. */
    while ((option = getopt_long(argc, argv, "+c:tTVh", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            path = optarg;
            break;
        case 't':
            test = true;
            break;
        case 'T':
            config_print_defaults(stdout);
            return COMMAND_OK;
        case 'V':
            puts("affiliated " AFFILIATED_VERSION);
            return COMMAND_OK;
        case 'h':
            main_usage(stdout);
            return COMMAND_OK;
        default:
            fputs("affiliated: see `affiliated help`\n", stderr);
            return COMMAND_USAGE;
        }
    }

    if (test) {
        return main_dispatch(path, 1, check);
    }

    if (optind == argc) {
        main_usage(stderr);
        return COMMAND_USAGE;
    }

    return main_dispatch(path, argc - optind, argv + optind);
}
