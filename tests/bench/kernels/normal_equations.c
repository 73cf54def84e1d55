/* y = A' (A x), many times: one pass by rows for each. */
#include "bench.h"

enum { N = 900, ROUNDS = 16 };
static double (*a)[N], *x, *y;

static void prepare(void) {
    a = (void *)filled(N * N);
    x = filled(N);
    y = array(N, sizeof(double));
}

static void kernel(void) {
    for (int round = 0; round < ROUNDS; round++) {
        for (int j = 0; j < N; j++) y[j] = 0;
        for (int i = 0; i < N; i++) {
            double dot = 0;
            for (int j = 0; j < N; j++) dot += a[i][j] * x[j];
            for (int j = 0; j < N; j++) y[j] += a[i][j] * dot;
        }
        for (int j = 0; j < N; j++) x[j] = 0.5 * x[j] + y[j] / (1e6 + y[j]);
    }
}
