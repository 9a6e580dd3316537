/* A log that is opened without O_APPEND, and whose writes say themselves that they append. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef RWF_APPEND
#define RWF_APPEND 0x10
#endif

int main(void)
{
    for (int n = 0; n < 3; n++) {
        int file = open("log.txt", O_WRONLY | O_CREAT, 0644);
        char line[64];
        int length = snprintf(line, sizeof line, "line %d\n", n);
        struct iovec part = {line, (size_t)length};
        if (file < 0 || pwritev2(file, &part, 1, 0, RWF_APPEND) != length)
            return 1;
        fsync(file);
        close(file);
        printf("saved %d\n", n);
        fflush(stdout);
    }
    return 0;
}
