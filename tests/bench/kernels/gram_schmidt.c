/* A = Q R by modified Gram-Schmidt; columns, so every access strides. */
#include "bench.h"

#include <math.h>

enum { ROWS = 240, COLUMNS = 200 };
static double (*a)[COLUMNS], (*q)[COLUMNS], (*r)[COLUMNS];

static void prepare(void) {
    a = (void *)filled(ROWS * COLUMNS);
    q = array(ROWS * COLUMNS, sizeof(double));
    r = array(COLUMNS * COLUMNS, sizeof(double));
}

static void kernel(void) {
    for (int k = 0; k < COLUMNS; k++) {
        double square = 0;
        for (int i = 0; i < ROWS; i++) square += a[i][k] * a[i][k];
        r[k][k] = sqrt(square);
        for (int i = 0; i < ROWS; i++) q[i][k] = a[i][k] / r[k][k];
        for (int j = k + 1; j < COLUMNS; j++) {
            double dot = 0;
            for (int i = 0; i < ROWS; i++) dot += q[i][k] * a[i][j];
            r[k][j] = dot;
            for (int i = 0; i < ROWS; i++) a[i][j] -= q[i][k] * dot;
        }
    }
}
