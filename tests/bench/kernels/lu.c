/* Factor a diagonally dominant matrix in place, without pivots. */
#include "bench.h"

enum { N = 380 };
static double (*a)[N];

static void prepare(void) {
    a = (void *)filled(N * N);
    for (int i = 0; i < N; i++) a[i][i] = 2.0 * N;
}

static void kernel(void) {
    for (int k = 0; k < N; k++)
        for (int i = k + 1; i < N; i++) {
            double factor = a[i][k] / a[k][k];
            a[i][k] = factor;
            for (int j = k + 1; j < N; j++) a[i][j] -= factor * a[k][j];
        }
}
