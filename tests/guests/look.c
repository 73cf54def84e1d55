/* Prints all that a guest can see of where it runs: what must be the same twice under a repeatable profile. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void show(const char *path) {
    struct stat found;
    if (lstat(path, &found)) {
        printf("%s: none\n", path);
        return;
    }
    printf("%s: dev %llu ino %llu mode %o links %llu size %lld times %lld.%09ld %lld.%09ld %lld.%09ld\n", path,
           (unsigned long long)found.st_dev, (unsigned long long)found.st_ino, (unsigned)(found.st_mode & S_IFMT),
           (unsigned long long)found.st_nlink, (long long)found.st_size, (long long)found.st_atim.tv_sec,
           found.st_atim.tv_nsec, (long long)found.st_mtim.tv_sec, found.st_mtim.tv_nsec,
           (long long)found.st_ctim.tv_sec, found.st_ctim.tv_nsec);
}

static void list(const char *path) {
    DIR *directory = opendir(path);
    struct dirent *entry;
    while (directory && (entry = readdir(directory)))
        printf("entry %s ino %llu type %d\n", entry->d_name, (unsigned long long)entry->d_ino, entry->d_type);
    if (directory) closedir(directory);
}

static void make(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    if (!file) return;
    fputs(text, file);
    fclose(file);
}

static void change_files(void) {
    make("/d/new", "one");
    show("/d/new");
    remove("/d/new");
    make("/d/other", "two"); /* some hosts give it the number of the file that went */
    show("/d/other");
    make("/d/third", "three");
    rename("/d/third", "/d/other");
    make("/d/fourth", "four");
    link("/d/fourth", "/d/fifth");
    symlink("other", "/d/link");
    mkdir("/d/sub", 0777);
    show("/d/other");
    show("/d/fourth");
    show("/d/link");
    show("/d/sub");
    struct timespec times[2] = {{1, 2}, {0, UTIME_NOW}};
    utimensat(AT_FDCWD, "/d/fourth", times, 0);
    show("/d/fourth");
    show("/d/fifth");
    list("/d");
    for (char name[32] = "/d/"; *name; *name = 0) { /* one pass: removes while it lists, as rm -r does */
        DIR *directory = opendir("/d");
        struct dirent *entry;
        while (directory && (entry = readdir(directory))) {
            if (entry->d_type != DT_REG) continue;
            snprintf(name + 3, sizeof name - 3, "%s", entry->d_name);
            remove(name);
        }
        if (directory) closedir(directory);
    }
    list("/d");
}

int main(int count, char **arguments) {
    extern char **environ;
    struct timespec now, step;
    char bytes[16], line[64];
    for (int index = 0; index < count; index++) printf("argument %s\n", arguments[index]);
    for (char **entry = environ; *entry; entry++) printf("environment %s\n", *entry);
    for (int clock = 0; clock < 2; clock++) {
        const clockid_t id = clock ? CLOCK_MONOTONIC : CLOCK_REALTIME;
        clock_gettime(id, &now);
        clock_getres(id, &step);
        printf("clock %lld.%09ld step %ld\n", (long long)now.tv_sec, now.tv_nsec, step.tv_nsec);
    }
    nanosleep(&(struct timespec){5, 0}, NULL);
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("later %lld.%09ld\n", (long long)now.tv_sec, now.tv_nsec);
    getentropy(bytes, sizeof bytes);
    for (unsigned index = 0; index < sizeof bytes; index++) printf("%02x", (unsigned char)bytes[index]);
    printf("\nat %p\n", malloc(100));
    show("/");
    show("/d");
    list("/d");
    change_files();
    long pieces = 0, got;
    while ((got = read(0, line, sizeof line)) > 0) printf("read %ld as piece %ld\n", got, pieces++);
    printf("float %a\n", 0.1 * (double)count / 3.0);
    return 0;
}
