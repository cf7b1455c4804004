// ConvNeXt's block on whole maps, and the order in which products read weights.
#include "grn.h"

// With `loose` weights packs them into `first` and `second`, unless threads share the columns: then each packs those that it reads.
template <class P, int DTYPE>
static int block(const void *x, const float *taps, const float *bias, float eps, const Weights &w, const Grn &grn, const float *keep,
                 const Saved &saved, void *out, int64_t n, int64_t height, int64_t width, int64_t kernel) {
    const Block<P, DTYPE> block = {taps, bias, eps, w, kernel, keep, saved, grn};
    if (w.loose && (grn.gamma || !shares_columns(n * height * width, block.bytes())))
        pack<P>(w.loose[0], (void *)w.first), pack<P>(w.loose[1], (void *)w.second);
    if (grn.gamma) return grn_block(x, block, out, n, height, width);
    return all_rows(block, x, out, n * height, height, width);
}

extern "C" int has_tiles() {
#if defined(HAS_TILES)
    return request_tiles();
#else
    return 0;
#endif
}

// Sets the number of threads among which the calling one divides its work from now on.
extern "C" int use_threads(int64_t threads) {
    omp_set_num_threads((int)threads);
    return OK;
}

// Packs weight (n, k), float32 with a step of 1 along rows or columns, times a factor for each row and column (or null), for these
// products. Returns OK or NEEDS_TILES.
extern "C" int pack_weight(const float *weight, int64_t row_step, int64_t column_step, const float *row_scale, const float *column_scale,
                           void *packed, int64_t n, int64_t k, int products) {
    if (products != PRODUCTS_FLOAT32 && !TILES_COMPILED) return NEEDS_TILES;
    const auto run = products == PRODUCTS_SPLIT ? pack<SplitTiles> : products == PRODUCTS_BF16 ? pack<Tiles> : pack<Float32>;
    run({weight, row_step, column_step, row_scale, column_scale, n, k}, packed);
    return OK;
}

// The block of the map x, which is float32, or with products of bf16 of either dtype; so is the result. keep (a factor for each image) may
// be null, and so may grn, GRN's gamma and beta, both padded. convolved, means and scales are written for the backward pass, or all null, as
// with GRN; convolved has the products' dtype. If w1 is given, it and w2 are the weights as `pack_weight` takes them, norm_weight is the
// factor of w1's columns, gamma of w2's rows or null, and first and second are memory to pack them. Returns OK, OUT_OF_MEMORY,
// UNSUPPORTED_KERNEL, UNSUPPORTED_DTYPES or NEEDS_TILES.
extern "C" int block_forward(const void *x, const float *taps, const float *bias, float eps, const void *first, const float *first_bias,
                             const void *second, const float *second_bias, const float *w1, const float *norm_weight, const float *w2,
                             const float *gamma, const float *grn, float grn_eps, const float *keep, void *convolved, float *means,
                             float *scales, void *out, int dtype, int64_t n, int64_t height, int64_t width, int64_t channels,
                             int64_t hidden, int64_t w1_row_step, int64_t w1_column_step, int64_t w2_row_step, int64_t w2_column_step,
                             int64_t kernel, int products) {
    if (!is_kernel(kernel)) return UNSUPPORTED_KERNEL;
    if (products != PRODUCTS_FLOAT32 && !TILES_COMPILED) return NEEDS_TILES;
    if (products != PRODUCTS_BF16 && dtype != FLOAT32) return UNSUPPORTED_DTYPES;
    const Loose loose[] = {{w1, w1_row_step, w1_column_step, nullptr, norm_weight, hidden, channels},
                           {w2, w2_row_step, w2_column_step, gamma, nullptr, channels, hidden}};
    const Weights w = {first, second, first_bias, second_bias, channels, hidden, w1 ? loose : nullptr};
    auto run = products == PRODUCTS_FLOAT32 ? block<Float32, FLOAT32>
               : products == PRODUCTS_SPLIT ? block<SplitTiles, FLOAT32>
               : dtype == FLOAT32           ? block<Tiles, FLOAT32>
                                            : block<Tiles, BFLOAT16>;
    return run(x, taps, bias, eps, w, grn_of(grn, w, grn_eps), keep, {convolved, means, scales}, out, n, height, width, kernel);
}
