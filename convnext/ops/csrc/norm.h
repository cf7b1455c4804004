// LayerNorm of one position: C values that lie side by side.
#pragma once
#include "vector.h"

struct Moments {
    float mean, scale;  // scale: 1 / sqrt(variance + eps)
};

// In two passes, since E[x²] - E[x]² would lose what is small beside the mean.
template <int DTYPE> INLINE Moments moments(const void *x, int64_t channels, float eps) {
    f32x16 total = broadcast(0);
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) total += load(at(x, c, DTYPE), DTYPE, LANES);
    if (c < channels) total += load(at(x, c, DTYPE), DTYPE, (int)(channels - c));
    const float mean = sum16(total) / channels;
    f32x16 squares = broadcast(0);
    for (c = 0; c + LANES <= channels; c += LANES) {
        const f32x16 distance = load(at(x, c, DTYPE), DTYPE, LANES) - mean;
        squares += distance * distance;
    }
    float rest = 0;
    for (; c < channels; c++) {
        const float distance = load(at(x, c, DTYPE), DTYPE, 1)[0] - mean;
        rest += distance * distance;
    }
    return {mean, 1 / sqrtf((sum16(squares) + rest) / channels + eps)};
}

// The gradient dx of a position, and what it adds to those of the parameters. dy: of the normalised position's dtype.
template <int DTYPE, int DY_DTYPE>
static void backward_row(const void *x, const void *dy, const float *weight, float mean, float scale, void *dx, float *dweight,
                         float *dbias, int64_t channels) {
    f32x16 along = broadcast(0), total = broadcast(0);
    for (int64_t c = 0; c < channels; c += LANES) {
        const int count = (int)least(LANES, channels - c);
        const f32x16 normal = (load(at(x, c, DTYPE), DTYPE, count) - mean) * scale;
        const f32x16 gradient = load(at(dy, c, DY_DTYPE), DY_DTYPE, count);  // 0 in lanes that are none
        const f32x16 weighted = gradient * load(weight + c, FLOAT32, count);
        store(dweight + c, load(dweight + c, FLOAT32, count) + gradient * normal, FLOAT32, count);
        store(dbias + c, load(dbias + c, FLOAT32, count) + gradient, FLOAT32, count);
        along += weighted * normal;
        total += weighted;
    }
    const float a = sum16(along) / channels, b = sum16(total) / channels;
    for (int64_t c = 0; c < channels; c += LANES) {
        const int count = (int)least(LANES, channels - c);
        const f32x16 normal = (load(at(x, c, DTYPE), DTYPE, count) - mean) * scale;
        const f32x16 weighted = load(at(dy, c, DY_DTYPE), DY_DTYPE, count) * load(weight + c, FLOAT32, count);
        store(at(dx, c, DTYPE), (weighted - b - normal * a) * scale, DTYPE, count);
    }
}
