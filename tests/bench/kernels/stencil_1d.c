/* Average three neighbours on a line, back and forth. */
#include "bench.h"

enum { N = 4000, STEPS = 4000 };
static double *a, *b;

static void prepare(void) {
    a = filled(N);
    b = filled(N);
}

static void kernel(void) {
    for (int step = 0; step < STEPS; step++) {
        for (int i = 1; i < N - 1; i++) b[i] = 0.33333 * (a[i - 1] + a[i] + a[i + 1]);
        for (int i = 1; i < N - 1; i++) a[i] = 0.33333 * (b[i - 1] + b[i] + b[i + 1]);
    }
}
