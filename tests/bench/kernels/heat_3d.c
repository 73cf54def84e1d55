/* The heat equation in space, explicit steps. */
#include "bench.h"

enum { N = 56, STEPS = 40 };
static double (*a)[N][N], (*b)[N][N];

static void prepare(void) {
    a = (void *)filled(N * N * N);
    b = (void *)filled(N * N * N);
}

static void step_into(double (*restrict out)[N][N], double (*in)[N][N]) {
    for (int i = 1; i < N - 1; i++)
        for (int j = 1; j < N - 1; j++)
            for (int k = 1; k < N - 1; k++)
                out[i][j][k] = in[i][j][k] + 0.125 * (in[i + 1][j][k] - 2.0 * in[i][j][k] + in[i - 1][j][k]) +
                               0.125 * (in[i][j + 1][k] - 2.0 * in[i][j][k] + in[i][j - 1][k]) +
                               0.125 * (in[i][j][k + 1] - 2.0 * in[i][j][k] + in[i][j][k - 1]);
}

static void kernel(void) {
    for (int step = 0; step < STEPS; step++) {
        step_into(b, a);
        step_into(a, b);
    }
}
