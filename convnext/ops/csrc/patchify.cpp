// A convolution whose kernel is its stride, as a product of matrices: ConvNeXt's stem, with the norm behind it, and its downsampling
// layers, with the norm before them (its affine is in the packed weights). Rows or columns that fill no patch are left out.
#include "norm.h"
#include "slab.h"

struct Patches {
    int64_t height, width, channels, patch, out_channels;  // of the input map, and of the result
    bool normed;                                           // each pixel is normalised before
    int64_t out_height() const { return height / patch; }
    int64_t out_width() const { return width / patch; }
    // What lies together in memory: a pixel where pixels are normalised, else a row of the patch; begins at a multiple of 16 columns.
    int64_t piece() const { return normed ? channels : patch * channels; }
    int64_t piece_columns() const { return (piece() + LANES - 1) / LANES * LANES; }
    int64_t depth() const { return ((normed ? patch * patch : patch) * piece_columns() + 31) / 32 * 32; }
};

// The patch of one output into a row of the left matrix.
template <class P, int DTYPE>
static void gather(const void *x, const Patches &p, float eps, typename P::Value *rows, int64_t row, int64_t out_row, int64_t out_column) {
    const int64_t image = out_row / p.out_height(), top = out_row % p.out_height() * p.patch, left = out_column * p.patch;
    const int64_t depth = p.depth(), piece = p.piece(), across = p.normed ? p.patch : 1;
    int64_t column = 0;
    for (int64_t i = 0; i < p.patch; i++)
        for (int64_t j = 0; j < across; j++) {
            const void *from = at(x, ((image * p.height + top + i) * p.width + left + j) * p.channels, DTYPE);
            const Moments of = p.normed ? moments<DTYPE>(from, p.channels, eps) : Moments{0, 1};
            for (int64_t c = 0; c < piece; c += LANES, column += LANES) {
                const f32x16 value = load(at(from, c, DTYPE), DTYPE, (int)least(LANES, piece - c));
                store(P::place(rows, row, column, depth), (value - of.mean) * of.scale, P::DTYPE, LANES);
            }
        }
    for (; column < depth; column += LANES) store(P::place(rows, row, column, depth), broadcast(0), P::DTYPE, LANES);
}

template <class P, int DTYPE>
static int patchify(const void *x, const Patches &p, float eps, const void *packed, const float *bias, const float *norm_weight,
                    const float *norm_bias, float *out, int64_t n) {
    typedef typename P::Value Value;
    const int64_t rows = n * p.out_height(), width = p.out_width(), columns = (p.out_channels + 31) / 32 * 32, depth = p.depth();
    const int64_t slabs = slabs_of(rows, most(1, 224 / most(1, width)));
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        typename P::Scratch scratch;
        P::begin();
#pragma omp for schedule(static)
        for (int64_t s = 0; s < slabs; s++) {
            const int64_t first = rows * s / slabs, last = rows * (s + 1) / slabs, count = (last - first) * width;
            const int64_t padded = (count + P::PAD - 1) / P::PAD * P::PAD;
            char *memory = (char *)workspace(padded * (depth * sizeof(Value) + columns * sizeof(float)));
            if (!memory) { failed = 1; continue; }
            float *sums = (float *)memory;
            Value *left = (Value *)(memory + padded * columns * sizeof(float));
            for (int64_t row = 0; row < count; row++) gather<P, DTYPE>(x, p, eps, left, row, first + row / width, row % width);
            P::multiply(left, count, (const Value *)packed, depth, columns, bias, scratch,
                        [&](int64_t row, int64_t column, f32x16 a, f32x16 b) __attribute__((always_inline)) {
                            Float32::store32(sums + row * columns + column, a, b);
                        });
            for (int64_t row = 0; row < count; row++) {
                const float *from = sums + row * columns;
                float *to = out + (first * width + row) * p.out_channels;
                const Moments of = norm_weight ? moments<FLOAT32>(from, p.out_channels, eps) : Moments{0, 1};
                for (int64_t c = 0; c < p.out_channels; c += LANES) {
                    const int lanes = (int)least(LANES, p.out_channels - c);
                    f32x16 value = (load(from + c, FLOAT32, lanes) - of.mean) * of.scale;
                    if (norm_weight) value = value * load(norm_weight + c, FLOAT32, lanes) + load(norm_bias + c, FLOAT32, lanes);
                    store(to + c, value, FLOAT32, lanes);
                }
            }
        }
        P::end();
    }
    return failed;
}


// x float32 or bf16, out float32. norm_weight and norm_bias of the norm behind, or null. Return 0, or 1 where memory ran out.
extern "C" int patchify_forward(const void *x, int normed, float eps, const void *packed, const float *bias, const float *norm_weight,
                                const float *norm_bias, float *out, int dtype, int64_t n, int64_t height, int64_t width, int64_t channels,
                                int64_t patch, int64_t out_channels, int tiles) {
    const Patches p = {height, width, channels, patch, out_channels, normed != 0};
    auto run = tiles ? (dtype == FLOAT32 ? patchify<Tiles, FLOAT32> : patchify<Tiles, BFLOAT16>)
                     : (dtype == FLOAT32 ? patchify<Float32, FLOAT32> : patchify<Float32, BFLOAT16>);
    return run(x, p, eps, packed, bias, norm_weight, norm_bias, out, n);
}
