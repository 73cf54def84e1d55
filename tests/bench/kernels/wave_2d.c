/* Maxwell's equations on a plane: two electric fields and a magnetic one, staggered. */
#include "bench.h"

enum { N = 300, STEPS = 60 };
static double (*ex)[N], (*ey)[N], (*hz)[N];

static void prepare(void) {
    ex = (void *)filled(N * N);
    ey = (void *)filled(N * N);
    hz = (void *)filled(N * N);
}

static void kernel(void) {
    for (int step = 0; step < STEPS; step++) {
        for (int j = 0; j < N; j++) ey[0][j] = step;
        for (int i = 1; i < N; i++)
            for (int j = 0; j < N; j++) ey[i][j] -= 0.5 * (hz[i][j] - hz[i - 1][j]);
        for (int i = 0; i < N; i++)
            for (int j = 1; j < N; j++) ex[i][j] -= 0.5 * (hz[i][j] - hz[i][j - 1]);
        for (int i = 0; i < N - 1; i++)
            for (int j = 0; j < N - 1; j++)
                hz[i][j] -= 0.7 * (ex[i][j + 1] - ex[i][j] + ey[i + 1][j] - ey[i][j]);
    }
}
