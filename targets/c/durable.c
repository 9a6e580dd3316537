/* Sound: a lock, a new file with a checksum, fsync, rename, fsync of the directory, a second copy. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "state.h"

// --- lock
/* Holds the lock of a state for as long as this process lives; returns 0, or -1 if another has it. */
static int lock(const char *path)
{
    char name[PATH_MAX];
    snprintf(name, sizeof name, "%s.lock", path);
    int file = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    return file < 0 || flock(file, LOCK_EX | LOCK_NB) != 0 ? -1 : 0; /* it stays open */
}
// --- end

// --- replace: #include <errno.h> | #include <fcntl.h> | #include <libgen.h> | #include <limits.h> | #include <stdio.h> | #include <stdlib.h> | #include <unistd.h>
static int write_all(int file, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t written = write(file, data, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return -1;
        data += written;
        length -= (size_t)written;
    }
    return 0;
}

/* Puts bytes in the place of a file, so that it is the old or the new one, and on disk. */
static int replace(const char *path, const char *data, size_t length)
{
    char copy[PATH_MAX], temp[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    const char *directory = dirname(copy);
    if (snprintf(temp, sizeof temp, "%s/.state-XXXXXX", directory) >= (int)sizeof temp)
        return -1;
    int file = mkostemp(temp, O_CLOEXEC);
    if (file < 0)
        return -1;
    int failed = write_all(file, data, length) != 0 || fsync(file) != 0;
    failed |= close(file) != 0;
    if (failed || rename(temp, path) != 0) {
        unlink(temp);
        return -1;
    }
    int opened = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (opened < 0)
        return -1;
    failed = fsync(opened) != 0;
    close(opened);
    return failed ? -1 : 0;
}
// --- end

// --- save
/* The CRC-32 of zlib. */
static uint32_t crc32(const char *bytes, size_t length)
{
    uint32_t crc = UINT32_MAX;
    for (size_t n = 0; n < length; n++) {
        crc ^= (unsigned char)bytes[n];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xedb88320 & -(crc & 1));
    }
    return ~crc;
}

/* Saves twice, so that one copy can be damaged; it is saved when this returns 0. */
static int save(const char *path, int sequence, const char *json)
{
    char *rest = NULL, *data = NULL, copy[PATH_MAX];
    int length = asprintf(&rest, "\"sequence\": %d, \"state\": %s}\n", sequence, json);
    if (length < 0)
        return -1;
    length = asprintf(&data, "{\"crc32\": \"%08" PRIx32 "\", %s", crc32(rest, (size_t)length), rest);
    free(rest);
    if (length < 0)
        return -1;
    snprintf(copy, sizeof copy, "%s.copy", path);
    int failed = replace(path, data, (size_t)length) != 0 || replace(copy, data, (size_t)length) != 0;
    free(data);
    return failed ? -1 : 0;
}
// --- end

// --- load
/* The state in a file, if all of it is there; the caller frees it. */
static char *whole(const char *path, int *sequence)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return NULL;
    char *text = NULL, *state = NULL;
    size_t size = 0;
    ssize_t length = getdelim(&text, &size, '\0', file);
    fclose(file);
    uint32_t sum;
    int rest = 0, begin = 0;
    if (length > 23 && strlen(text) == (size_t)length &&
        sscanf(text, "{\"crc32\": \"%8" SCNx32 "\", %n", &sum, &rest) == 1 && rest == 22 &&
        sum == crc32(text + rest, (size_t)(length - rest)) &&
        sscanf(text + rest, "\"sequence\": %d, \"state\": %n", sequence, &begin) == 1 && begin > 0) {
        text[length - 2] = '\0'; /* without the brace and the newline at the end */
        state = strdup(text + rest + begin);
    }
    free(text);
    return state;
}

/* The newest state that is whole; NULL if there is none, though there was one. What is damaged is kept
 * aside. The caller frees it. */
static char *load(const char *path, const char *fallback)
{
    char name[PATH_MAX];
    snprintf(name, sizeof name, "%s.copy", path);
    int sequence = -1, other = -1;
    char *state = whole(path, &sequence), *copy = whole(name, &other);
    if (state == NULL && copy == NULL) {
        struct stat found;
        if (lstat(path, &found) == 0 || lstat(name, &found) == 0) {
            fprintf(stderr, "%s and its copy are damaged\n", path);
            return NULL;
        }
        fprintf(stderr, "there is no state: beginning anew\n");
        return strdup(fallback);
    }
    if (copy != NULL && (state == NULL || other > sequence)) {
        fprintf(stderr, "%s is damaged or old: taking its copy\n", path);
        snprintf(name, sizeof name, "%s.damaged-%lld", path, (long long)time(NULL));
        rename(path, name);
        free(state);
        return copy;
    }
    free(copy);
    return state;
}
// --- end

int main(int count, char **arguments)
{
    if (lock("state.json") != 0) {
        fprintf(stderr, "another process works with state.json\n");
        return 1;
    }
    glob_t left;
    if (glob(".state-*", GLOB_PERIOD, NULL, &left) == 0) {
        for (size_t n = 0; n < left.gl_pathc; n++)
            unlink(left.gl_pathv[n]); /* a process was killed in the middle of a save */
        globfree(&left);
    }
    char *state = load("state.json", "null");
    if (state == NULL || (count > 1 && strcmp(arguments[1], "load") == 0))
        return state == NULL || puts(state) < 0;
    free(state);
    for (int version = 1; version <= VERSIONS; version++) {
        char *json = NULL;
        size_t length = 0;
        FILE *text = open_memstream(&json, &length);
        if (text == NULL || print_state(text, version) != 0 || fclose(text) != 0)
            return 1;
        if (save("state.json", version, json) != 0) {
            perror("state.json");
            return 1;
        }
        free(json);
        printf("saved %d\n", version);
        fflush(stdout);
    }
    return 0;
}
