// ConvNeXt's block on whole maps, and the order in which products read weights.
#include "grn.h"

template <class P, int DTYPE>
static int block(const void *x, const float *taps, const float *bias, float eps, const Weights &w, const Grn &grn, const float *keep,
                 const Saved &saved, void *out, int64_t n, int64_t height, int64_t width, int64_t kernel) {
    const Block<P, DTYPE> block = {taps, bias, eps, w, kernel, keep, saved, grn};
    if (grn.gamma) return grn_block(x, block, out, n, height, width);
    return all_rows(block, x, out, n * height, height, width);
}

// Reads 16 rows of a matrix (rows, columns) from a row and column on, as 16 vectors of a column each; 0 beyond the matrix. One of the steps
// is 1, and memory is read along it.
static void read_columns(const float *weight, int64_t row_step, int64_t column_step, int64_t rows, int64_t columns, f32x16 *found) {
    if (row_step == 1) {
        for (int i = 0; i < LANES; i++)
            found[i] = i < columns ? load(weight + i * column_step, FLOAT32, (int)max(0, min(LANES, rows))) : broadcast(0);
        return;
    }
    for (int i = 0; i < LANES; i++)
        found[i] = i < rows ? load(weight + i * row_step, FLOAT32, (int)max(0, min(LANES, columns))) : broadcast(0);
    transpose16(found);
}

template <class P>
static void pack(const float *weight, int64_t row_step, int64_t column_step, const float *row_scale, const float *column_scale,
                 void *packed, int64_t n, int64_t k) {
    const int64_t depth = (k + 31) / 32 * 32;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n; row += 32) {
        typename P::Writer writer = {(typename P::Value *)packed + row * depth};
        f32x16 scales[2];
        for (int half = 0; half < 2; half++)
            scales[half] = row_scale ? load(row_scale + row + half * LANES, FLOAT32, (int)max(0, min(LANES, n - row - half * LANES)))
                                     : broadcast(1);
        for (int64_t column = 0; column < depth; column += LANES) {
            f32x16 values[2][LANES];
            for (int half = 0; half < 2; half++) {
                const int64_t first = row + half * LANES;
                read_columns(weight + first * row_step + column * column_step, row_step, column_step, n - first, k - column, values[half]);
            }
            for (int j = 0; j < LANES; j++) {
                f32x16 left = values[0][j], right = values[1][j];
                if (row_scale) left *= scales[0], right *= scales[1];
                if (column_scale && column + j < k) left *= column_scale[column + j], right *= column_scale[column + j];
                writer.put(column + j, left, right);
            }
        }
    }
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

// Packs weight (n, k), float32 with a step of 1 along rows or columns, times a factor for each row and column (or null), for these products. Returns OK or
// NEEDS_TILES.
extern "C" int pack_weight(const float *weight, int64_t row_step, int64_t column_step, const float *row_scale, const float *column_scale,
                           void *packed, int64_t n, int64_t k, int products) {
    if (products != PRODUCTS_FLOAT32 && !TILES_COMPILED) return NEEDS_TILES;
    const auto run = products == PRODUCTS_SPLIT ? pack<SplitTiles> : products == PRODUCTS_BF16 ? pack<Tiles> : pack<Float32>;
    run(weight, row_step, column_step, row_scale, column_scale, packed, n, k);
    return OK;
}

// The block of the map x, which is float32, or with products of bf16 of either dtype; so is the result. keep (a factor for each image) may
// be null, and so may grn, GRN's gamma and beta, both padded. convolved, means and scales are written for the backward pass, or all null, as with GRN;
// convolved has the products' dtype. Returns OK, OUT_OF_MEMORY, UNSUPPORTED_KERNEL, UNSUPPORTED_DTYPES or NEEDS_TILES.
extern "C" int block_forward(const void *x, const float *taps, const float *bias, float eps, const void *first, const float *first_bias,
                             const void *second, const float *second_bias, const float *grn, float grn_eps, const float *keep,
                             void *convolved, float *means, float *scales, void *out, int dtype, int64_t n, int64_t height, int64_t width,
                             int64_t channels, int64_t hidden, int64_t kernel, int products) {
    if (!is_kernel(kernel)) return UNSUPPORTED_KERNEL;
    if (products != PRODUCTS_FLOAT32 && !TILES_COMPILED) return NEEDS_TILES;
    if (products != PRODUCTS_BF16 && dtype != FLOAT32) return UNSUPPORTED_DTYPES;
    const Weights w = {first, second, first_bias, second_bias, channels, hidden};
    auto run = products == PRODUCTS_FLOAT32 ? block<Float32, FLOAT32>
               : products == PRODUCTS_SPLIT ? block<SplitTiles, FLOAT32>
               : dtype == FLOAT32           ? block<Tiles, FLOAT32>
                                            : block<Tiles, BFLOAT16>;
    return run(x, taps, bias, eps, w, grn_of(grn, w, grn_eps), keep, {convolved, means, scales}, out, n, height, width, kernel);
}
