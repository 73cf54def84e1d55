/* D = (A B) C, with inner products: one operand is read by columns. */
#include "bench.h"

enum { N = 200 };
static double (*a)[N], (*b)[N], (*c)[N], (*ab)[N], (*d)[N];

static void prepare(void) {
    a = (void *)filled(N * N);
    b = (void *)filled(N * N);
    c = (void *)filled(N * N);
    ab = array(N * N, sizeof(double));
    d = array(N * N, sizeof(double));
}

static void product(double (*restrict out)[N], double (*left)[N], double (*right)[N]) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < N; k++) sum += left[i][k] * right[k][j];
            out[i][j] = sum;
        }
}

static void kernel(void) {
    product(ab, a, b);
    product(d, ab, c);
}
