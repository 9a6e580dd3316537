/* Saves by fprintf into the open state file. Bad: a kill leaves half a file. */
#include <stdio.h>

#include "state.h"

static int save(const char *path, int version)
{
    FILE *file = fopen(path, "w");
    if (file == NULL)
        return -1;
    int printed = print_state(file, version);
    return fclose(file) != 0 || printed != 0 ? -1 : 0;
}

int main(void)
{
    for (int version = 1; version <= VERSIONS; version++) {
        if (save("state.json", version) != 0) {
            perror("state.json");
            return 1;
        }
        printf("saved %d\n", version);
        fflush(stdout);
    }
    return 0;
}
