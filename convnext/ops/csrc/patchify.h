// A convolution whose kernel is its stride, as a product of matrices: ConvNeXt's stem, with the norm behind it, and its downsampling
// layers, with the norm before them (its affine is in the packed weights). Rows and columns that fill no patch are ignored.
#pragma once
#include "norm.h"
#include "slab.h"

struct Patches {
    int64_t height, width, channels, patch, out_channels;  // of the input map, and of the result
    bool normed;                                           // each pixel is normalised before the convolution
    float eps;
    const void *packed;
    const float *bias, *norm_weight, *norm_bias;  // norm_…: of the norm behind, or null
    int64_t out_height() const { return height / patch; }
    int64_t out_width() const { return width / patch; }
    // A piece is what is contiguous: a pixel where pixels are normalised, else a row of the patch. It begins at a multiple of 16 columns.
    int64_t piece() const { return normed ? channels : patch * channels; }
    int64_t piece_columns() const { return (piece() + LANES - 1) / LANES * LANES; }
    int64_t rows_at_once() const { return max(1, MIN_SLAB_ROWS / max(1, out_width())); }
    int64_t depth() const { return ((normed ? patch * patch : patch) * piece_columns() + 31) / 32 * 32; }
};

// Writes the patch of one output into a row of the left matrix.
template <class P, int DTYPE>
static void gather(const void *x, const Patches &p, typename P::Value *rows, int64_t row, int64_t out_row, int64_t out_column) {
    const int64_t image = out_row / p.out_height(), top = out_row % p.out_height() * p.patch, left = out_column * p.patch;
    const int64_t depth = p.depth(), piece = p.piece(), across = p.normed ? p.patch : 1;
    int64_t column = 0;
    for (int64_t i = 0; i < p.patch; i++)
        for (int64_t j = 0; j < across; j++) {
            const void *from = at(x, ((image * p.height + top + i) * p.width + left + j) * p.channels, DTYPE);
            const Moments stats = p.normed ? moments<DTYPE>(from, p.channels, p.eps) : Moments{0, 1, 0};
            for (int64_t c = 0; c < piece; c += LANES, column += LANES) {
                const f32x16 value = load(at(from, c, DTYPE), DTYPE, (int)min(LANES, piece - c));
                P::put(P::address(rows, row, column, P::stride(depth)), (value - stats.mean) * stats.scale);
            }
        }
    for (; column < depth; column += LANES) P::put(P::address(rows, row, column, P::stride(depth)), broadcast(0));
}

// Computes rows first to last - 1 of the results of maps x (out_height() rows each). Returns false if memory ran out.
template <class P, int DTYPE>
static bool patchify_rows(const void *x, const Patches &p, float *out, int64_t first, int64_t last, typename P::Scratch &scratch) {
    typedef typename P::Value Value;
    const int64_t width = p.out_width(), columns = (p.out_channels + 31) / 32 * 32, depth = p.depth(), count = (last - first) * width;
    const int64_t padded = (count + P::PAD - 1) / P::PAD * P::PAD;
    char *memory = (char *)scratch_buffer(padded * (P::stride(depth) * sizeof(Value) + columns * sizeof(float)));
    if (!memory) return false;
    float *sums = (float *)memory;
    Value *left = (Value *)(memory + padded * columns * sizeof(float));
    for (int64_t row = 0; row < count; row++) gather<P, DTYPE>(x, p, left, row, first + row / width, row % width);
    P::multiply(left, count, (const Value *)p.packed, depth, columns, p.bias, scratch,
                [&](int64_t row, int64_t column, f32x16 a, f32x16 b) __attribute__((always_inline)) {
                    Float32::store32(sums + row * columns + column, a, b);
                });
    for (int64_t row = 0; row < count; row++) {
        const float *from = sums + row * columns;
        float *to = out + (first * width + row) * p.out_channels;
        const Moments stats = p.norm_weight ? moments<FLOAT32>(from, p.out_channels, p.eps) : Moments{0, 1, 0};
        for (int64_t c = 0; c < p.out_channels; c += LANES) {
            const int lanes = (int)min(LANES, p.out_channels - c);
            f32x16 value = (load(from + c, FLOAT32, lanes) - stats.mean) * stats.scale;
            if (p.norm_weight) value = value * load(p.norm_weight + c, FLOAT32, lanes) + load(p.norm_bias + c, FLOAT32, lanes);
            store(to + c, value, FLOAT32, lanes);
        }
    }
    return true;
}
