/* What every kernel shares: arrays on the heap, a reproducible filling, and a main that prints one line,
 * "CHECKSUM NANOSECONDS", where the time is that of the kernel alone and the checksum that of all bits it left. */
#ifndef BENCH_H
#define BENCH_H

#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* A kernel file defines these two. Its arrays come from `array`, so that `checksum` finds them. */
static void prepare(void);
static void kernel(void);

#define MAX_ARRAYS 16
static struct {
    void *start;
    size_t bytes;
} arrays[MAX_ARRAYS];
static int array_count;

static void *array(size_t count, size_t element_bytes) {
    void *start = calloc(count, element_bytes);
    if (start == NULL || array_count == MAX_ARRAYS) abort();
    arrays[array_count].start = start;
    arrays[array_count++].bytes = count * element_bytes;
    return start;
}

/* Numbers from 0.5 to 1.5 that look irregular and are the same everywhere. */
static inline double filling(uint32_t index) {
    uint32_t mixed = index * 2654435761u;
    mixed ^= mixed >> 15;
    return 0.5 + (double)(mixed & 0xffffu) / 65536.0;
}

static inline double *filled(size_t count) {
    double *values = array(count, sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = filling((uint32_t)i);
    return values;
}

/* FNV-1a over the words of all arrays, in the order they were made. */
static uint64_t checksum(void) {
    uint64_t hash = 14695981039346656037u;
    for (int a = 0; a < array_count; a++) {
        const uint32_t *words = arrays[a].start;
        for (size_t i = 0; i < arrays[a].bytes / sizeof *words; i++) hash = (hash ^ words[i]) * 1099511628211u;
    }
    return hash;
}

static uint64_t now_ns(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) abort();
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int main(void) {
    prepare();
    uint64_t started = now_ns();
    kernel();
    uint64_t taken = now_ns() - started;
    printf("%016" PRIx64 " %" PRIu64 "\n", checksum(), taken);
    return 0;
}

#endif
