// LayerNorm over the last dimension of (rows, C), forward and backward. Statistics and parameters are float32.
#include "norm.h"

#include <stdlib.h>

#define PARTS 64  // of the parameters' gradients: a fixed number, so that the sum's order does not depend on the number of threads

template <int DTYPE, int Y_DTYPE>
static void forward(const void *x, const float *weight, const float *bias, void *y, float *means, float *scales, int64_t rows,
                    int64_t channels, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const void *from = at(x, row * channels, DTYPE);
        void *to = at(y, row * channels, Y_DTYPE);
        const Moments of = moments<DTYPE>(from, channels, eps);
        means[row] = of.mean;
        scales[row] = of.scale;
        for (int64_t c = 0; c < channels; c += LANES) {
            const int count = (int)least(LANES, channels - c);
            const f32x16 normal = (load(at(from, c, DTYPE), DTYPE, count) - of.mean) * of.scale;
            store(at(to, c, Y_DTYPE), normal * load(weight + c, FLOAT32, count) + load(bias + c, FLOAT32, count), Y_DTYPE, count);
        }
    }
}

template <int DTYPE, int Y_DTYPE>
static int backward(const void *x, const void *dy, const float *weight, const float *means, const float *scales, void *dx,
                    float *dweight, float *dbias, int64_t rows, int64_t channels) {
    float *sums = (float *)calloc(2 * PARTS * channels, sizeof(float));
    if (!sums) return 1;
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < PARTS; part++)
        for (int64_t row = rows * part / PARTS; row < rows * (part + 1) / PARTS; row++)
            backward_row<DTYPE, Y_DTYPE>(at(x, row * channels, DTYPE), at(dy, row * channels, Y_DTYPE), weight, means[row], scales[row],
                                         at(dx, row * channels, DTYPE), sums + 2 * part * channels, sums + (2 * part + 1) * channels,
                                         channels);
    memset(dweight, 0, channels * sizeof(float));
    memset(dbias, 0, channels * sizeof(float));
    for (int64_t part = 0; part < PARTS; part++)
        for (int64_t c = 0; c < channels; c++) {
            dweight[c] += sums[2 * part * channels + c];
            dbias[c] += sums[(2 * part + 1) * channels + c];
        }
    free(sums);
    return 0;
}

// Return 0, or 1 where memory ran out.
extern "C" int norm_forward(const void *x, const float *weight, const float *bias, void *y, float *means, float *scales, int dtype,
                            int y_dtype, int64_t rows, int64_t channels, float eps) {
    auto run = dtype == FLOAT32 ? (y_dtype == FLOAT32 ? forward<FLOAT32, FLOAT32> : forward<FLOAT32, BFLOAT16>)
                                : (y_dtype == FLOAT32 ? forward<BFLOAT16, FLOAT32> : forward<BFLOAT16, BFLOAT16>);
    run(x, weight, bias, y, means, scales, rows, channels, eps);
    return 0;
}

extern "C" int norm_backward(const void *x, const void *dy, const float *weight, const float *means, const float *scales, void *dx,
                             float *dweight, float *dbias, int dtype, int y_dtype, int64_t rows, int64_t channels) {
    auto run = dtype == FLOAT32 ? (y_dtype == FLOAT32 ? backward<FLOAT32, FLOAT32> : backward<FLOAT32, BFLOAT16>)
                                : (y_dtype == FLOAT32 ? backward<BFLOAT16, FLOAT32> : backward<BFLOAT16, BFLOAT16>);
    return run(x, dy, weight, means, scales, dx, dweight, dbias, rows, channels);
}
