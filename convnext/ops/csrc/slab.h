// Shared by the forward and the backward pass: packed weights, the division of rows among threads, and the kinds of products.
#pragma once
#include "memory.h"
#include "products_amx.h"
#include "products_f32.h"

#include <omp.h>

struct Loose {  // a weight (n, k) that is not packed, with a step of 1 along rows or columns, and factors of rows and columns or null
    const float *values;
    int64_t row_step, column_step;
    const float *row_scale, *column_scale;
    int64_t n, k;
    int64_t depth() const { return (k + 31) / 32 * 32; }
};

struct Weights {  // packed; widths and biases are padded with zeros to multiples of 32
    const void *first, *second;
    const float *first_bias, *second_bias;
    int64_t width, hidden;
    const Loose *loose = nullptr;  // both, if `first` and `second` are memory for them instead
    int64_t padded_width() const { return (width + 31) / 32 * 32; }
    int64_t padded_hidden() const { return (hidden + 31) / 32 * 32; }
};

// A slab's values and hidden values take about SLAB_BYTES (420 KB), a part of a second-level cache of 2 MB. But a slab has at least
// MIN_SLAB_ROWS positions, since each slab reads all weights. docs/about/results.md measures the operators with these values, on a Xeon with AMX.
#define SLAB_BYTES 430080
#define MIN_SLAB_ROWS 224

// The number of slabs of about `each` rows: a multiple of the number of threads, unless there are fewer rows.
static int64_t slab_count(int64_t rows, int64_t each) {
    const int64_t threads = omp_get_max_threads();
    return min(rows, (((rows + each - 1) / each + threads - 1) / threads) * threads);
}

#if defined(HAS_TILES)
enum { TILES_COMPILED = 1 };
typedef Amx Tiles;
typedef Split SplitTiles;
#else
enum { TILES_COMPILED = 0 };
typedef Float32 Tiles, SplitTiles;  // never used: has_tiles() is 0
#endif

enum { PRODUCTS_FLOAT32, PRODUCTS_BF16, PRODUCTS_SPLIT };  // kinds of products: PRODUCTS of ops/interface.py

#define COLUMNS_SLOT 3            // the scratch buffer of a slab that all threads share
#define PANEL_SLOT 4              // the scratch buffer of 32 columns that a thread packs for itself
#define MAX_SHARED_POSITIONS 256  // of such a slab
#define MIN_SHARED_BYTES (1 << 20)

// Whether threads share a block's columns rather than its positions: where each of them would read large weights for few positions.
INLINE bool shares_columns(int64_t positions, int64_t weight_bytes) {
    return omp_get_max_threads() > 1 && positions <= MAX_SHARED_POSITIONS && weight_bytes >= MIN_SHARED_BYTES;
}

// Runs work(scratch) in each thread. Returns OK or OUT_OF_MEMORY.
template <class P, class Work> static int in_parallel(Work work) {
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        typename P::Scratch scratch;
        P::begin();
        work(scratch);
        failed |= scratch.failed;
        P::end();
    }
    return failed ? OUT_OF_MEMORY : OK;
}

// Divides `rows` into slabs of about `each`. work(first, last, scratch) returns false if memory ran out. Returns OK or OUT_OF_MEMORY.
// A thread takes its next slab when it has finished the last, so a core that is busy with another process does not delay the others.
template <class P, class Work> static int for_each_slab(int64_t rows, int64_t each, Work work) {
    const int64_t slabs = slab_count(rows, each);
    return in_parallel<P>([&](typename P::Scratch &scratch) {
#pragma omp for schedule(dynamic)
        for (int64_t s = 0; s < slabs; s++)
            if (!work(rows * s / slabs, rows * (s + 1) / slabs, scratch)) scratch.failed = true;
    });
}

// Computes `rows` rows of the map in all threads, by a block without GRN. Returns OK or OUT_OF_MEMORY.
template <class Block> static int all_rows(const Block &block, const void *x, void *out, int64_t rows, int64_t height, int64_t width) {
    typedef typename Block::Products P;
    if (shares_columns(rows * width, block.bytes())) return block.by_columns(x, out, rows, height, width);
    return for_each_slab<P>(rows, block.rows_at_once(width), [&](int64_t first, int64_t last, typename P::Scratch &scratch) {
        return block.rows(x, out, height, width, first, last, scratch);
    });
}
