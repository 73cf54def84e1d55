/* B = a L' B with a unit lower triangle L. */
#include "bench.h"

enum { N = 360 };
static double (*l)[N], (*b)[N];

static void prepare(void) {
    l = (void *)filled(N * N);
    b = (void *)filled(N * N);
}

static void kernel(void) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            for (int k = i + 1; k < N; k++) b[i][j] += l[k][i] * b[k][j] * 1e-3;
            b[i][j] *= 1.1;
        }
}
