// What the forward and the backward pass share: weights, the memory of a thread, how rows are shared out, and which products there are.
#pragma once
#include "memory.h"
#include "products_amx.h"
#include "products_f32.h"

#include <omp.h>

struct Weights {  // packed; widths and biases padded by zeros to multiples of 32
    const void *first, *second;
    const float *first_bias, *second_bias;
    int64_t width, hidden;
    int64_t padded_width() const { return (width + 31) / 32 * 32; }
    int64_t padded_hidden() const { return (hidden + 31) / 32 * 32; }
};

// How many of about equal size, as many for each thread.
static int64_t slabs_of(int64_t rows, int64_t each) {
    const int64_t threads = omp_get_max_threads();
    return least(rows, (((rows + each - 1) / each + threads - 1) / threads) * threads);
}

#if defined(HAS_TILES)
typedef Amx Tiles;
typedef Split SplitTiles;
#else
typedef Float32 Tiles, SplitTiles;  // never asked for: has_tiles() is 0
#endif

enum { OF_FLOAT32, OF_BF16, OF_SPLIT };  // the kinds of products

// `rows` in slabs of about `each`; work(first, last, scratch) says whether it had the memory that it needs. Returns WELL or NO_MEMORY.
// A thread takes its next slab when it is done with the last: whatever else a processor has to do delays nobody else.
template <class P, class Work> static int each_slab(int64_t rows, int64_t each, Work work) {
    const int64_t slabs = slabs_of(rows, each);
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        typename P::Scratch scratch;
        P::begin();
#pragma omp for schedule(dynamic)
        for (int64_t s = 0; s < slabs; s++) failed |= !work(rows * s / slabs, rows * (s + 1) / slabs, scratch);
        failed |= scratch.failed;
        P::end();
    }
    return failed ? NO_MEMORY : WELL;
}
