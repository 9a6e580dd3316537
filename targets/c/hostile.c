/* Saves a state soundly, and then does one thing that a program under test should not be able to do to the
   machine. The first argument names it; the directory OUT in the environment is the machine's. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static char path[4096];

/* A path in the machine's directory. */
static const char *out(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", getenv("OUT") ? getenv("OUT") : "/nonexistent", name);
    return path;
}

static void put(const char *name, const char *text, int flags)
{
    int file = open(name, O_WRONLY | flags, 0644);
    if (file >= 0) {
        if (write(file, text, strlen(text)) < 0)
            perror(name);
        close(file);
    }
}

/* A sound save, so that the verdict says something. */
static void save(int n)
{
    char text[64];
    snprintf(text, sizeof text, "{\"n\":%d}", n);
    int file = open("state.tmp", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || write(file, text, strlen(text)) < 0 || fsync(file) < 0 || close(file) < 0)
        return;
    if (rename("state.tmp", "state.json") < 0)
        return;
    int directory = open(".", O_RDONLY | O_DIRECTORY);
    fsync(directory);
    close(directory);
    printf("saved %d\n", n);
    fflush(stdout);
}

static void doze(long milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static void fork_bomb(void)
{
    for (;;)
        if (fork() < 0)
            doze(10);
}

/* A daemon in the classic way; it goes on writing for a minute. */
static void become_daemon(const char *name)
{
    if (fork() == 0) {
        setsid();
        if (fork() == 0) {
            for (int n = 0; n < 6000; n++) {
                put(name, "daemon\n", O_CREAT | O_APPEND);
                doze(10);
            }
        }
        _exit(0);
    }
    wait(NULL);
    doze(30);
}

static void *sleep_long(void *nothing)
{
    doze(60000);
    return nothing;
}

static void deep_directories(void)
{
    for (int n = 0; n < 2000; n++)
        if (mkdir("a-directory", 0755) < 0 || chdir("a-directory") < 0)
            break;
    put("file", "x", O_CREAT);
}

static void many_files(int count)
{
    char name[32];
    mkdir("many", 0755);
    for (int n = 0; n < count; n++) {
        snprintf(name, sizeof name, "many/%06d", n);
        close(open(name, O_WRONLY | O_CREAT, 0644));
    }
}

static void own_filter(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_getpriority, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE | 7),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    getpriority(PRIO_PROCESS, 0);
}

static void foreign_call(void)
{
#ifdef __x86_64__
    /* getpid by the calls of 32-bit programs */
    long result = 20;
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
#endif
}

static void unix_socket(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, name, sizeof address.sun_path - 1);
    int file = socket(AF_UNIX, SOCK_STREAM, 0);
    bind(file, (struct sockaddr *)&address, sizeof address);
}

static void shared_memory(void)
{
    for (int key = 0x7700; key < 0x7704; key++) {
        shmget(key, 4096, IPC_CREAT | 0600);
        semget(key, 1, IPC_CREAT | 0600);
    }
    int file = shm_open("/crashtest-hostile", O_RDWR | O_CREAT, 0600);
    if (file >= 0 && ftruncate(file, 4096) < 0)
        perror("ftruncate");
    mq_open("/crashtest-hostile", O_RDWR | O_CREAT, 0600, NULL);
}

static void odd_names(void)
{
    put("a name", "x", O_CREAT);
    put("line\nbreak", "x", O_CREAT);
    put("\033[31mred", "x", O_CREAT);
    put("\xff\xfe", "x", O_CREAT);
    put("'\"$(touch pwned)`;&|<>\\*", "x", O_CREAT);
    put("-rf", "x", O_CREAT);
    put("\xe2\x80\xaegnp.json", "x", O_CREAT);
}

static void map_outside(void)
{
    int file = open(out("victim"), O_RDWR);
    char *bytes = mmap(NULL, 4, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (bytes != MAP_FAILED)
        memcpy(bytes, "map!", 4);
}

static void immutable(void)
{
    int flags = FS_IMMUTABLE_FL;
    put("immutable", "x", O_CREAT);
    int file = open("immutable", O_RDONLY);
    ioctl(file, FS_IOC_SETFLAGS, &flags);
}

/* Writes to files by which root changes the machine. */
static void tune_machine(void)
{
    put("/proc/sys/kernel/core_pattern", "hostile", 0);
    put("/proc/sysrq-trigger", "h", 0);
    put("/sys/kernel/mm/ksm/run", "0", 0);
    mkdir("/sys/fs/cgroup/hostile", 0755);
    mkdir("/sys/fs/cgroup/unified/hostile", 0755);
    put("/dev/hostile", "x", O_CREAT);
    mknod("/dev/hostile-device", S_IFBLK | 0600, makedev(7, 0));
}

static int act(const char *what)
{
#define IS(name) (strcmp(what, name) == 0)
    if (IS("nothing"))
        return 0;
    if (IS("fork-bomb"))
        fork_bomb();
    else if (IS("daemon"))
        become_daemon("daemon.log");
    else if (IS("daemon-outside"))
        become_daemon(out("daemon.log"));
    else if (IS("remove-files"))
        return system("rm -rf ./* 2>/dev/null");
    else if (IS("remove-directory"))
        return system("rm -rf \"$PWD\" 2>/dev/null") * 0;
    else if (IS("link-out"))
        return symlink(out("secret"), "link");
    else if (IS("state-is-link-out")) {
        unlink("state.json");
        return symlink(out("secret"), "state.json");
    } else if (IS("directory-link-out"))
        return symlink(getenv("OUT"), "directory");
    else if (IS("link-to-kmsg")) {
        unlink("state.json");
        return symlink("/proc/kmsg", "state.json");
    } else if (IS("link-loop"))
        return symlink("loop", "loop");
    else if (IS("device")) {
        mknod("null", S_IFCHR | 0666, makedev(1, 3));
        mknod("whiteout", S_IFCHR, makedev(0, 0));
        mknod("disk", S_IFBLK | 0600, makedev(254, 0));
    } else if (IS("fifo")) {
        unlink("state.json");
        return mkfifo("state.json", 0600);
    } else if (IS("socket"))
        unix_socket("socket");
    else if (IS("names"))
        odd_names();
    else if (IS("many-files"))
        many_files(getenv("MANY") ? atoi(getenv("MANY")) : 5000);
    else if (IS("deep"))
        deep_directories();
    else if (IS("modes")) {
        mkdir("closed", 0755);
        put("closed/file", "x", O_CREAT);
        chmod("closed", 0);
        chmod("state.json", 0);
    } else if (IS("own-directory-closed"))
        return chmod(".", 0);
    else if (IS("immutable"))
        immutable();
    else if (IS("ptrace-parent")) {
        if (getppid() > 1 && ptrace(PTRACE_ATTACH, getppid(), 0, 0) == 0)
            doze(60000);
    } else if (IS("stop-parent")) {
        if (getppid() > 1)
            kill(getppid(), SIGSTOP);
        doze(50);
    } else if (IS("kill-parent")) {
        if (getppid() > 1)
            kill(getppid(), SIGKILL);
        doze(50);
    } else if (IS("kill-group"))
        kill(0, SIGKILL);
    else if (IS("kill-everybody")) {
        /* Only where there is a PID namespace: the parent is in another one. */
        if (getppid() == 0)
            kill(-1, SIGKILL);
    } else if (IS("stop-self"))
        raise(SIGSTOP);
    else if (IS("own-filter"))
        own_filter();
    else if (IS("own-user"))
        return setuid(65534) * 0;
    else if (IS("foreign-call"))
        foreign_call();
    else if (IS("closed-descriptors"))
        for (int file = 0; file < 1024; file++)
            close(file);
    else if (IS("mount")) {
        mkdir("mounted", 0755);
        mount("none", "mounted", "tmpfs", 0, NULL);
        mount("none", "/mnt", "tmpfs", 0, NULL);
        mount("none", out("."), "tmpfs", 0, NULL);
    } else if (IS("unshare")) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0)
            mount("none", "/", "tmpfs", 0, NULL);
    } else if (IS("chroot"))
        return chroot(".") * 0;
    else if (IS("shared-memory"))
        shared_memory();
    else if (IS("ignore-signals")) {
        for (int number = 1; number < 65; number++)
            signal(number, SIG_IGN);
        doze(60000);
    } else if (IS("spin"))
        for (;;)
            ;
    else if (IS("flood")) {
        static char line[1 << 16];
        memset(line, 'x', sizeof line);
        for (int n = 0; n < 200; n++)
            if (write(2, line, sizeof line) < 0 || write(1, line, sizeof line) < 0)
                break;
    } else if (IS("segfault"))
        raise(SIGSEGV);
    else if (IS("main-thread-ends")) {
        pthread_t thread;
        pthread_create(&thread, NULL, sleep_long, NULL);
        pthread_exit(NULL);
    } else if (IS("write-outside"))
        put(out("victim"), "hostile", O_TRUNC);
    else if (IS("append-outside"))
        put(out("victim"), "hostile", O_APPEND);
    else if (IS("create-outside"))
        put(out("new"), "hostile", O_CREAT | O_EXCL);
    else if (IS("truncate-outside"))
        return truncate(out("victim"), 1);
    else if (IS("rename-outside")) {
        put("mine", "hostile", O_CREAT);
        return rename("mine", out("victim")) * 0;
    } else if (IS("take-outside"))
        return rename(out("victim"), "taken") * 0;
    else if (IS("hard-link")) {
        if (link(out("victim"), "linked") == 0)
            put("linked", "hostile", O_TRUNC);
    } else if (IS("unlink-outside"))
        return unlink(out("victim"));
    else if (IS("mkdir-outside"))
        return mkdir(out("directory"), 0755);
    else if (IS("rmdir-outside"))
        return rmdir(out("empty"));
    else if (IS("symlink-outside"))
        return symlink("x", out("link"));
    else if (IS("chmod-outside"))
        return chmod(out("victim"), 0777);
    else if (IS("utime-outside"))
        return utimensat(AT_FDCWD, out("victim"), NULL, 0);
    else if (IS("xattr-outside"))
        return setxattr(out("victim"), "user.hostile", "x", 1, 0) * 0;
    else if (IS("bind-outside"))
        unix_socket(out("socket"));
    else if (IS("map-outside"))
        map_outside();
    else if (IS("by-directory")) {
        int directory = open(getenv("OUT"), O_PATH | O_DIRECTORY);
        int file = openat(directory, "victim", O_WRONLY | O_TRUNC);
        if (write(file, "hostile", 7) < 0)
            perror("victim");
    } else if (IS("by-link")) {
        if (symlink(getenv("OUT"), "way") == 0)
            put("way/victim", "hostile", O_TRUNC);
    } else if (IS("by-dots")) {
        char dots[8192] = "../../../../../../../../..";
        strncat(dots, out("victim"), sizeof dots - 64);
        put(dots, "hostile", O_TRUNC);
    } else if (IS("by-proc")) {
        snprintf(path, sizeof path, "/proc/self/root%s/victim", getenv("OUT"));
        put(path, "hostile", O_TRUNC);
        snprintf(path, sizeof path, "/proc/1/root%s/victim", getenv("OUT"));
        put(path, "hostile", O_TRUNC);
    } else if (IS("by-shell")) {
        if (setenv("VICTIM", out("victim"), 1) == 0)
            return system("echo hostile >\"$VICTIM\"") * 0;
    } else if (IS("tune-machine"))
        tune_machine();
    else {
        fprintf(stderr, "hostile: there is no `%s`\n", what);
        return 2;
    }
    return 0;
}

int main(int count, char **arguments)
{
    save(1);
    int status = act(count > 1 ? arguments[1] : "nothing");
    save(2);
    return status ? 1 : 0;
}
