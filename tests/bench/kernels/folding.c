/* The most base pairs of a strand folded onto itself: integers, a triangle, three nested loops. */
#include "bench.h"

enum { N = 440 };
static int32_t (*best)[N], *base;

static void prepare(void) {
    best = array(N * N, sizeof(int32_t));
    base = array(N, sizeof(int32_t));
    for (int i = 0; i < N; i++) base[i] = (int32_t)(filling((uint32_t)i) * 1024) & 3;
}

static int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

static void kernel(void) {
    for (int i = N - 1; i >= 0; i--)
        for (int j = i + 1; j < N; j++) {
            int32_t most = larger(best[i][j - 1], i + 1 < N ? best[i + 1][j] : 0);
            if (i + 1 < j) most = larger(most, best[i + 1][j - 1] + (base[i] + base[j] == 3));
            for (int k = i + 1; k < j; k++) most = larger(most, best[i][k] + best[k + 1][j]);
            best[i][j] = most;
        }
}
