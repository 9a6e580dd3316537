/* Makes each call that can fail, goes on whatever it returns, and says what it was told: the name
 * of the call and errno, or the count of a write that fell short. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LENGTH = 100 };
static char bytes[LENGTH];

static long told(const char *call, long result)
{
    if (result < 0)
        printf("told %s %d\n", call, errno);
    else if (strstr(call, "write") && result < LENGTH)
        printf("told %s short %ld\n", call, result);
    fflush(stdout);
    return result;
}

int main(void)
{
    memset(bytes, 'x', LENGTH);
    struct iovec parts[2] = {{bytes, 60}, {bytes + 60, LENGTH - 60}};
    told("mkdir", mkdir("d", 0700));
    int file = told("openat", open("d/a", O_RDWR | O_CREAT | O_TRUNC, 0600));
    told("fallocate", fallocate(file, 0, 0, 10));
    told("write", write(file, bytes, LENGTH));
    told("pwrite64", pwrite(file, bytes, LENGTH, 0));
    told("writev", writev(file, parts, 2));
    told("pwritev", pwritev(file, parts, 2, 0));
    told("ftruncate", ftruncate(file, 50));
    told("sync_file_range", sync_file_range(file, 0, 0, SYNC_FILE_RANGE_WRITE));
    told("fsync", fsync(file));
    told("fdatasync", fdatasync(file));
    told("syncfs", syncfs(file));
    told("close", close(file));
    told("link", link("d/a", "d/b"));
    told("symlink", symlink("a", "d/c"));
    told("rename", rename("d/b", "d/e"));
    told("unlink", unlink("d/c"));
    told("unlink", unlink("d/a"));
    told("mkdir", mkdir("d/f", 0700));
    told("rmdir", rmdir("d/f"));
    file = open("state", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || write(file, "done", 4) < 0)
        return 1;
    return 0;
}
