/* Normalise the columns of a table, then correlate each with each. */
#include "bench.h"

#include <math.h>

enum { ROWS = 300, COLUMNS = 240 };
static double (*data)[COLUMNS], (*corr)[COLUMNS], *mean, *deviation;

static void prepare(void) {
    data = (void *)filled(ROWS * COLUMNS);
    corr = array(COLUMNS * COLUMNS, sizeof(double));
    mean = array(COLUMNS, sizeof(double));
    deviation = array(COLUMNS, sizeof(double));
}

static void kernel(void) {
    for (int j = 0; j < COLUMNS; j++) {
        for (int i = 0; i < ROWS; i++) mean[j] += data[i][j];
        mean[j] /= ROWS;
        for (int i = 0; i < ROWS; i++) deviation[j] += (data[i][j] - mean[j]) * (data[i][j] - mean[j]);
        deviation[j] = sqrt(deviation[j]);
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) data[i][j] = (data[i][j] - mean[j]) / deviation[j];
    for (int i = 0; i < COLUMNS; i++)
        for (int j = i; j < COLUMNS; j++) {
            double sum = 0;
            for (int k = 0; k < ROWS; k++) sum += data[k][i] * data[k][j];
            corr[i][j] = corr[j][i] = sum;
        }
}
