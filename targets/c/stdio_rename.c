/* Saves to a temp file through stdio, syncs it and renames it into place. */
#include <stdio.h>
#include <unistd.h>

#include "state.h"

static int save(const char *path, const char *temp, int version)
{
    FILE *file = fopen(temp, "w");
    if (file == NULL)
        return -1;
    int bad = print_state(file, version) != 0 || fflush(file) != 0 || fsync(fileno(file)) != 0;
    if (fclose(file) != 0 || bad) {
        unlink(temp);
        return -1;
    }
    return rename(temp, path);
}

int main(void)
{
    for (int version = 1; version <= VERSIONS; version++) {
        if (save("state.json", "state.json.tmp", version) != 0) {
            perror("state.json");
            return 1;
        }
        printf("saved %d\n", version);
        fflush(stdout);
    }
    return 0;
}
