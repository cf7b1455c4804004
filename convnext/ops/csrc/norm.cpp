// LayerNorm over the last dimension of (rows, C), forward and backward. Statistics and parameters are float32; x and y have one dtype.
#include "norm.h"

// Partial sums of the parameters' gradients. A fixed number: the order of the sums must not depend on the number of threads.
#define PARTIAL_SUMS 64

template <int DTYPE>
static void forward(const void *x, const float *weight, const float *bias, void *y, float *means, float *scales, int64_t rows,
                    int64_t channels, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const void *from = at(x, row * channels, DTYPE);
        void *to = at(y, row * channels, DTYPE);
        const Moments stats = moments<DTYPE>(from, channels, eps);
        means[row] = stats.mean;
        scales[row] = stats.scale;
        for (int64_t c = 0; c < channels; c += LANES) {
            const int count = (int)min(LANES, channels - c);
            const f32x16 normal = (load(at(from, c, DTYPE), DTYPE, count) - stats.mean) * stats.scale;
            store(at(to, c, DTYPE), normal * load(weight + c, FLOAT32, count) + load(bias + c, FLOAT32, count), DTYPE, count);
        }
    }
}

template <int DTYPE, int DY_DTYPE>
static int backward(const void *x, const void *dy, const float *weight, const float *means, const float *scales, void *dx,
                    float *dweight, float *dbias, int64_t rows, int64_t channels) {
    float *sums = (float *)calloc(2 * PARTIAL_SUMS * channels, sizeof(float));
    if (!sums) return OUT_OF_MEMORY;
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < PARTIAL_SUMS; part++)
        for (int64_t row = rows * part / PARTIAL_SUMS; row < rows * (part + 1) / PARTIAL_SUMS; row++)
            backward_row<DTYPE, DY_DTYPE>(at(x, row * channels, DTYPE), at(dy, row * channels, DY_DTYPE), weight, means[row], scales[row],
                                         at(dx, row * channels, DTYPE), sums + 2 * part * channels, sums + (2 * part + 1) * channels,
                                         channels);
    memset(dweight, 0, channels * sizeof(float));
    memset(dbias, 0, channels * sizeof(float));
    for (int64_t part = 0; part < PARTIAL_SUMS; part++)
        for (int64_t c = 0; c < channels; c++) {
            dweight[c] += sums[2 * part * channels + c];
            dbias[c] += sums[(2 * part + 1) * channels + c];
        }
    free(sums);
    return OK;
}

extern "C" int norm_forward(const void *x, const float *weight, const float *bias, void *y, float *means, float *scales, int dtype,
                            int64_t rows, int64_t channels, float eps) {
    auto run = dtype == FLOAT32 ? forward<FLOAT32> : forward<BFLOAT16>;
    run(x, weight, bias, y, means, scales, rows, channels, eps);
    return OK;
}

// Returns OK or OUT_OF_MEMORY.
extern "C" int norm_backward(const void *x, const void *dy, const float *weight, const float *means, const float *scales, void *dx,
                             float *dweight, float *dbias, int dtype, int dy_dtype, int64_t rows, int64_t channels) {
    auto run = dtype == FLOAT32 ? (dy_dtype == FLOAT32 ? backward<FLOAT32, FLOAT32> : backward<FLOAT32, BFLOAT16>)
                                : (dy_dtype == FLOAT32 ? backward<BFLOAT16, FLOAT32> : backward<BFLOAT16, BFLOAT16>);
    return run(x, dy, weight, means, scales, dx, dweight, dbias, rows, channels);
}
