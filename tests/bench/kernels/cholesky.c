/* Factor a symmetric, positive definite matrix in place. */
#include "bench.h"

#include <math.h>

enum { N = 480 };
static double (*a)[N];

static void prepare(void) {
    a = (void *)filled(N * N);
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < i; j++) a[j][i] = a[i][j];
        a[i][i] = 2.0 * N;
    }
}

static void kernel(void) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < i; j++) {
            for (int k = 0; k < j; k++) a[i][j] -= a[i][k] * a[j][k];
            a[i][j] /= a[j][j];
        }
        for (int k = 0; k < i; k++) a[i][i] -= a[i][k] * a[i][k];
        a[i][i] = sqrt(a[i][i]);
    }
}
