// LayerNorm of one position: C contiguous values.
#pragma once
#include "vector.h"

struct Moments {
    float mean, scale;  // scale: 1 / sqrt(variance + eps)
    float max_distance;  // the largest |x - mean|, or 0 without MAX_DISTANCE
};

// In two passes, since E[x²] - E[x]² loses the digits of values that are small beside the mean.
template <int DTYPE, bool MAX_DISTANCE = false> INLINE Moments moments(const void *x, int64_t channels, float eps) {
    const int64_t full = channels / LANES * LANES;
    const int rest = (int)(channels - full);
    f32x16 total = broadcast(0), squares = broadcast(0), max_distance = broadcast(0);
    for (int64_t c = 0; c < full; c += LANES) total += load(at(x, c, DTYPE), DTYPE, LANES);
    if (rest) total += load(at(x, full, DTYPE), DTYPE, rest);
    const float mean = sum16(total) / channels;
    const auto add = [&](f32x16 distance) __attribute__((always_inline)) {
        squares += distance * distance;
        if (MAX_DISTANCE) max_distance = larger_magnitude(max_distance, distance);
    };
    for (int64_t c = 0; c < full; c += LANES) add(load(at(x, c, DTYPE), DTYPE, LANES) - mean);
    if (rest) add(first_lanes(load(at(x, full, DTYPE), DTYPE, rest) - mean, rest));  // padding lanes stay 0
    return {mean, 1 / sqrtf(sum16(squares) / channels + eps), MAX_DISTANCE ? max16(max_distance) : 0};
}

// Writes the gradient dx of a position and adds its part to the parameters' gradients. dy has the dtype of the norm's result.
template <int DTYPE, int DY_DTYPE>
static void backward_row(const void *x, const void *dy, const float *weight, float mean, float scale, void *dx, float *dweight,
                         float *dbias, int64_t channels) {
    f32x16 along = broadcast(0), total = broadcast(0);
    for (int64_t c = 0; c < channels; c += LANES) {
        const int count = (int)min(LANES, channels - c);
        const f32x16 normal = (load(at(x, c, DTYPE), DTYPE, count) - mean) * scale;
        const f32x16 gradient = load(at(dy, c, DY_DTYPE), DY_DTYPE, count);  // 0 in padding lanes
        const f32x16 weighted = gradient * load(weight + c, FLOAT32, count);
        store(dweight + c, load(dweight + c, FLOAT32, count) + gradient * normal, FLOAT32, count);
        store(dbias + c, load(dbias + c, FLOAT32, count) + gradient, FLOAT32, count);
        along += weighted * normal;
        total += weighted;
    }
    const float a = sum16(along) / channels, b = sum16(total) / channels;
    for (int64_t c = 0; c < channels; c += LANES) {
        const int count = (int)min(LANES, channels - c);
        const f32x16 normal = (load(at(x, c, DTYPE), DTYPE, count) - mean) * scale;
        const f32x16 weighted = load(at(dy, c, DY_DTYPE), DY_DTYPE, count) * load(weight + c, FLOAT32, count);
        store(at(dx, c, DTYPE), (weighted - b - normal * a) * scale, DTYPE, count);
    }
}
