// ConvNeXt's block and its MLP on whole maps, and the order in which products read weights.
//   mlp: out = shortcut + keep (GELU(y W1ᵀ + b1) W2ᵀ + b2)
#include "block.h"

template <class P, int Y_DTYPE, int DTYPE>
static int mlp(const void *y, const void *shortcut, void *out, const Weights &w, const float *keep, int64_t rows, int64_t positions) {
    return each_slab<P>(rows, slab_rows(w, sizeof(typename P::Value)), [&](int64_t first, int64_t last, typename P::Scratch &scratch) {
        Slab<P> slab;
        if (!slab.take(w, last - first)) return false;
        for (int64_t row = first; row < last; row++) {
            const void *from = at(y, row * w.width, Y_DTYPE);
            for (int64_t c = 0; c < slab.y_stride; c += LANES)
                P::put(P::place(slab.y, row - first, c, slab.y_stride),
                       load(at(from, c, Y_DTYPE), Y_DTYPE, (int)most(0, least(LANES, w.width - c))));
        }
        const int64_t begin = first * w.width;
        mlp_slab<P, DTYPE>(slab, w, scratch, last - first, at(shortcut, begin, DTYPE), at(out, begin, DTYPE), keep, positions, first);
        return true;
    });
}

template <class P, int DTYPE>
static int block(const void *x, const float *taps, const float *bias, float eps, const Weights &w, const float *keep, const Kept &kept,
                 void *out, int64_t n, int64_t height, int64_t width, int64_t kernel) {
    const Block<P, DTYPE> block = {taps, bias, eps, w, kernel, keep, kept};
    return each_slab<P>(n * height, block.rows_at_once(width), [&](int64_t first, int64_t last, typename P::Scratch &scratch) {
        return block.rows(x, out, height, width, first, last, scratch);
    });
}

// 32 x 32 weights at a time; whichever step is 1, memory is read along it.
template <class P>
static void pack(const float *weight, int64_t row_step, int64_t column_step, const float *row_scale, const float *column_scale,
                 typename P::Value *packed, int64_t n, int64_t k) {
    const int64_t depth = (k + 31) / 32 * 32;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n; row += 32) {
        typename P::Writer writer = {packed + row * depth};
        const int64_t rows = least(32, n - row);
        for (int64_t column = 0; column < depth; column += 32) {
            const float *from = weight + row * row_step + column * column_step;
            const int64_t columns = least(32, k - column);
            alignas(64) float tile[32][32] = {};
            if (row_step == 1)
                for (int64_t j = 0; j < columns; j++)
                    for (int64_t i = 0; i < rows; i++) tile[j][i] = from[i + j * column_step];
            else
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t j = 0; j < columns; j++) tile[j][i] = from[i * row_step + j * column_step];
            for (int64_t j = 0; j < 32; j++) {
                if (row_scale)
                    for (int64_t i = 0; i < rows; i++) tile[j][i] *= row_scale[row + i];
                if (column_scale && j < columns)
                    for (int64_t i = 0; i < rows; i++) tile[j][i] *= column_scale[column + j];
                writer.put(column + j, load(tile[j], FLOAT32, LANES), load(tile[j] + LANES, FLOAT32, LANES));
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

// Among how many threads the calling one shares its work from now on.
extern "C" int use_threads(int64_t threads) {
    omp_set_num_threads((int)threads);
    return WELL;
}

// weight (n, k), float32 with any steps, times a factor for each row and column, in the order that the products read.
extern "C" int mlp_pack(const float *weight, int64_t row_step, int64_t column_step, const float *row_scale, const float *column_scale,
                        void *packed, int64_t n, int64_t k, int products) {
    if (products == OF_SPLIT) pack<SplitTiles>(weight, row_step, column_step, row_scale, column_scale, (SplitTiles::Value *)packed, n, k);
    else if (products == OF_BF16) pack<Tiles>(weight, row_step, column_step, row_scale, column_scale, (Tiles::Value *)packed, n, k);
    else pack<Float32>(weight, row_step, column_step, row_scale, column_scale, (float *)packed, n, k);
    return 0;
}

// Both return WELL or NO_MEMORY, and the block NO_KERNEL. keep (one factor for every `positions` rows) may be null. y is bf16 with tiles,
// else float32.
extern "C" int mlp_forward(const void *y, const void *shortcut, void *out, const void *first, const float *first_bias, const void *second,
                           const float *second_bias, const float *keep, int dtype, int64_t rows, int64_t positions,
                           int64_t width, int64_t hidden, int tiles) {
    const Weights w = {first, second, first_bias, second_bias, width, hidden};
    auto run = !tiles ? mlp<Float32, FLOAT32, FLOAT32> : dtype == FLOAT32 ? mlp<Tiles, BFLOAT16, FLOAT32> : mlp<Tiles, BFLOAT16, BFLOAT16>;
    return run(y, shortcut, out, w, keep, rows, positions);
}

// The map x and its result are float32, or with products of bf16 of either dtype. What is kept has the products' dtype; kept as a whole or
// null.
extern "C" int block_forward(const void *x, const float *taps, const float *bias, float eps, const void *first, const float *first_bias,
                             const void *second, const float *second_bias, const float *keep, void *convolved, float *means, float *scales,
                             void *out, int dtype, int64_t n, int64_t height, int64_t width, int64_t channels, int64_t hidden,
                             int64_t kernel, int products) {
    if (!is_kernel(kernel)) return NO_KERNEL;
    const Weights w = {first, second, first_bias, second_bias, channels, hidden};
    auto run = products == OF_FLOAT32 ? block<Float32, FLOAT32>
               : products == OF_SPLIT ? block<SplitTiles, FLOAT32>
               : dtype == FLOAT32 ? block<Tiles, FLOAT32> : block<Tiles, BFLOAT16>;
    return run(x, taps, bias, eps, w, keep, {convolved, means, scales}, out, n, height, width, kernel);
}
