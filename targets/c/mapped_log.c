// A log of fixed slots in a shared mapping: each save fills the next slot and syncs it. The slot's
// first byte counts it as used, so that it is written, and synced, after the rest.
// The argument is what it does: "sync" (sound), or "no-sync" (bad twin: it acknowledges and never
// calls msync). A file state.map of 8 pages must be there.
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, SAVES = 3 };

int main(int argc, char **argv) {
    int syncs = argc < 2 || strcmp(argv[1], "no-sync") != 0;
    int file = open("state.map", O_RDWR);
    if (file < 0) {
        perror("state.map");
        return 1;
    }
    char *slots = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (slots == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    for (int save = 1; save <= SAVES; save++) {
        // One page is one slot: it is on disk whole, or not at all.
        memset(slots + save * PAGE, 'a' + save, PAGE);
        if (syncs && msync(slots, 8 * PAGE, MS_SYNC) != 0) {
            perror("msync");
            return 1;
        }
        printf("saved %d\n", save);
        fflush(stdout);
    }
    return 0;
}
