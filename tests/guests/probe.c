/* One guest for what C programs do in a sandbox: argv[1] says what. Built by build.py; the .wasm is committed. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned long sink;

static int echo(void) {
    char buffer[65536];
    ssize_t size;
    while ((size = read(0, buffer, sizeof buffer)) > 0) {
        for (ssize_t sent = 0; sent < size;) {
            ssize_t now = write(1, buffer + sent, (size_t)(size - sent));
            if (now < 0) return 2;
            sent += now;
        }
    }
    return size < 0;
}

/* Answers each line before it reads the next: hangs unless output leaves while input is awaited. */
static int dialogue(void) {
    char line[256];
    while (fgets(line, sizeof line, stdin)) printf("got %s", line), fflush(stdout);
    return 0;
}

static int flood(int descriptor) {
    char buffer[4096];
    memset(buffer, 'x', sizeof buffer);
    while (write(descriptor, buffer, sizeof buffer) > 0) sink++;
    return 3;
}

static int grow(void) {
    for (;;) {
        char *page = malloc(1 << 20);
        if (!page) return 4;
        memset(page, 1, 1 << 20);
        sink += (unsigned long)page;
    }
}

/* Wants more than there is, and does without. */
static int grow_and_cope(void) {
    for (int count = 0; count < 4096; count++) {
        char *page = malloc(1 << 20);
        if (!page) return 0;
        memset(page, 1, 1 << 20);
        sink += (unsigned long)page;
    }
    return 5;
}

static int open_files(const char *folder) {
    for (int count = 0;; count++) {
        int fd = open(folder, O_RDONLY | O_DIRECTORY);
        if (fd < 0) return errno == EMFILE ? 6 : 7;
    }
}

static int recurse(int depth) {
    volatile char frame[512];
    frame[0] = (char)depth;
    return recurse(depth + 1) + frame[0];
}

static int list(const char *folder) {
    DIR *directory = opendir(folder);
    if (!directory) return perror(folder), 8;
    for (struct dirent *entry; (entry = readdir(directory));)
        if (entry->d_name[0] != '.') puts(entry->d_name);
    return closedir(directory);
}

static int write_file(const char *path) {
    FILE *file = fopen(path, "w");
    if (!file) return perror(path), 9;
    fputs("written by a guest\n", file);
    return fclose(file);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "hello";
    const char *argument = argc > 2 ? argv[2] : "";
    if (!strcmp(what, "hello")) return puts("hello") < 0;
    if (!strcmp(what, "exit")) return atoi(argument);
    if (!strcmp(what, "echo")) return echo();
    if (!strcmp(what, "dialogue")) return dialogue();
    if (!strcmp(what, "env")) return printf("%s\n", getenv(argument) ? getenv(argument) : "(unset)") < 0;
    if (!strcmp(what, "args")) {
        for (int i = 2; i < argc; i++) puts(argv[i]);
        return 0;
    }
    if (!strcmp(what, "both")) return fputs("out\n", stdout), fputs("err\n", stderr), 0;
    if (!strcmp(what, "spin")) {
        for (;;) sink++;
    }
    if (!strcmp(what, "say-and-spin")) {
        puts("last words");
        fflush(stdout);
        for (;;) sink++;
    }
    if (!strcmp(what, "sleep")) return sleep((unsigned)atoi(argument)) != 0;
    if (!strcmp(what, "flood-out")) return flood(1);
    if (!strcmp(what, "flood-err")) return flood(2);
    if (!strcmp(what, "grow")) return grow();
    if (!strcmp(what, "grow-and-cope")) return grow_and_cope();
    if (!strcmp(what, "open-files")) return open_files(argument);
    if (!strcmp(what, "recurse")) return recurse(0);
    if (!strcmp(what, "trap")) __builtin_trap();
    if (!strcmp(what, "list")) return list(argument);
    if (!strcmp(what, "write")) return write_file(argument);
    if (!strcmp(what, "random")) {
        unsigned char bytes[16];
        if (getentropy(bytes, sizeof bytes)) return 10;
        for (size_t i = 0; i < sizeof bytes; i++) printf("%02x", bytes[i]);
        return puts("") < 0;
    }
    if (!strcmp(what, "clock")) return printf("%lld\n", (long long)time(NULL)) < 0;
    fprintf(stderr, "unknown: %s\n", what);
    return 64;
}
