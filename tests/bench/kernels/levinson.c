/* Solve a Toeplitz system by Durbin's recursion. */
#include "bench.h"

enum { N = 4000 };
static double *r, *y, *z;

static void prepare(void) {
    r = filled(N);
    y = array(N, sizeof(double));
    z = array(N, sizeof(double));
    for (int i = 0; i < N; i++) r[i] /= 4.0 * N;
}

static void kernel(void) {
    double beta = 1, alpha = -r[0];
    y[0] = alpha;
    for (int k = 1; k < N; k++) {
        beta *= 1 - alpha * alpha;
        double sum = 0;
        for (int i = 0; i < k; i++) sum += r[k - i - 1] * y[i];
        alpha = -(r[k] + sum) / beta;
        for (int i = 0; i < k; i++) z[i] = y[i] + alpha * y[k - i - 1];
        for (int i = 0; i < k; i++) y[i] = z[i];
        y[k] = alpha;
    }
}
