/*
 * A configuration file. What is taken is within its bounds, carries over to itself without a
 * change, and each mistake is told with its line.
 */

#include "fuzz.h"

#include "worker/config.c"

static void
check_setting(const struct config *config, const struct setting *setting)
{
    const void *at = (const char *) config + setting->offset;

    switch (setting->type) {
    case SETTING_INT:
    case SETTING_DURATION:
    case SETTING_SIZE:
        require(*(const int64_t *) at >= setting->min && *(const int64_t *) at <= setting->max);
        break;
    case SETTING_CHOICE:
        require(*(const int64_t *) at >= 0 && *(const int64_t *) at < 4);
        break;
    case SETTING_LIST: {
        const struct config_list *list = at;

        require(list->count >= 1 && list->count <= CONFIG_LIST_MAX);
        for (unsigned i = 0; i < list->count; i++) {
            require(list->items[i] != NULL && list->items[i][0] != '\0');
        }
        break;
    }
    case SETTING_STRING:
    case SETTING_SECRET:
    case SETTING_PATH:
        require(*(char *const *) at != NULL);
        break;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config *config = calloc(1, sizeof(*config));
    char *text = malloc(size + 1);
    char *told = NULL, *carried = NULL;
    size_t told_len, carried_len;
    FILE *errors = open_memstream(&told, &told_len);
    struct config_reader reader = {.path = "fuzz.conf", .errors = errors};

    require(config != NULL && text != NULL && errors != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    config->path = strdup("fuzz.conf");
    atomic_init(&config->references, 1);
    for (size_t i = 0; i < SETTINGS; i++) {
        if (config_settings[i].type == SETTING_SECRET) {
            config_store(config_member(config, config_settings[i].content), "");
        }
    }

    config_read_text(&reader, config, text, size);
    if (reader.failures == 0) {
        config_check(&reader, config);
    }

    if (reader.failures == 0) {
        FILE *out = open_memstream(&carried, &carried_len);

        require(out != NULL);
        for (size_t i = 0; i < SETTINGS; i++) {
            check_setting(config, &config_settings[i]);
        }

        config_carry_over(config, config, out);
        (void) fclose(out);
        require(carried_len == 0);
    }

    (void) fclose(errors);
    require((reader.failures == 0) == (told_len == 0));
    require(told_len == 0 || strncmp(told, "fuzz.conf:", 10) == 0);
    config_release(config);
    free(text);
    free(told);
    free(carried);

    return 0;
}
