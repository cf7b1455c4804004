// ConvNeXt's block and its MLP, slab by slab: some rows of the map go through all layers while they lie in a core's cache, so that
// nothing of the hidden width (four times the map) is ever written to memory.
//   mlp:   out = shortcut + keep (GELU(y W1ᵀ + b1) W2ᵀ + b2)
//   block: the same with y = (d - mean d) / sqrt(var d + eps), d = depthwise(x), and x as shortcut
// The norm's affine and the layer scale are in the packed weights already.
#include "depthwise.h"
#include "norm.h"
#include "slab.h"

template <class P> struct Slab {
    typename P::Value *y, *hidden;
    float *depthwise;
    int64_t y_stride, hidden_stride;

    // `rows` positions of the map and, for the block, as many of `convolved` values before the norm. False if memory ran out.
    bool take(const Weights &w, int64_t rows, int64_t convolved) {
        y_stride = w.padded_width();
        hidden_stride = w.padded_hidden();
        rows = (rows + P::PAD - 1) / P::PAD * P::PAD;
        const size_t of_y = (rows * y_stride * sizeof(*y) + 63) / 64 * 64, of_hidden = (rows * hidden_stride * sizeof(*y) + 63) / 64 * 64;
        char *memory = (char *)workspace(of_y + of_hidden + convolved * sizeof(float));
        if (!memory) return false;
        y = (typename P::Value *)memory, hidden = (typename P::Value *)(memory + of_y), depthwise = (float *)(memory + of_y + of_hidden);
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

template <class P, int Y_DTYPE, int DTYPE>
static int mlp(const void *y, const void *shortcut, void *out, const Weights &w, const float *keep, int64_t rows, int64_t positions) {
    const int64_t slabs = slabs_of(rows, slab_rows(w, sizeof(typename P::Value)));
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        typename P::Scratch scratch;
        P::begin();
#pragma omp for schedule(static)
        for (int64_t s = 0; s < slabs; s++) {
            const int64_t first = rows * s / slabs, count = rows * (s + 1) / slabs - first;
            Slab<P> slab;
            if (!slab.take(w, count, 0)) { failed = 1; continue; }
            for (int64_t row = 0; row < count; row++) {
                const void *from = at(y, (first + row) * w.width, Y_DTYPE);
                for (int64_t c = 0; c < slab.y_stride; c += LANES)
                    store(P::place(slab.y, row, c, slab.y_stride),
                          load(at(from, c, Y_DTYPE), Y_DTYPE, (int)most(0, least(LANES, w.width - c))), P::DTYPE, LANES);
            }
            mlp_slab<P, DTYPE>(slab, w, scratch, count, at(shortcut, first * w.width, DTYPE), at(out, first * w.width, DTYPE), keep,
                               positions, first);
        }
        P::end();
    }
    return failed;
}

struct Kept {  // for the backward pass, or null: the convolution's result, and of each position its mean and 1 / deviation
    void *convolved;
    float *means, *scales;
};

template <class P>
static void normalise(const float *from, const Slab<P> &slab, int64_t slab_row, int64_t channels, float eps, const Kept &kept, int64_t row) {
    const Moments of = moments<FLOAT32>(from, channels, eps);
    if (kept.convolved) kept.means[row] = of.mean, kept.scales[row] = of.scale;
    for (int64_t c = 0; c < slab.y_stride; c += LANES) {
        const int lanes = (int)most(0, least(LANES, channels - c));
        const f32x16 value = load(from + c, FLOAT32, lanes);
        // Lanes that are none meet weights that are 0.
        store(P::place(slab.y, slab_row, c, slab.y_stride), (value - of.mean) * of.scale, P::DTYPE, LANES);
        if (kept.convolved) store(at(kept.convolved, row * channels + c, P::DTYPE), value, P::DTYPE, lanes);
    }
}

template <class P, int DTYPE>
static int block(const void *x, const float *taps, const float *bias, float eps, const Weights &w, const float *keep, const Kept &kept,
                 void *out, int64_t n, int64_t height, int64_t width, int64_t kernel) {
    const int64_t rows = n * height, slabs = slabs_of(rows, most(1, slab_rows(w, sizeof(typename P::Value)) / width));
    DepthwiseRows *convolve = depthwise_rows_of<DTYPE, FLOAT32>(kernel);
    if (!convolve) return 1;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        typename P::Scratch scratch;
        P::begin();
#pragma omp for schedule(static)
        for (int64_t s = 0; s < slabs; s++) {
            const int64_t first = rows * s / slabs, last = rows * (s + 1) / slabs;
            Slab<P> slab;
            if (!slab.take(w, (last - first) * width, (last - first) * width * w.width)) { failed = 1; continue; }
            convolve({x, height, width, w.width}, taps, bias, nullptr, slab.depthwise, first, last);
            for (int64_t row = 0; row < (last - first) * width; row++)
                normalise<P>(slab.depthwise + row * w.width, slab, row, w.width, eps, kept, first * width + row);
            const int64_t begin = first * width * w.width;
            mlp_slab<P, DTYPE>(slab, w, scratch, (last - first) * width, at(x, begin, DTYPE), at(out, begin, DTYPE), keep, height * width,
                               first * width);
        }
        P::end();
    }
    return failed;
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

// weight (n, k), float32 with any steps, times a factor for each row and column, in the order that the products read: bf16 for tiles,
// else float32.
extern "C" int mlp_pack(const float *weight, int64_t row_step, int64_t column_step, const float *row_scale, const float *column_scale,
                        void *packed, int64_t n, int64_t k, int tiles) {
    if (tiles) pack<Tiles>(weight, row_step, column_step, row_scale, column_scale, (Tiles::Value *)packed, n, k);
    else pack<Float32>(weight, row_step, column_step, row_scale, column_scale, (float *)packed, n, k);
    return 0;
}

// Both return 0, or 1 where memory ran out. keep (one factor for every `positions` rows) may be null. y is bf16 with tiles, else float32.
extern "C" int mlp_forward(const void *y, const void *shortcut, void *out, const void *first, const float *first_bias, const void *second,
                           const float *second_bias, const float *keep, int dtype, int64_t rows, int64_t positions,
                           int64_t width, int64_t hidden, int tiles) {
    const Weights w = {first, second, first_bias, second_bias, width, hidden};
    auto run = !tiles ? mlp<Float32, FLOAT32, FLOAT32> : dtype == FLOAT32 ? mlp<Tiles, BFLOAT16, FLOAT32> : mlp<Tiles, BFLOAT16, BFLOAT16>;
    return run(y, shortcut, out, w, keep, rows, positions);
}

// The map x and its result are float32, or with tiles bf16. What is kept is bf16 with tiles, else float32; kept as a whole or null.
extern "C" int block_forward(const void *x, const float *taps, const float *bias, float eps, const void *first, const float *first_bias,
                             const void *second, const float *second_bias, const float *keep, void *convolved, float *means, float *scales,
                             void *out, int dtype, int64_t n, int64_t height, int64_t width, int64_t channels, int64_t hidden,
                             int64_t kernel, int tiles) {
    const Weights w = {first, second, first_bias, second_bias, channels, hidden};
    auto run = !tiles ? block<Float32, FLOAT32> : dtype == FLOAT32 ? block<Tiles, FLOAT32> : block<Tiles, BFLOAT16>;
    return run(x, taps, bias, eps, w, keep, {convolved, means, scales}, out, n, height, width, kernel);
}
