// The backward pass of the norm and the MLP, slab by slab. Hidden values are computed again, 32 columns at a time, and used for everything
// that needs them while they lie in a core's cache. Of the hidden width, a slab stores only dz, the gradient before GELU.
//   z = y W1ᵀ + b1    dh = d (γ W2)    dz = dh GELU'(z)    dy = dz W1    dW1 = dzᵀ y    dW2 = dᵀ GELU(z)
// where d is the gradient of the result times keep. For W2 and b2, dᵀ GELU(z) and d are summed without the layer scale γ. y is the
// norm's result, computed again from the convolution's; dy then passes through the norm.
#include "norm.h"
#include "slab.h"
#include "transpose.h"

#define BACKWARD_SLAB_BYTES (3 << 19)  // of a slab's values: 1.5 MB, which fit a second-level cache of 2 MB beside weights

struct NormedMap {  // y: the convolution's result and the norm's statistics and parameters
    const void *map;
    const float *means, *scales, *weight, *bias;
};

struct Packed {  // W1 (hidden, width), (γ W2)ᵀ (hidden, width) and W1ᵀ (width, hidden)
    const void *first, *second, *first_transposed;
    const float *first_bias;
};

// Sums of one thread: (width, hidden) twice, (hidden), (width) three times, all padded to 32. The first two are in panels of 32 columns of
// the hidden width, so that each panel adds to contiguous memory.
struct ThreadSums {
    float *dw1_transposed, *dw2, *db1, *db2, *dweight, *dbias;
    ThreadSums(float *memory, int64_t width, int64_t hidden)
        : dw1_transposed(memory), dw2(memory + width * hidden), db1(memory + 2 * width * hidden), db2(db1 + hidden),
          dweight(db2 + width), dbias(dweight + width) {}
    static int64_t size(int64_t width, int64_t hidden) { return 2 * width * hidden + hidden + 3 * width; }
};

static int64_t backward_slab_count(int64_t rows, int64_t width, int64_t hidden, int64_t value_bytes) {
    return slab_count(rows, max(256, BACKWARD_SLAB_BYTES / ((4 * width + hidden) * value_bytes)));
}

// At most a thread for each slab, and so many that all their sums fit 1 GiB.
static int backward_thread_count(int64_t rows, int64_t width, int64_t hidden, int64_t value_bytes) {
    const int64_t useful = min(omp_get_max_threads(), backward_slab_count(rows, width, hidden, value_bytes));
    return (int)max(1, min(useful, (1 << 28) / ThreadSums::size(width, hidden)));
}

template <class P> struct Buffers {
    typedef typename P::Value Value;
    Value *y, *d, *y_transposed, *d_transposed, *dz, *hidden_panel, *dz_panel;
    float *z_panel;
    int64_t y_stride, t_stride, dz_stride;

    bool allocate(int64_t rows, int64_t width, int64_t hidden) {  // all multiples of 32
        y_stride = P::stride(width), t_stride = P::stride(rows), dz_stride = P::stride(hidden);
        const int64_t map = rows * y_stride, transposed = width * t_stride, panel = rows * 32;
        const int64_t sizes[] = {map, map, transposed, transposed, rows * dz_stride, panel, panel};
        Value **buffers[] = {&y, &d, &y_transposed, &d_transposed, &dz, &hidden_panel, &dz_panel};
        int64_t total = rows * 32 * sizeof(float);
        for (int64_t size : sizes) total += size * sizeof(Value);
        char *memory = (char *)scratch_buffer(total);
        if (!memory) return false;
        for (int i = 0; i < 7; i++) *buffers[i] = (Value *)memory, memory += sizes[i] * sizeof(Value);
        z_panel = (float *)memory;
        return true;
    }
};

// Reads rows of y and of the result's gradient into a slab, and sums the second bias's gradient.
template <class P, int DTYPE>
static void read_slab(const Buffers<P> &b, const NormedMap &y, const void *dout, const float *keep, int64_t positions, int64_t first,
                      int64_t count, int64_t padded, int64_t channels, int64_t width, float *db2) {
    for (int64_t c = 0; c < width; c += LANES) {
        const int lanes = (int)max(0, min(LANES, channels - c));
        const f32x16 weight = load(y.weight + c, FLOAT32, lanes), bias = load(y.bias + c, FLOAT32, lanes);
        f32x16 total = load(db2 + c, FLOAT32, LANES);
        for (int64_t row = 0; row < count; row++) {
            const int64_t offset = (first + row) * channels + c;
            f32x16 value = load(at(y.map, offset, P::DTYPE), P::DTYPE, lanes), d = load(at(dout, offset, DTYPE), DTYPE, lanes);
            value = (value - y.means[first + row]) * y.scales[first + row] * weight + bias;
            if (keep) d *= keep[(first + row) / positions];
            total += d;
            P::put(P::address(b.y, row, c, b.y_stride), value);
            P::put(P::address(b.d, row, c, b.y_stride), d);
        }
        for (int64_t row = count; row < padded; row++) {
            P::put(P::address(b.y, row, c, b.y_stride), broadcast(0));
            P::put(P::address(b.d, row, c, b.y_stride), broadcast(0));
        }
        store(db2 + c, total, FLOAT32, LANES);
    }
    for (int64_t c = 0; c < width; c += LANES) {
        P::transpose(b.y, c, b.y_stride, padded, b.y_transposed, b.t_stride);
        P::transpose(b.d, c, b.y_stride, padded, b.d_transposed, b.t_stride);
    }
}

// Computes dz of 32 hidden columns of a slab and adds their part to the weights' gradients.
template <class P>
static void hidden_columns(const Buffers<P> &b, const Packed &w, typename P::Scratch &scratch, int64_t n, int64_t padded, int64_t width,
                           ThreadSums &sums, bool begin) {
    typedef typename P::Value Value;
    P::multiply(b.y, padded, (const Value *)w.first + n * width, width, 32, w.first_bias + n, scratch,
                [&](int64_t row, int64_t, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                    Float32::store32(b.z_panel + row * 32, left, right);
                });
    typename P::Writer hidden_writer = {b.hidden_panel}, dz_writer = {b.dz_panel};
    f32x16 left_sum = load(sums.db1 + n, FLOAT32, LANES), right_sum = load(sums.db1 + n + LANES, FLOAT32, LANES);
    P::multiply(b.d, padded, (const Value *)w.second + n * width, width, 32, nullptr, scratch,
                [&](int64_t row, int64_t, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                    const float *z = b.z_panel + row * 32;
                    const f32x16 z_left = load(z, FLOAT32, LANES), z_right = load(z + LANES, FLOAT32, LANES);
                    left *= P::slope(z_left), right *= P::slope(z_right);
                    left_sum += left, right_sum += right;
                    hidden_writer.put(row, P::activation(z_left), P::activation(z_right));
                    dz_writer.put(row, left, right);
                    P::store32(P::address(b.dz, row, n, b.dz_stride), left, right);
                });
    Float32::store32(sums.db1 + n, left_sum, right_sum);
    const auto add_to = [&](float *gradient) {
        return [=](int64_t row, int64_t, f32x16 left, f32x16 right) __attribute__((always_inline)) {
            float *to = gradient + n * width + row * 32;
            if (!begin) left += load(to, FLOAT32, LANES), right += load(to + LANES, FLOAT32, LANES);
            Float32::store32(to, left, right);
        };
    };
    P::multiply(b.y_transposed, width, b.dz_panel, padded, 32, nullptr, scratch, add_to(sums.dw1_transposed));
    P::multiply(b.d_transposed, width, b.hidden_panel, padded, 32, nullptr, scratch, add_to(sums.dw2));
}

template <class P, int DTYPE>
static int backward(const NormedMap &y, const void *dout, const Packed &w, const float *keep, void *dy, float *all_sums, int &threads,
                    int64_t rows, int64_t positions, int64_t channels, int64_t hidden_channels) {
    typedef typename P::Value Value;
    const int64_t width = (channels + 31) / 32 * 32, hidden = (hidden_channels + 31) / 32 * 32;
    const int64_t slabs = backward_slab_count(rows, width, hidden, sizeof(Value));
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        typename P::Scratch scratch;
        P::begin();
        if (omp_get_thread_num() == 0) threads = omp_get_num_threads();  // may be fewer than requested
        const int64_t size = ThreadSums::size(width, hidden);
        ThreadSums sums(all_sums + omp_get_thread_num() * size, width, hidden);
        memset(sums.db1, 0, (size - 2 * width * hidden) * sizeof(float));
        bool begin = true;  // the large sums are not cleared: a thread's first slab writes them
#pragma omp for schedule(static)
        for (int64_t s = 0; s < slabs; s++) {
            const int64_t first = rows * s / slabs, count = rows * (s + 1) / slabs - first, padded = (count + 31) / 32 * 32;
            Buffers<P> b;
            if (!b.allocate(padded, width, hidden)) { failed = 1; continue; }
            read_slab<P, DTYPE>(b, y, dout, keep, positions, first, count, padded, channels, width, sums.db2);
            for (int64_t n = 0; n < hidden; n += 32) hidden_columns(b, w, scratch, n, padded, width, sums, begin);
            begin = false;
            // dy overwrites d, which is not needed any more.
            P::multiply(b.dz, count, (const Value *)w.first_transposed, hidden, width, nullptr, scratch,
                        [&](int64_t row, int64_t column, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                            P::store32(b.d + row * b.y_stride + column, left, right);
                        });
            for (int64_t row = 0; row < count; row++) {
                const int64_t offset = (first + row) * channels;
                backward_row<P::DTYPE, P::DTYPE>(at(y.map, offset, P::DTYPE), b.d + row * b.y_stride, y.weight, y.means[first + row],
                                                y.scales[first + row], at(dy, offset, P::DTYPE), sums.dweight, sums.dbias, channels);
            }
        }
        failed |= scratch.failed;
        if (begin) memset(sums.dw1_transposed, 0, 2 * width * hidden * sizeof(float));
        P::end();
    }
    return failed ? OUT_OF_MEMORY : OK;
}

// The results. Without a layer scale, gamma is the gradient of a scale of 1.
struct ParameterGradients {
    float *norm_weight, *norm_bias, *w1, *b1, *w2, *b2, *gamma;  // (width) twice, (hidden, width), (hidden), (width, hidden), (width) twice
};

// Adds the sums of all threads in the order of the threads, whichever finished first. The branch times its gradient, summed over positions,
// is W2 times dᵀ GELU(z), summed over hidden values, plus b2 times the sum of d: this gives γ's gradient.
static void reduce_sums(float *sums, int threads, const float *w2, const float *b2, const float *gamma, const ParameterGradients &to,
                   int64_t channels, int64_t hidden_channels) {
    const int64_t width = (channels + 31) / 32 * 32, hidden = (hidden_channels + 31) / 32 * 32, size = ThreadSums::size(width, hidden);
    const ThreadSums all(sums, width, hidden);
    const auto total = [&](const float *first) __attribute__((always_inline)) {
        f32x16 sum = load(first, FLOAT32, LANES);
        for (int thread = 1; thread < threads; thread++) sum += load(first + thread * size, FLOAT32, LANES);
        return sum;
    };
    const auto lanes = [](int64_t offset, int64_t count) { return (int)max(0, min(LANES, count - offset)); };
    const auto panel = [&](const float *gradient, int64_t c, int64_t h) { return gradient + h / 32 * 32 * width + c * 32 + h % 32; };
#pragma omp parallel
    {
#pragma omp for schedule(static) nowait
        for (int64_t c = 0; c < channels; c += LANES) {
            f32x16 along[LANES] = {};
            for (int64_t h = 0; h < hidden_channels; h += LANES)
                for (int i = 0; i < lanes(c, channels); i++) {
                    const int count = lanes(h, hidden_channels);
                    const int64_t offset = (c + i) * hidden_channels + h;
                    const f32x16 sum = total(panel(all.dw2, c + i, h));
                    along[i] += sum * load(w2 + offset, FLOAT32, count);
                    store(to.w2 + offset, gamma ? gamma[c + i] * sum : sum, FLOAT32, count);
                }
            for (int i = 0; i < lanes(c, channels); i++) to.gamma[c + i] = sum16(along[i]);
        }
#pragma omp for schedule(static)
        for (int64_t h = 0; h < hidden; h += LANES) {
            store(to.b1 + h, total(all.db1 + h), FLOAT32, lanes(h, hidden_channels));
            for (int64_t c = 0; c < width; c += LANES) {
                f32x16 rows[LANES];
                for (int i = 0; i < LANES; i++) rows[i] = total(panel(all.dw1_transposed, c + i, h));
                transpose16(rows);
                for (int i = 0; i < lanes(h, hidden_channels); i++)
                    store(to.w1 + (h + i) * channels + c, rows[i], FLOAT32, lanes(c, channels));
            }
        }
    }
    for (int64_t c = 0; c < channels; c += LANES) {
        const int count = lanes(c, channels);
        const f32x16 sum = total(all.db2 + c);
        store(to.b2 + c, gamma ? sum * load(gamma + c, FLOAT32, count) : sum, FLOAT32, count);
        store(to.gamma + c, load(to.gamma + c, FLOAT32, count) + sum * load(b2 + c, FLOAT32, count), FLOAT32, count);
        store(to.norm_weight + c, total(all.dweight + c), FLOAT32, count);
        store(to.norm_bias + c, total(all.dbias + c), FLOAT32, count);
    }
}

// Returns how many floats norm_mlp_backward needs as `sums`.
extern "C" int64_t norm_mlp_backward_sums(int64_t rows, int64_t channels, int64_t hidden, int dtype) {
    const int64_t width = (channels + 31) / 32 * 32, columns = (hidden + 31) / 32 * 32;
    return backward_thread_count(rows, width, columns, bytes_of(dtype)) * ThreadSums::size(width, columns);
}

// convolved and its gradient have `dtype`; dout is float32 or has it too. first, second (times γ) and first_transposed are packed; w2, b2
// and gamma (or null) are plain float32. The last seven are the results, float32. Returns OK, OUT_OF_MEMORY, UNSUPPORTED_DTYPES or
// NEEDS_TILES.
extern "C" int norm_mlp_backward(const void *convolved, const float *means, const float *scales, const float *norm_weight,
                                 const float *norm_bias, const void *dout, const void *first, const float *first_bias, const void *second,
                                 const void *first_transposed, const float *w2, const float *b2, const float *gamma, const float *keep,
                                 void *dconvolved, float *sums, int dtype, int dout_dtype, int64_t rows, int64_t positions,
                                 int64_t channels, int64_t hidden, float *dnorm_weight, float *dnorm_bias, float *dw1, float *db1,
                                 float *dw2, float *db2, float *dgamma) {
    if (dtype == BFLOAT16 && !TILES_COMPILED) return NEEDS_TILES;
    if (dtype == FLOAT32 && dout_dtype != FLOAT32) return UNSUPPORTED_DTYPES;
    const NormedMap y = {convolved, means, scales, norm_weight, norm_bias};
    const Packed w = {first, second, first_transposed, first_bias};
    auto run = dtype == FLOAT32        ? backward<Float32, FLOAT32>
               : dout_dtype == FLOAT32 ? backward<Tiles, FLOAT32>
                                       : backward<Tiles, BFLOAT16>;
    const int64_t width = (channels + 31) / 32 * 32, columns = (hidden + 31) / 32 * 32;
    int threads = backward_thread_count(rows, width, columns, bytes_of(dtype));
    const int failed = run(y, dout, w, keep, dconvolved, sums, threads, rows, positions, channels, hidden);
    const ParameterGradients to = {dnorm_weight, dnorm_bias, dw1, db1, dw2, db2, dgamma};
    if (!failed) reduce_sums(sums, threads, w2, b2, gamma, to, channels, hidden);
    return failed;
}
