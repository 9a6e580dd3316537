/* Makes every kind of call that can put bytes into a file, and some that move names: what is cut
 * in each must be cut at the exact byte. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char bytes[10000];

static int must(long result)
{
    if (result < 0) {
        perror("every_call");
        _exit(1);
    }
    return (int)result;
}

int main(void)
{
    for (unsigned n = 0; n < sizeof bytes; n++)
        bytes[n] = (char)('a' + n % 26);
    int file = must(open("state", O_RDWR | O_CREAT | O_TRUNC, 0644));
    must(write(file, bytes, 5000));
    must(pwrite(file, bytes + 100, 3000, 6000));
    const struct iovec parts[] = {{bytes, 10}, {bytes + 500, 4500}, {bytes, 0}, {bytes + 9000, 700}};
    must(writev(file, parts, 4));
    must(pwritev(file, parts, 4, 100));
    must(pwritev2(file, parts, 3, 20000, 0));
    must(ftruncate(file, 15000));
    must(fallocate(file, 0, 14000, 4000));
    must(fsync(file));

    int copy = must(open("copy", O_RDWR | O_CREAT, 0644));
    must(lseek(file, 0, SEEK_SET));
    must(sendfile(copy, file, NULL, 7000));
    loff_t from = 0, to = 3000;
    must(copy_file_range(file, &from, copy, &to, 6000, 0));
    int append = must(open("copy", O_WRONLY | O_APPEND));
    must(write(append, bytes, 1234));
    must(close(append));
    int duplicate = must(dup(copy));
    must(write(duplicate, bytes + 77, 333));
    must(fdatasync(copy));

    must(mkdir("directory", 0755));
    must(link("copy", "directory/copy"));
    must(symlink("copy", "link"));
    int through = must(open("link", O_WRONLY));
    must(write(through, "through a link", 14));
    must(close(through));
    must(rename("state", "directory/state"));
    must(write(file, "after the rename", 16));
    must(unlink("copy"));
    must(renameat2(AT_FDCWD, "directory/copy", AT_FDCWD, "directory/state", RENAME_EXCHANGE));
    int nameless = must(open(".", O_TMPFILE | O_WRONLY, 0644));
    must(write(nameless, bytes, 2000));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", nameless);
    must(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
    must(write(nameless, bytes, 100));
    must(close(file));
    return 0;
}
