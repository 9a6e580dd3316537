/* Saves through a shared mapping: its writes are no calls that could be cut. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(void)
{
    const char *state = "{\"saved\": \"through a mapping\"}";
    int file = open("state.json", O_RDWR | O_CREAT, 0644);
    if (file < 0 || ftruncate(file, (off_t)strlen(state)) != 0)
        return 1;
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map == MAP_FAILED)
        return 1;
    memcpy(map, state, strlen(state));
    return msync(map, 4096, MS_SYNC) != 0;
}
