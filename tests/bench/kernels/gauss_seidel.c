/* Average nine neighbours in place: each point waits for the one before. */
#include "bench.h"

enum { N = 300, STEPS = 30 };
static double (*a)[N];

static void prepare(void) { a = (void *)filled(N * N); }

static void kernel(void) {
    for (int step = 0; step < STEPS; step++)
        for (int i = 1; i < N - 1; i++)
            for (int j = 1; j < N - 1; j++)
                a[i][j] = (a[i - 1][j - 1] + a[i - 1][j] + a[i - 1][j + 1] + a[i][j - 1] + a[i][j] + a[i][j + 1] +
                           a[i + 1][j - 1] + a[i + 1][j] + a[i + 1][j + 1]) /
                          9.0;
}
