/* The commands of the control plane: NOUN VERB calls affiliate.NOUN_VERB(jsonb), which decides
 * everything. */

#include "worker/control.h"
#include "worker/dump.h"

#include <string.h>

struct noun {
    const char *name;
    const char *const *verbs;
    const char *subject; /* the field that an argument without an option stands for */
    bool (*prepare)(struct control_args *args); /* before anything is sent; or NULL */
};

static const char *const merchant_verbs[] = {
    "create", "list", "show", "update", "approve", "reject", "suspend", "activate", NULL};
static const char *const member_verbs[] = {"create", "list", "update", "remove", NULL};
static const char *const user_verbs[] = {
    "create", "list", "show", "update", "suspend", "activate", "logout", NULL};
static const char *const campaign_verbs[] = {
    "create", "terms", "list", "show", "update", "suspend", "activate", NULL};
static const char *const link_verbs[] = {
    "create", "list", "show", "update", "pause", "resume", "remove", NULL};
static const char *const key_verbs[] = {"create", "list", "show", "revoke", NULL};
static const char *const order_verbs[] = {"list", "show", "review", NULL};

static const struct noun nouns[] = {
    {"user", user_verbs, "user", user_take_password},
    {"merchant", merchant_verbs, "merchant", NULL},
    {"member", member_verbs, "merchant", NULL},
    {"affiliate", merchant_verbs, "affiliate", NULL},
    {"campaign", campaign_verbs, "campaign", NULL},
    {"link", link_verbs, "link", NULL},
    {"key", key_verbs, "key", NULL},
    {"order", order_verbs, "order", NULL},
};

/* One call and its rows. */
static int
control_run(struct config *config, const char *function, const struct noun *noun, bool list,
    int argc, char **argv)
{
    struct control_args args;
    PGconn *conn = NULL;
    json_t *rows = NULL;
    int code = COMMAND_USAGE;

    if (!control_parse(&args, argc, argv) || !control_operand_field(&args, noun->subject) ||
        (noun->prepare != NULL && !noun->prepare(&args))) {
        control_args_free(&args);
        return code;
    }

    code = COMMAND_FAILED;
    conn = control_connect(config, "control");
    if (conn != NULL) {
        rows = control_call(conn, function, args.fields, &code);
    }

    if (rows != NULL) {
        control_print(rows, noun->subject, list, args.json);
        code = control_flush();
    }

    json_decref(rows);
    PQfinish(conn);
    control_args_free(&args);
    return code;
}

static const struct noun *
control_find_noun(const char *name)
{
    for (size_t i = 0; i < sizeof(nouns) / sizeof(nouns[0]); i++) {
        if (strcmp(nouns[i].name, name) == 0) {
            return &nouns[i];
        }
    }

    return NULL;
}

static int
noun_command(struct config *config, int argc, char **argv)
{
    const struct noun *noun = control_find_noun(argv[0]);
    const char *const *verb = noun->verbs;
    char function[64];

    while (argc > 1 && *verb != NULL && strcmp(*verb, argv[1]) != 0) {
        verb++;
    }

    if (argc < 2 || *verb == NULL) {
        fprintf(stderr, "affiliated %s: say what to do:", argv[0]);
        for (verb = noun->verbs; *verb != NULL; verb++) {
            fprintf(stderr, " %s", *verb);
        }
        fputc('\n', stderr);
        return COMMAND_USAGE;
    }

    if (strcmp(noun->name, "key") == 0 && strcmp(*verb, "create") == 0) {
        return key_create_command(config, argc - 2, argv + 2);
    }

    snprintf(function, sizeof(function), "%s_%s", noun->name, *verb);
    return control_run(config, function, noun, strcmp(*verb, "list") == 0, argc - 2, argv + 2);
}

static int
balance_command(struct config *config, int argc, char **argv)
{
    static const struct noun balance = {"balance", NULL, "merchant", NULL};

    return control_run(config, "balance_list", &balance, true, argc - 1, argv + 1);
}

static int
audit_command(struct config *config, int argc, char **argv)
{
    struct control_args args;
    json_t *rows = NULL;
    PGconn *conn = NULL;
    int code = COMMAND_USAGE;

    if (!control_parse(&args, argc - 1, argv + 1) || args.operands != 0) {
        fprintf(stderr, "affiliated audit: takes nothing but --since and --json\n");
        control_args_free(&args);
        return code;
    }

    code = COMMAND_FAILED;
    conn = control_connect(config, "audit");
    if (conn != NULL) {
        rows = control_call(conn, "audit_run", args.fields, &code);
    }

    if (rows != NULL) {
        control_print(rows, "invariant", true, args.json);
        if (json_array_size(rows) == 0 && !args.json) {
            puts("the books hold");
        }

        code = json_array_size(rows) == 0 ? control_flush() : COMMAND_FAILED;
    }

    json_decref(rows);
    PQfinish(conn);
    control_args_free(&args);
    return code;
}

const struct command control_commands[] = {
    {"status", status_command, "[--json|--prometheus]", "what the running daemon does"},
    {"audit", audit_command, "[--since TIME|SPAN] [--json]",
        "prove the books; prints what is broken, exit code 1 if anything is. With --since, orders "
        "that changed since then, and every sum"},
    {"balance", balance_command,
        "[MERCHANT] [--affiliate N] [--owner affiliate|merchant|platform] [--currency CODE] "
        "[--livemode true|false] [--json]",
        "what each account holds"},
    {"user", noun_command,
        "create|list|show|update|suspend|activate|logout [ID] [--email ADDRESS] [--name TEXT] "
        "[--admin true|false] [--password-file PATH|-] [--reason TEXT] [--json]",
        "people who log in; only here they are made admins"},
    {"merchant", noun_command,
        "create|list|show|update|approve|reject|suspend|activate [ID] [--name TEXT] "
        "[--host NAME]... [--reason TEXT] [--json]",
        "shops, and the hosts where their links may lead"},
    {"member", noun_command,
        "create|list|update|remove MERCHANT [--user N] [--role owner|manager|read_only] [--json]",
        "people who act for a merchant"},
    {"campaign", noun_command,
        "create|terms|list|show|update|suspend|activate [ID] [--merchant N] [--name TEXT] "
        "[--currency CODE] [--rate-basis-points N] [--rate-flat AMOUNT] [--fee-basis-points N] "
        "[--fee-flat AMOUNT] [--hold SPAN] [--attribution-window SPAN] "
        "[--minimum-click-to-order SPAN] [--minimum-payout AMOUNT] [--valid-from TIME] "
        "[--sku-rate SKU=N]... [--sku-flat SKU=AMOUNT]... [--category-rate NAME=N]... "
        "[--category-flat NAME=AMOUNT]... [--json]",
        "what a merchant pays for; `terms` adds a version of its terms"},
    {"affiliate", noun_command,
        "create|list|show|update|approve|reject|suspend|activate [ID] [--name TEXT] "
        "[--email TEXT] [--user N] [--reason TEXT] [--json]",
        "who brings buyers and is paid for it"},
    {"link", noun_command,
        "create|list|show|update|pause|resume|remove [CODE] [--merchant N] [--campaign N] "
        "[--affiliate N] [--url URL] [--livemode true|false] [--code CODE] [--param NAME] "
        "[--fallback URL] [--expires-at TIME] [--json]",
        "short links"},
    {"key", noun_command,
        "create|list|show|revoke [KEY] [--merchant N] [--livemode true|false] [--label TEXT] "
        "[--json]",
        "keys that merchants sign with; `create` prints the secret, once"},
    {"order", noun_command,
        "list|show|review [ORDER] --merchant N [--livemode true|false] [--affiliate N] "
        "[--outcome accepted|review|rejected] [--decision accept|reject --reason TEXT] [--json]",
        "orders: facts, state and its reason, timeline, transfers"},
    {"dead-letters", dead_letters_command,
        "list|show|replay [ID]... [--reason REASON] [--replayed true|false] [--json]",
        "records that could not be applied; `replay` applies them once what was wrong is put "
        "right"},
    {"dump", dump_command, "FILE... | --stream NAME [--from ID] [--to ID] [--count N]",
        "records in segments of the spool, or in a stream, a line of JSON each"},
    {NULL, NULL, NULL, NULL},
};
