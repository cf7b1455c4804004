// A slab of ConvNeXt's block: some rows of the map pass through all its layers while they lie in a core's cache, so that hidden values
// (four times the map) are never written to memory.
//   out = x + keep (GELU(y W1ᵀ + b1) W2ᵀ + b2)    y = (d - mean d) / sqrt(var d + eps)    d = depthwise(x)
// The norm's affine and the layer scale are in the packed weights already.
#pragma once
#include "depthwise.h"
#include "norm.h"
#include "pack.h"

template <class P> struct Slab {
    typename P::Value *y, *hidden;
    float *convolved;  // before the norm; hidden values overwrite it afterwards
    int64_t y_stride, hidden_stride;

    // For `rows` positions of the map. Returns false if memory ran out.
    template <int SLOT = 0> bool allocate(const Weights &w, int64_t rows) {
        y_stride = P::stride(w.padded_width());
        hidden_stride = P::stride(w.padded_hidden());
        rows = (rows + P::PAD - 1) / P::PAD * P::PAD;
        const size_t y_bytes = (rows * y_stride * sizeof(*y) + 63) / 64 * 64;
        char *memory = (char *)scratch_buffer<SLOT>(y_bytes + max(rows * hidden_stride * sizeof(*y), rows * w.width * sizeof(float)));
        if (!memory) return false;
        y = (typename P::Value *)memory, hidden = (typename P::Value *)(memory + y_bytes), convolved = (float *)hidden;
        return true;
    }
};

// Positions of a slab.
static int64_t slab_rows(const Weights &w, int value_bytes) {
    return max(MIN_SLAB_ROWS, SLAB_BYTES / ((w.width + w.hidden) * value_bytes));
}

struct Columns {  // of a product: first to last - 1, multiples of 32
    int64_t first, last;
};

// Returns 32 columns of the first or second weight, which a thread packs into its scratch buffer if they are not packed. Null if memory
// ran out.
template <class P> static const typename P::Value *panel(const Weights &w, bool second, int64_t column) {
    typedef typename P::Value Value;
    if (!w.loose) return (const Value *)(second ? w.second : w.first) + column * (second ? w.padded_hidden() : w.padded_width());
    Value *packed = (Value *)scratch_buffer<PANEL_SLOT>(32 * w.loose[second].depth() * sizeof(Value));
    if (packed) pack_panel<P>(w.loose[second], column, packed);
    return packed;
}

// The second product: out = shortcut + keep (hidden W2ᵀ + b2), for `rows` positions from first_row on; `weights` begins with the columns.
template <class P, int DTYPE>
static void project(const typename P::Value *hidden, const typename P::Value *weights, const Weights &w, Columns columns, typename P::Scratch &scratch, int64_t rows,
                    const void *shortcut, void *out, const float *keep, int64_t positions, int64_t first_row) {
    P::multiply(hidden, rows, weights, w.padded_hidden(), columns.last - columns.first, w.second_bias + columns.first, scratch,
                [&](int64_t row, int64_t column, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                    const float factor = keep ? keep[(first_row + row) / positions] : 1;
                    column += columns.first;
                    const int64_t offset = row * w.width + column, remaining = w.width - column;
                    const void *from = at(shortcut, offset, DTYPE);
                    void *to = at(out, offset, DTYPE);
                    if (remaining >= 32) {
                        store(to, load(from, DTYPE, LANES) + factor * left, DTYPE, LANES);
                        store(at(to, LANES, DTYPE), load(at(from, LANES, DTYPE), DTYPE, LANES) + factor * right, DTYPE, LANES);
                        return;
                    }
                    const int left_lanes = (int)min(LANES, remaining), right_lanes = (int)max(0, remaining - LANES);
                    store(to, load(from, DTYPE, left_lanes) + factor * left, DTYPE, left_lanes);
                    if (!right_lanes) return;
                    store(at(to, LANES, DTYPE), load(at(from, LANES, DTYPE), DTYPE, right_lanes) + factor * right, DTYPE, right_lanes);
                });
}

// The first product: hidden = GELU(y W1ᵀ + b1), for `rows` positions; `weights` begins with the columns. Meanwhile it fetches the first `lines` x rows cache lines of `out`,
// which the second product writes.
template <class P>
static void expand(const Slab<P> &slab, const typename P::Value *weights, const Weights &w, Columns columns, typename P::Scratch &scratch,
                   int64_t rows, const void *out, int64_t lines) {
    P::multiply(slab.y, rows, weights, w.padded_width(), columns.last - columns.first, w.first_bias + columns.first, scratch,
                [&](int64_t row, int64_t column, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                    column += columns.first;
                    if (!(column & 32) && column / 64 < lines) __builtin_prefetch((char *)out + (column / 64 * rows + row) * 64, 1, 2);
                    P::store32(P::address(slab.hidden, row, column, slab.hidden_stride), P::activation(left), P::activation(right));
                });
}

struct Saved {  // for the backward pass, or null: the convolution's result, and the mean and 1 / std of each position
    void *convolved;
    float *means, *scales;
};

struct Grn {
    const float *gamma, *beta;  // padded as hidden values are, or null: the block has no GRN (see grn.h)
    float eps;
};

// Of gamma and beta one behind the other, or null.
INLINE Grn grn_of(const float *both, const Weights &w, float eps) {
    return {both, both ? both + w.padded_hidden() : nullptr, eps};
}

template <class P>
static void normalise(const float *from, const Slab<P> &slab, int64_t slab_row, int64_t channels, float eps, const Saved &saved,
                      int64_t row) {
    const Moments stats = moments<FLOAT32>(from, channels, eps);
    if (saved.convolved) saved.means[row] = stats.mean, saved.scales[row] = stats.scale;
    const auto put = [&](int64_t c, int lanes) __attribute__((always_inline)) {
        const f32x16 value = load(from + c, FLOAT32, lanes);
        // Padding lanes are multiplied by zero weights.
        P::put(P::address(slab.y, slab_row, c, slab.y_stride), (value - stats.mean) * stats.scale);
        if (saved.convolved) store(at(saved.convolved, row * channels + c, P::DTYPE), value, P::DTYPE, lanes);
    };
    const int64_t full = channels / LANES * LANES;
    for (int64_t c = 0; c < full; c += LANES) put(c, LANES);
    for (int64_t c = full; c < (channels + 31) / 32 * 32; c += LANES) put(c, (int)max(0, min(LANES, channels - c)));
}

// DTYPE of the map and of its result: float32, or with tiles bf16.
template <class P, int DTYPE> struct Block {
    typedef P Products, Patchifying;
    const float *taps, *bias;
    float eps;
    Weights weights;
    int64_t kernel;
    const float *keep;  // for each image, or null
    Saved saved;
    Grn grn;

    int64_t bytes() const { return 2 * weights.padded_width() * weights.padded_hidden() * sizeof(typename P::Value); }  // of the weights
    int64_t rows_at_once(int64_t width) const { return max(1, slab_rows(weights, sizeof(typename P::Value)) / width); }

    // Computes the normalised convolution of rows first to last - 1 of maps x (height rows each) into a slab that begins with row `begin`.
    void normalised(const void *x, int64_t height, int64_t width, int64_t first, int64_t last, int64_t begin, const Slab<P> &slab) const {
        const int64_t channels = weights.width;
        float *convolved = slab.convolved + (first - begin) * width * channels;
        depthwise_rows_of<DTYPE, FLOAT32>(kernel)({x, height, width, channels}, taps, bias, nullptr, convolved, first, last);
        for (int64_t row = 0; row < (last - first) * width; row++)
            normalise<P>(convolved + row * channels, slab, (first - begin) * width + row, channels, eps, saved, first * width + row);
    }

    // Computes rows first to last - 1 of out from maps x (height rows each), without GRN. Returns false if memory ran out.
    bool rows(const void *x, void *out, int64_t height, int64_t width, int64_t first, int64_t last, typename P::Scratch &scratch) const {
        const int64_t count = (last - first) * width, begin = first * width * weights.width;
        Slab<P> slab;
        if (!slab.allocate(weights, count)) return false;
        void *to = at(out, begin, DTYPE);
        normalised(x, height, width, first, last, first, slab);
        typedef const typename P::Value *Packed;
        expand(slab, (Packed)weights.first, weights, {0, weights.padded_hidden()}, scratch, count, to, weights.width * bytes_of(DTYPE) / 64);
        project<P, DTYPE>(slab.hidden, (Packed)weights.second, weights, {0, weights.padded_width()}, scratch, count,
                          at(x, begin, DTYPE), to, keep, height * width, first * width);
        return true;
    }

    // Computes `rows` rows of the map in all threads, which share the columns of the weights: each weight is read by one thread. Without
    // GRN. Returns OK or OUT_OF_MEMORY.
    int by_columns(const void *x, void *out, int64_t rows, int64_t height, int64_t width) const {
        const int64_t count = rows * width;
        Slab<P> slab;
        if (!slab.template allocate<COLUMNS_SLOT>(weights, count)) return OUT_OF_MEMORY;
        return in_parallel<P>([&](typename P::Scratch &scratch) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; row++) normalised(x, height, width, row, row + 1, 0, slab);
#pragma omp for schedule(static)
            for (int64_t c = 0; c < weights.padded_hidden(); c += 32) {
                const auto columns = panel<P>(weights, false, c);
                if (columns) expand(slab, columns, weights, {c, c + 32}, scratch, count, nullptr, 0);
                else scratch.failed = true;
            }
#pragma omp for schedule(static)
            for (int64_t c = 0; c < weights.padded_width(); c += 32) {
                const auto columns = panel<P>(weights, true, c);
                if (columns) project<P, DTYPE>(slab.hidden, columns, weights, {c, c + 32}, scratch, count, x, out, keep, height * width, 0);
                else scratch.failed = true;
            }
        });
    }
};
