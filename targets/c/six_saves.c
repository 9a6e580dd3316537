// Six ways to save 8 KiB, from hopeless to sound. The argument is the way, from 1 to 6;
// another one is how often it saves:
//   1 O_TRUNC and write            2 the same and fsync     3 overwrite without truncation
//   4 rename without fsync         5 fsync and rename       6 fsync, rename, fsync of the directory
// On strict POSIX only 6 is atomic and durable; 5 is atomic. A state.json must be there.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIZE = 8192, SAVES = 2 };

static void must(int fine, const char *what) {
    if (!fine) {
        perror(what);
        exit(1);
    }
}

// A JSON object of SIZE bytes, in which every byte but the braces tells the version.
static void fill(char *state, int version) {
    memset(state, 'a' + version, SIZE);
    int length = snprintf(state, SIZE, "{\"version\":%d,\"memo\":\"", version);
    state[length] = (char)('a' + version);
    memcpy(state + SIZE - 2, "\"}", 2);
}

static int open_or_die(const char *path, int flags) {
    int file = open(path, flags | O_CREAT | O_WRONLY, 0644);
    must(file >= 0, path);
    return file;
}

static void put(int file, const char *state) {
    must(write(file, state, SIZE) == SIZE, "write");
}

static void sync_directory(void) {
    int directory = open(".", O_RDONLY | O_DIRECTORY);
    must(directory >= 0, "open .");
    must(fsync(directory) == 0, "fsync .");
    close(directory);
}

static void save(int way, const char *state) {
    const char *path = way >= 4 ? "state.json.tmp" : "state.json";
    int file = open_or_die(path, way == 3 ? 0 : O_TRUNC);
    put(file, state);
    if (way == 2 || way >= 5)
        must(fsync(file) == 0, "fsync");
    must(close(file) == 0, "close");
    if (way >= 4)
        must(rename("state.json.tmp", "state.json") == 0, "rename");
    if (way == 6)
        sync_directory();
}

int main(int argc, char **argv) {
    static char state[SIZE];
    int way = argc > 1 ? atoi(argv[1]) : 0;
    if (way < 1 || way > 6) {
        fputs("usage: six_saves 1|2|3|4|5|6 [SAVES]\n", stderr);
        return 2;
    }
    int saves = argc > 2 ? atoi(argv[2]) : SAVES;
    for (int version = 1; version <= saves; version++) {
        fill(state, version);
        save(way, state);
        printf("saved %d\n", version);
        fflush(stdout);
    }
    return 0;
}
