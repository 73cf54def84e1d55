/* x1 += A y1 by rows and x2 += A' y2 by columns. */
#include "bench.h"

enum { N = 700, ROUNDS = 12 };
static double (*a)[N], *x1, *x2, *y1, *y2;

static void prepare(void) {
    a = (void *)filled(N * N);
    x1 = filled(N);
    x2 = filled(N);
    y1 = filled(N);
    y2 = filled(N);
}

static void kernel(void) {
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) x1[i] += a[i][j] * y1[j];
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) x2[i] += a[j][i] * y2[j];
    }
}
