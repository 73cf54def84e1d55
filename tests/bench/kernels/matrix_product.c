/* C = a A B + b C, row by row. */
#include "bench.h"

enum { N = 320 };
static double (*a)[N], (*b)[N], (*c)[N];

static void prepare(void) {
    a = (void *)filled(N * N);
    b = (void *)filled(N * N);
    c = (void *)filled(N * N);
}

static void kernel(void) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < N; j++) c[i][j] *= 0.75;
        for (int k = 0; k < N; k++)
            for (int j = 0; j < N; j++) c[i][j] += 1.25 * a[i][k] * b[k][j];
    }
}
