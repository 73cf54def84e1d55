/* C = a A A' + b C, lower triangle only. */
#include "bench.h"

enum { N = 360 };
static double (*a)[N], (*c)[N];

static void prepare(void) {
    a = (void *)filled(N * N);
    c = (void *)filled(N * N);
}

static void kernel(void) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j <= i; j++) c[i][j] *= 0.8;
        for (int k = 0; k < N; k++)
            for (int j = 0; j <= i; j++) c[i][j] += 1.5 * a[i][k] * a[j][k];
    }
}
