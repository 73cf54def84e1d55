/* s = r A and q = A p in one pass, as biconjugate gradients need them. */
#include "bench.h"

enum { N = 900, ROUNDS = 16 };
static double (*a)[N], *p, *q, *r, *s;

static void prepare(void) {
    a = (void *)filled(N * N);
    p = filled(N);
    r = filled(N);
    q = array(N, sizeof(double));
    s = array(N, sizeof(double));
}

static void kernel(void) {
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < N; i++) {
            q[i] = 0;
            for (int j = 0; j < N; j++) {
                s[j] += r[i] * a[i][j];
                q[i] += a[i][j] * p[j];
            }
        }
}
