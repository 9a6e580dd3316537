/* The state that the C subjects save: a small trading bot's, about 12 KB of JSON. */
#ifndef STATE_H
#define STATE_H

#include <stdio.h>

enum { VERSIONS = 4 };

/* Prints one version as JSON; returns 0, or -1 when that failed. */
static int print_state(FILE *file, int version)
{
    /* Every other version is shorter, so that an overwrite without truncation shows. */
    int positions = 300 - 20 * (version % 2);
    fprintf(file, "{\"version\": %d, \"balance\": %d, \"positions\": [", version, 1000000 + 137 * version);
    for (int n = 0; n < positions; n++)
        fprintf(file, "%s{\"symbol\": \"SYM%04d\", \"quantity\": %d}", n ? ", " : "", n, n + version);
    fprintf(file, "]}\n");
    return ferror(file) ? -1 : 0;
}

#endif
