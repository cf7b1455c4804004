// LayerNorm of one position: C values that lie side by side.
#pragma once
#include "vector.h"

struct Moments {
    float mean, scale;  // scale: 1 / sqrt(variance + eps)
    float farthest;     // the largest distance from the mean, where it is asked for
};

// In two passes, since E[x²] - E[x]² would lose what is small beside the mean.
template <int DTYPE, bool FARTHEST = false> INLINE Moments moments(const void *x, int64_t channels, float eps) {
    const int64_t full = channels / LANES * LANES;
    const int rest = (int)(channels - full);
    f32x16 total = broadcast(0), squares = broadcast(0), farthest = broadcast(0);
    for (int64_t c = 0; c < full; c += LANES) total += load(at(x, c, DTYPE), DTYPE, LANES);
    if (rest) total += load(at(x, full, DTYPE), DTYPE, rest);
    const float mean = sum16(total) / channels;
    const auto add = [&](f32x16 distance) __attribute__((always_inline)) {
        squares += distance * distance;
        if (FARTHEST) farthest = (f32x16)_mm512_range_ps((__m512)farthest, (__m512)distance, 11);  // the larger magnitude
    };
    for (int64_t c = 0; c < full; c += LANES) add(load(at(x, c, DTYPE), DTYPE, LANES) - mean);
    if (rest) add((f32x16)_mm512_maskz_sub_ps((__mmask16)((1u << rest) - 1), (__m512)load(at(x, full, DTYPE), DTYPE, rest), _mm512_set1_ps(mean)));
    return {mean, 1 / sqrtf(sum16(squares) / channels + eps), FARTHEST ? _mm512_reduce_max_ps((__m512)farthest) : 0};
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
