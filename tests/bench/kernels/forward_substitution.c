/* Solve L X = B for many right sides, one after the other. */
#include "bench.h"

enum { N = 800, SIDES = 40 };
static double (*l)[N], (*x)[N];

static void prepare(void) {
    l = (void *)filled(N * N);
    x = (void *)filled(SIDES * N);
    for (int i = 0; i < N; i++) l[i][i] = N;
}

static void kernel(void) {
    for (int side = 0; side < SIDES; side++)
        for (int i = 0; i < N; i++) {
            for (int j = 0; j < i; j++) x[side][i] -= l[i][j] * x[side][j];
            x[side][i] /= l[i][i];
        }
}
