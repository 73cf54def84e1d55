/* Average five neighbours on a plane, back and forth. */
#include "bench.h"

enum { N = 300, STEPS = 100 };
static double (*a)[N], (*b)[N];

static void prepare(void) {
    a = (void *)filled(N * N);
    b = (void *)filled(N * N);
}

static void sweep(double (*restrict out)[N], double (*in)[N]) {
    for (int i = 1; i < N - 1; i++)
        for (int j = 1; j < N - 1; j++)
            out[i][j] = 0.2 * (in[i][j] + in[i][j - 1] + in[i][j + 1] + in[i - 1][j] + in[i + 1][j]);
}

static void kernel(void) {
    for (int step = 0; step < STEPS; step++) {
        sweep(b, a);
        sweep(a, b);
    }
}
