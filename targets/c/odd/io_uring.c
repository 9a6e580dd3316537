/* Asks for io_uring, as libuv does, and falls back to plain calls when there is none. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
    char parameters[256];
    memset(parameters, 0, sizeof parameters);
    long ring = syscall(SYS_io_uring_setup, 4, parameters);
    FILE *file = fopen("state.json", "w");
    if (file == NULL)
        return 1;
    fprintf(file, "{\"ring\": \"%s\"}", ring < 0 ? strerror(errno) : "made");
    return fclose(file) != 0;
}
