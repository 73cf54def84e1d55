/* Smooth an image by a recursive filter: forth and back along rows, then along columns. */
#include "bench.h"

enum { WIDTH = 640, HEIGHT = 480, ROUNDS = 4 };
static double (*image)[WIDTH], (*forth)[WIDTH], (*back)[WIDTH];

static void prepare(void) {
    image = (void *)filled(WIDTH * HEIGHT);
    forth = array(WIDTH * HEIGHT, sizeof(double));
    back = array(WIDTH * HEIGHT, sizeof(double));
}

static void kernel(void) {
    for (int round = 0; round < ROUNDS; round++) {
        for (int y = 0; y < HEIGHT; y++) {
            double last = 0, before = 0;
            for (int x = 0; x < WIDTH; x++) {
                double now = 0.3 * image[y][x] + 0.5 * last + 0.15 * before;
                forth[y][x] = now;
                before = last;
                last = now;
            }
            last = before = 0;
            for (int x = WIDTH - 1; x >= 0; x--) {
                double now = 0.3 * image[y][x] + 0.5 * last + 0.15 * before;
                back[y][x] = now;
                before = last;
                last = now;
            }
        }
        for (int x = 0; x < WIDTH; x++) {
            double last = 0;
            for (int y = 0; y < HEIGHT; y++) {
                last = 0.6 * last + 0.2 * (forth[y][x] + back[y][x]);
                image[y][x] = last;
            }
        }
    }
}
