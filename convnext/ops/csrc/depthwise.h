// One row of a depthwise convolution, which the convolution alone and the whole block share.
#pragma once
#include "vector.h"

struct Image {  // (height, width, channels) without gaps
    const void *x;
    int64_t height, width, channels;
};

// T neighbouring outputs, 16 channels of them: their sums stay in registers while each input is read once and meets up to K taps.
// They begin with `add` (laid out as y) or bias, where there is one. INSIDE: no input column lies beyond the map.
template <int DTYPE, int Y_DTYPE, int K, int T, bool INSIDE>
static void depthwise_tile(const Image &image, const float *weight, const float *bias, const void *add, void *y, int64_t h, int64_t w,
                           int64_t y_stride, int lanes) {
    f32x16 sums[T];
#pragma GCC unroll 14
    for (int t = 0; t < T; t++) {
        if (add) sums[t] = load(at(add, t * y_stride, Y_DTYPE), Y_DTYPE, lanes);
        else sums[t] = bias ? load(bias, FLOAT32, lanes) : broadcast(0);
    }
    const int64_t first = most(0, K / 2 - h), last = least(K, image.height + K / 2 - h);
    for (int64_t ky = first; ky < last; ky++) {
        const void *row = at(image.x, ((h + ky - K / 2) * image.width + w - K / 2) * image.channels, DTYPE);
        f32x16 taps[K];
#pragma GCC unroll 11
        for (int kx = 0; kx < K; kx++) taps[kx] = load(weight + (ky * K + kx) * image.channels, FLOAT32, lanes);
#pragma GCC unroll 32
        for (int i = 0; i < T + K - 1; i++) {
            if (!INSIDE && (w + i < K / 2 || w + i - K / 2 >= image.width)) continue;
            const f32x16 value = load(at(row, i * image.channels, DTYPE), DTYPE, lanes);
#pragma GCC unroll 11
            for (int kx = 0; kx < K; kx++)
                if (i - kx >= 0 && i - kx < T) sums[i - kx] += value * taps[kx];
        }
    }
#pragma GCC unroll 14
    for (int t = 0; t < T; t++) store(at(y, t * y_stride, Y_DTYPE), sums[t], Y_DTYPE, lanes);
}

// Row h of an image to y, whose pixels lie y_stride values apart. Widths that no tile divides: the last tile moves left and computes
// some outputs again.
template <int DTYPE, int Y_DTYPE, int K>
static void depthwise_row(Image image, const float *weight, const float *bias, const void *add, void *y, int64_t h, int64_t y_stride) {
    const int64_t width = image.width, tile = width >= 14 ? 14 : width >= 7 ? 7 : 1;
    const void *x = image.x;
    for (int64_t block = 0; block < image.channels; block += LANES) {
        const int64_t c = first_of(block, image.channels);
        const int lanes = (int)least(LANES, image.channels);
        image.x = at(x, c, DTYPE);
        for (int64_t begin = 0; begin < width; begin += tile) {
            const int64_t w = least(begin, width - tile), place = w * y_stride + c;
            const void *add_here = add ? at(add, place, Y_DTYPE) : nullptr;
            const bool inside = w >= K / 2 && w + tile + K / 2 <= width;
#define TILE(T, INSIDE)                                                                                                   \
    depthwise_tile<DTYPE, Y_DTYPE, K, T, INSIDE>(image, weight + c, bias ? bias + c : nullptr, add_here, at(y, place, Y_DTYPE), h, w, \
                                                 y_stride, lanes)
            if (tile == 14) inside ? TILE(14, true) : TILE(14, false);
            else if (tile == 7) TILE(7, false);
            else TILE(1, false);
#undef TILE
        }
    }
}

typedef void DepthwiseRow(Image, const float *, const float *, const void *, void *, int64_t, int64_t);

// The function for a kernel size, or null where there is none.
template <int DTYPE, int Y_DTYPE> static DepthwiseRow *depthwise_row_of(int64_t kernel) {
    switch (kernel) {
        case 3: return depthwise_row<DTYPE, Y_DTYPE, 3>;
        case 5: return depthwise_row<DTYPE, Y_DTYPE, 5>;
        case 7: return depthwise_row<DTYPE, Y_DTYPE, 7>;
        case 9: return depthwise_row<DTYPE, Y_DTYPE, 9>;
        case 11: return depthwise_row<DTYPE, Y_DTYPE, 11>;
    }
    return nullptr;
}
