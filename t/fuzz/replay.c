/* A main() for a fuzz target where there is no libFuzzer: runs each file named on the command line,
 * or each file of a folder, and speaks TAP. */

#include "fuzz.h"

#include <dirent.h>
#include <sys/stat.h>

#define INPUT_MAX 1048576

static unsigned ran;

static void
run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint8_t *all = malloc(INPUT_MAX);
    uint8_t *input;
    size_t size;

    require(file != NULL && all != NULL);
    size = fread(all, 1, INPUT_MAX, file);
    require(ferror(file) == 0);
    (void) fclose(file);

    /* A block of exactly this size, so that the sanitizer sees a read beyond it. */
    input = malloc(size == 0 ? 1 : size);
    require(input != NULL);
    memcpy(input, all, size);
    free(all);

    (void) LLVMFuzzerTestOneInput(input, size);
    free(input);
    printf("ok %u - %s\n", ++ran, path);
}

static void
run_folder(const char *path)
{
    DIR *folder = opendir(path);
    const struct dirent *entry;

    require(folder != NULL);

    while ((entry = readdir(folder)) != NULL) {
        char name[4096];

        if (entry->d_name[0] != '.') {
            require(
                snprintf(name, sizeof(name), "%s/%s", path, entry->d_name) < (int) sizeof(name));
            run_file(name);
        }
    }

    (void) closedir(folder);
}

int
main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        struct stat status;

        require(stat(argv[i], &status) == 0);

        if (S_ISDIR(status.st_mode)) {
            run_folder(argv[i]);
        } else {
            run_file(argv[i]);
        }
    }

    printf("1..%u\n", ran);
    return ran == 0;
}
