/* Makes a 32-bit system call from 64-bit code, which a filter for 64-bit calls can't follow. */
#include <stdio.h>

int main(void)
{
    long pid = 20; /* getpid, in the numbers of i386 */
    __asm__ volatile("int $0x80" : "+a"(pid) : : "memory");
    FILE *file = fopen("state.json", "w");
    if (file == NULL)
        return 1;
    fprintf(file, "{\"done\": %d}", pid > 0);
    return fclose(file) != 0;
}
