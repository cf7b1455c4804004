// Depthwise convolution with stride 1 and 'same' padding on NHWC maps: forward and weight gradient. The input gradient is the forward
// with the kernel rotated by 180 degrees. A map is a contiguous (N, H, W, C); taps are float32 [K][K][C], so that 16 channels of one tap
// are one load.
#include "depthwise.h"

#include <stdlib.h>

#define ROWS_PER_TASK 8  // rows of the map that a thread computes at once: each input row is read from memory once or twice, not K times

// Rows of the kernel whose gradient is summed in registers at once: the sums and operands must fit 32 registers.
template <int K> constexpr int rows_at_once() { return K <= 3 ? K : K <= 5 ? 3 : K <= 7 ? 4 : 2; }

// Adds the gradient from one band of rows, 16 channels of it, to sums. Maps are float32: in [H + K - 1][W + K - 1][16], which is padded,
// and out [H][W][16].
template <int K, int ROWS>
static void taps_gradient(const float *in, const float *out, float *sums, int64_t height, int64_t width, int first) {
    f32x16 total[ROWS][K];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 11
        for (int k = 0; k < K; k++) total[r][k] = load(sums + ((first + r) * K + k) * LANES, FLOAT32, LANES);
    for (int64_t h = 0; h < height; h++) {
        const float *above = in + (h + first) * (width + K - 1) * LANES;
        const float *here = out + h * width * LANES;
        for (int64_t w = 0; w < width; w++) {
            const f32x16 gradient = load(here + w * LANES, FLOAT32, LANES);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 11
                for (int k = 0; k < K; k++)
                    total[r][k] += gradient * load(above + (r * (width + K - 1) + w + k) * LANES, FLOAT32, LANES);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 11
        for (int k = 0; k < K; k++) store(sums + ((first + r) * K + k) * LANES, total[r][k], FLOAT32, LANES);
}

template <int K, int FIRST>
static void all_taps(const float *in, const float *out, float *sums, int64_t height, int64_t width) {
    if constexpr (FIRST < K) {
        constexpr int rows = rows_at_once<K>() < K - FIRST ? rows_at_once<K>() : K - FIRST;
        taps_gradient<K, rows>(in, out, sums, height, width, FIRST);
        all_taps<K, FIRST + rows>(in, out, sums, height, width);
    }
}

// Rows at a time: a band takes 36 KB, so that rows which are read K times stay in the first-level cache.
static int64_t band_rows(int64_t height, int64_t width, int64_t kernel) {
    const int64_t rows = 36 * 1024 / ((2 * width + kernel - 1) * LANES * 4) - kernel / 2;
    return max(1, min(rows, height));
}

// Each thread has 16 channels of its own: no two add to the same sum, and the order is the same for any number of threads.
template <int DTYPE, int DY_DTYPE, int K>
static int weight_gradient(const void *x, const void *dy, float *dtaps, float *dbias, int64_t n, int64_t height, int64_t width,
                           int64_t channels) {
    const int64_t blocks = (channels + LANES - 1) / LANES, padded = width + K - 1, band = band_rows(height, width, K);
    int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : failed)
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t c = first_channel(block * LANES, channels, LANES), overlap = block * LANES - c;
        const int count = (int)min(LANES, channels);
        float *in = (float *)aligned_alloc(64, ((band + K - 1) * padded + band * width) * LANES * sizeof(float));
        if (!in) { failed = OUT_OF_MEMORY; continue; }
        float *out = in + (band + K - 1) * padded * LANES;
        alignas(64) float sums[K * K * LANES] = {};
        f32x16 bias_sum = broadcast(0);
        for (int64_t image = 0; image < n; image++)
            for (int64_t top = 0; top < height; top += band) {
                const int64_t rows = min(band, height - top);
                for (int64_t r = 0; r < rows + K - 1; r++) {
                    const int64_t h = top + r - K / 2;
                    float *to = in + r * padded * LANES;
                    if (h < 0 || h >= height) { memset(to, 0, padded * LANES * sizeof(float)); continue; }
                    memset(to, 0, K / 2 * LANES * sizeof(float));
                    memset(to + (K / 2 + width) * LANES, 0, K / 2 * LANES * sizeof(float));
                    const void *from = at(x, ((image * height + h) * width) * channels + c, DTYPE);
                    for (int64_t w = 0; w < width; w++)
                        store(to + (K / 2 + w) * LANES, load(at(from, w * channels, DTYPE), DTYPE, count), FLOAT32, LANES);
                }
                const void *from = at(dy, ((image * height + top) * width) * channels + c, DY_DTYPE);
                for (int64_t i = 0; i < rows * width; i++) {
                    const f32x16 gradient = load(at(from, i * channels, DY_DTYPE), DY_DTYPE, count);
                    bias_sum += gradient;
                    store(out + i * LANES, gradient, FLOAT32, LANES);
                }
                all_taps<K, 0>(in, out, sums, rows, width);
            }
        const size_t bytes = (count - overlap) * sizeof(float);
        for (int tap = 0; tap < K * K; tap++) memcpy(dtaps + tap * channels + c + overlap, sums + tap * LANES + overlap, bytes);
        memcpy(dbias + c + overlap, (float *)&bias_sum + overlap, bytes);
        free(in);
    }
    return failed;
}

typedef int WeightGradient(const void *, const void *, float *, float *, int64_t, int64_t, int64_t, int64_t);

template <int DTYPE, int DY_DTYPE> static WeightGradient *weight_gradient_of(int64_t kernel) {
    switch (kernel) {
        case 3: return weight_gradient<DTYPE, DY_DTYPE, 3>;
        case 5: return weight_gradient<DTYPE, DY_DTYPE, 5>;
        case 7: return weight_gradient<DTYPE, DY_DTYPE, 7>;
        case 9: return weight_gradient<DTYPE, DY_DTYPE, 9>;
        case 11: return weight_gradient<DTYPE, DY_DTYPE, 11>;
    }
    return nullptr;
}

// y = convolution + bias, or convolution + add; both may be null. x float32 gives y float32, x bf16 either. Returns OK, UNSUPPORTED_KERNEL
// or UNSUPPORTED_DTYPES.
extern "C" int depthwise_forward(const void *x, const float *taps, const float *bias, const void *add, void *y, int dtype, int y_dtype,
                                 int64_t n, int64_t height, int64_t width, int64_t channels, int64_t kernel) {
    if (dtype == FLOAT32 && y_dtype != FLOAT32) return UNSUPPORTED_DTYPES;
    DepthwiseRows *run = dtype == FLOAT32     ? depthwise_rows_of<FLOAT32, FLOAT32>(kernel)
                         : y_dtype == FLOAT32 ? depthwise_rows_of<BFLOAT16, FLOAT32>(kernel)
                                              : depthwise_rows_of<BFLOAT16, BFLOAT16>(kernel);
    if (!run) return UNSUPPORTED_KERNEL;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n * height; row += ROWS_PER_TASK) {
        const int64_t offset = row * width * channels;
        run({x, height, width, channels}, taps, bias, add ? at(add, offset, y_dtype) : nullptr, at(y, offset, y_dtype), row,
            min(row + ROWS_PER_TASK, n * height));
    }
    return OK;
}

// x and dy have one dtype, or x is float32 and dy bf16. Returns OK, OUT_OF_MEMORY, UNSUPPORTED_KERNEL or UNSUPPORTED_DTYPES.
extern "C" int depthwise_weight_gradient(const void *x, const void *dy, float *dtaps, float *dbias, int dtype, int dy_dtype, int64_t n,
                                         int64_t height, int64_t width, int64_t channels, int64_t kernel) {
    if (dtype == BFLOAT16 && dy_dtype != BFLOAT16) return UNSUPPORTED_DTYPES;
    WeightGradient *run = dtype == BFLOAT16     ? weight_gradient_of<BFLOAT16, BFLOAT16>(kernel)
                          : dy_dtype == FLOAT32 ? weight_gradient_of<FLOAT32, FLOAT32>(kernel)
                                                : weight_gradient_of<FLOAT32, BFLOAT16>(kernel);
    return run ? run(x, dy, dtaps, dbias, n, height, width, channels) : UNSUPPORTED_KERNEL;
}
