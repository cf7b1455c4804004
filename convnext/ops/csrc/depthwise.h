// Rows of a depthwise convolution, shared by the convolution alone and the whole block.
#pragma once
#include "vector.h"

struct Image {  // (height, width, channels), contiguous
    const void *x;
    int64_t height, width, channels;
};

// Computes T adjacent outputs of a register of channels. Their sums stay in registers while each input is read once and multiplied by up
// to K taps. Sums begin with `add` (laid out as y), the bias, or 0. INSIDE: no input column lies beyond the map.
template <int DTYPE, int Y_DTYPE, int K, int T, bool INSIDE>
static void depthwise_tile(const Image &image, const float *weight, const float *bias, const void *add, void *y, int64_t h, int64_t w,
                           int lanes) {
    native sums[T];
#pragma GCC unroll 14
    for (int t = 0; t < T; t++) {
        if (add) sums[t] = load_native(at(add, t * image.channels, Y_DTYPE), Y_DTYPE, lanes);
        else sums[t] = bias ? load_native(bias, FLOAT32, lanes) : broadcast_native(0);
    }
    const int64_t first = max(0, K / 2 - h), last = min(K, image.height + K / 2 - h);
    for (int64_t ky = first; ky < last; ky++) {
        const void *row = at(image.x, ((h + ky - K / 2) * image.width + w - K / 2) * image.channels, DTYPE);
        native taps[K];
#pragma GCC unroll 11
        for (int kx = 0; kx < K; kx++) taps[kx] = load_native(weight + (ky * K + kx) * image.channels, FLOAT32, lanes);
#pragma GCC unroll 32
        for (int i = 0; i < T + K - 1; i++) {
            if (!INSIDE && (w + i < K / 2 || w + i - K / 2 >= image.width)) continue;
            const native value = load_native(at(row, i * image.channels, DTYPE), DTYPE, lanes);
#pragma GCC unroll 11
            for (int kx = 0; kx < K; kx++)
                if (i - kx >= 0 && i - kx < T) sums[i - kx] += value * taps[kx];
        }
    }
#pragma GCC unroll 14
    for (int t = 0; t < T; t++) store_native(at(y, t * image.channels, Y_DTYPE), sums[t], Y_DTYPE, lanes);
}

// Computes rows first to last - 1 of maps (n * height rows in all) into y, which begins with the first of them. A register of channels
// passes through all rows before the next, so that the input that K rows share is read from the first-level cache. Where no tile divides the width,
// the last tile moves left and computes some outputs again.
template <int DTYPE, int Y_DTYPE, int K>
static void depthwise_rows(Image maps, const float *weight, const float *bias, const void *add, void *y, int64_t first, int64_t last) {
    const int64_t width = maps.width, channels = maps.channels, tile = width >= 14 && NATIVE == 16 ? 14 : width >= 7 ? 7 : 1;
    const int lanes = (int)min(NATIVE, channels);
    for (int64_t block = 0; block < channels; block += NATIVE) {
        const int64_t c = first_channel(block, channels, NATIVE);
        const float *weight_c = weight + c, *bias_c = bias ? bias + c : nullptr;
        for (int64_t row = first; row < last; row++) {
            const int64_t h = row % maps.height, begin = (row - first) * width * channels + c;
            const Image image = {at(maps.x, (row - h) * width * channels + c, DTYPE), maps.height, width, channels};
            for (int64_t next = 0; next < width; next += tile) {
                const int64_t w = min(next, width - tile), offset = begin + w * channels;
                const void *add_here = add ? at(add, offset, Y_DTYPE) : nullptr;
                void *to = at(y, offset, Y_DTYPE);
                const bool inside = w >= K / 2 && w + tile + K / 2 <= width;
#define TILE(T, INSIDE) depthwise_tile<DTYPE, Y_DTYPE, K, T, INSIDE>(image, weight_c, bias_c, add_here, to, h, w, lanes)
                if (tile == 14) {
                    if constexpr (NATIVE == 16) inside ? TILE(14, true) : TILE(14, false);
                } else if (tile == 7) NATIVE == 8 && inside ? TILE(7, true) : TILE(7, false);
                else TILE(1, false);
#undef TILE
            }
        }
    }
}

// Whether a function exists for a kernel size.
INLINE bool is_kernel(int64_t kernel) { return kernel >= 3 && kernel <= 11 && kernel % 2; }

typedef void DepthwiseRows(Image, const float *, const float *, const void *, void *, int64_t, int64_t);

// Returns the function for a kernel size, or null if there is none.
template <int DTYPE, int Y_DTYPE> static DepthwiseRows *depthwise_rows_of(int64_t kernel) {
    switch (kernel) {
        case 3: return depthwise_rows<DTYPE, Y_DTYPE, 3>;
        case 5: return depthwise_rows<DTYPE, Y_DTYPE, 5>;
        case 7: return depthwise_rows<DTYPE, Y_DTYPE, 7>;
        case 9: return depthwise_rows<DTYPE, Y_DTYPE, 9>;
        case 11: return depthwise_rows<DTYPE, Y_DTYPE, 11>;
    }
    return nullptr;
}
