/* All shortest ways in a graph of integers (Floyd and Warshall). */
#include "bench.h"

enum { N = 300 };
static int32_t (*way)[N];

static void prepare(void) {
    way = array(N * N, sizeof(int32_t));
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) way[i][j] = i == j ? 0 : (int32_t)(filling((uint32_t)(i * N + j)) * 1000);
}

static void kernel(void) {
    for (int k = 0; k < N; k++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                int32_t around = way[i][k] + way[k][j];
                way[i][j] = way[i][j] < around ? way[i][j] : around;
            }
}
