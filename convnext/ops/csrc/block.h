// A slab of ConvNeXt's block: some rows of the map go through all its layers while they lie in a core's cache, so that nothing of the
// hidden width (four times the map) is ever written to memory.
//   out = x + keep (GELU(y W1ᵀ + b1) W2ᵀ + b2)    y = (d - mean d) / sqrt(var d + eps)    d = depthwise(x)
// The norm's affine and the layer scale are in the packed weights already.
#pragma once
#include "depthwise.h"
#include "norm.h"
#include "slab.h"

template <class P> struct Slab {
    typename P::Value *y, *hidden;
    float *convolved;  // before the norm; where hidden values lie afterwards
    int64_t y_stride, hidden_stride;

    // Of `rows` positions of the map. False if memory ran out.
    bool take(const Weights &w, int64_t rows) {
        y_stride = w.padded_width();
        hidden_stride = w.padded_hidden();
        rows = (rows + P::PAD - 1) / P::PAD * P::PAD;
        const size_t of_y = (rows * y_stride * sizeof(*y) + 63) / 64 * 64;
        char *memory = (char *)workspace(of_y + most(rows * hidden_stride * sizeof(*y), rows * w.width * sizeof(float)));
        if (!memory) return false;
        y = (typename P::Value *)memory, hidden = (typename P::Value *)(memory + of_y), convolved = (float *)hidden;
        return true;
    }
};

// About 430 KB of them, but not so few that the weights are read too often.
static int64_t slab_rows(const Weights &w, int value_bytes) { return most(224, 430080 / ((w.width + w.hidden) * value_bytes)); }

template <class P, int DTYPE>
static void mlp_slab(const Slab<P> &slab, const Weights &w, typename P::Scratch &scratch, int64_t rows, const void *shortcut, void *out,
                     const float *keep, int64_t positions, int64_t first_row) {
    typedef typename P::Value Value;
    const int64_t lines = w.width * bytes_of(DTYPE) / 64;  // of the cache, that a row of the result takes
    P::multiply(slab.y, rows, (const Value *)w.first, w.padded_width(), w.padded_hidden(), w.first_bias, scratch,
                [&](int64_t row, int64_t column, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                    // The second product finds the place of its results in the cache.
                    if (!(column & 32) && column / 64 < lines) __builtin_prefetch((char *)out + (column / 64 * rows + row) * 64, 1, 2);
                    P::store32(P::place(slab.hidden, row, column, slab.hidden_stride), P::activation(left), P::activation(right));
                });
    P::multiply(slab.hidden, rows, (const Value *)w.second, w.padded_hidden(), w.padded_width(), w.second_bias, scratch,
                [&](int64_t row, int64_t column, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                    const float factor = keep ? keep[(first_row + row) / positions] : 1;
                    const int64_t place = row * w.width + column, there = w.width - column;
                    const void *from = at(shortcut, place, DTYPE);
                    void *to = at(out, place, DTYPE);
                    if (there >= 32) {
                        store(to, load(from, DTYPE, LANES) + factor * left, DTYPE, LANES);
                        store(at(to, LANES, DTYPE), load(at(from, LANES, DTYPE), DTYPE, LANES) + factor * right, DTYPE, LANES);
                        return;
                    }
                    const int few = (int)least(LANES, there), more = (int)most(0, there - LANES);
                    store(to, load(from, DTYPE, few) + factor * left, DTYPE, few);
                    if (more) store(at(to, LANES, DTYPE), load(at(from, LANES, DTYPE), DTYPE, more) + factor * right, DTYPE, more);
                });
}

struct Kept {  // for the backward pass, or null: the convolution's result, and of each position its mean and 1 / deviation
    void *convolved;
    float *means, *scales;
};

template <class P>
static void normalise(const float *from, const Slab<P> &slab, int64_t slab_row, int64_t channels, float eps, const Kept &kept, int64_t row) {
    const Moments of = moments<FLOAT32>(from, channels, eps);
    if (kept.convolved) kept.means[row] = of.mean, kept.scales[row] = of.scale;
    const auto put = [&](int64_t c, int lanes) __attribute__((always_inline)) {
        const f32x16 value = load(from + c, FLOAT32, lanes);
        // Lanes that are none meet weights that are 0.
        P::put(P::place(slab.y, slab_row, c, slab.y_stride), (value - of.mean) * of.scale);
        if (kept.convolved) store(at(kept.convolved, row * channels + c, P::DTYPE), value, P::DTYPE, lanes);
    };
    const int64_t full = channels / LANES * LANES;
    for (int64_t c = 0; c < full; c += LANES) put(c, LANES);
    for (int64_t c = full; c < slab.y_stride; c += LANES) put(c, (int)most(0, least(LANES, channels - c)));
}

// `dtype` of the map and of its result: float32, or with tiles bf16.
template <class P, int DTYPE> struct Block {
    typedef P Products, Patchifying;
    const float *taps, *bias;
    float eps;
    Weights weights;
    int64_t kernel;
    const float *keep;  // for each image, or null
    Kept kept;

    int64_t bytes() const { return 2 * weights.padded_width() * weights.padded_hidden() * sizeof(typename P::Value); }  // of weights
    int64_t rows_at_once(int64_t width) const { return most(1, slab_rows(weights, sizeof(typename P::Value)) / width); }

    // Rows first to last - 1 of maps x (height rows each) to the same ones of out. The kernel is one of ours. False if memory ran out.
    bool rows(const void *x, void *out, int64_t height, int64_t width, int64_t first, int64_t last, typename P::Scratch &scratch) const {
        const int64_t channels = weights.width, count = (last - first) * width, begin = first * width * channels;
        DepthwiseRows *convolve = depthwise_rows_of<DTYPE, FLOAT32>(kernel);
        Slab<P> slab;
        if (!slab.take(weights, count)) return false;
        convolve({x, height, width, channels}, taps, bias, nullptr, slab.convolved, first, last);
        for (int64_t row = 0; row < count; row++)
            normalise<P>(slab.convolved + row * channels, slab, row, channels, eps, kept, first * width + row);
        mlp_slab<P, DTYPE>(slab, weights, scratch, count, at(x, begin, DTYPE), at(out, begin, DTYPE), keep, height * width, first * width);
        return true;
    }
};
