/* An agent that does what its input says, one word and one number: what end-to-end tests run. Built by build.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static volatile unsigned long sink;

static int sleep_ms(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    return nanosleep(&time, NULL);
}

int main(void) {
    char what[32] = "";
    long number = 0;
    if (scanf("%31s %ld", what, &number) < 1) return 64;
    fprintf(stderr, "asked for %s %ld\n", what, number);
    if (!strcmp(what, "sleep")) return sleep_ms(number) || printf("{\"slept_ms\":%ld}\n", number) < 0;
    if (!strcmp(what, "exit")) return (int)number;
    if (!strcmp(what, "trap")) __builtin_trap();
    if (!strcmp(what, "loop")) {
        for (;;) sink++;
    }
    if (!strcmp(what, "flood")) {
        char block[4096];
        memset(block, 'x', sizeof block);
        while (fwrite(block, 1, sizeof block, stdout) == sizeof block) sink++;
        return 3;
    }
    if (!strcmp(what, "memory")) { /* in MiB: touches every page */
        for (long block = 0; block < number; block++) {
            char *page = malloc(1 << 20);
            if (!page) return 4;
            memset(page, 1, 1 << 20);
            sink += (unsigned long)page;
        }
        return printf("{\"mib\":%ld}\n", number) < 0;
    }
    if (!strcmp(what, "output")) { /* in bytes */
        for (long byte = 0; byte < number; byte++) putchar('a' + byte % 26);
        return 0;
    }
    fprintf(stderr, "unknown: %s\n", what);
    return 64;
}
