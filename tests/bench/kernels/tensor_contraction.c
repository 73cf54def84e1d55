/* Multiply each row of a cube by a matrix. */
#include "bench.h"

enum { R = 80, Q = 70, P = 90 };
static double (*cube)[Q][P], (*matrix)[P], *row;

static void prepare(void) {
    cube = (void *)filled(R * Q * P);
    matrix = (void *)filled(P * P);
    row = array(P, sizeof(double));
}

static void kernel(void) {
    for (int r = 0; r < R; r++)
        for (int q = 0; q < Q; q++) {
            for (int p = 0; p < P; p++) {
                row[p] = 0;
                for (int s = 0; s < P; s++) row[p] += cube[r][q][s] * matrix[s][p];
            }
            for (int p = 0; p < P; p++) cube[r][q][p] = row[p];
        }
}
