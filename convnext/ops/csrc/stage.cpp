// A patchifying layer and the blocks of one width behind it: each thread takes images of its own through all of them and waits for no
// other. One image at a time, so that the maps between stay in its core's cache; some at once where the weights, which are read anew
// each time, weigh more than the map of one.
#include "block.h"
#include "int8.h"
#include "patchify.h"

#include <new>
#include <vector>

#define MAP 1  // the workspace of the maps; 0 is that of the slabs

// As few images of `height` rows as fill slabs, whose positions are multiplied 32 at a time, within 3 % as well as a thread's share.
static int64_t images_at_once(int64_t n, int64_t height, int64_t width, int64_t slab) {
    const auto multiplied = [&](int64_t images) {  // positions for each of them
        const int64_t rows = images * height, last = rows % slab;
        return (rows / slab * ((slab * width + 31) / 32) + (last * width + 31) / 32) * 32.0 / images;
    };
    const int64_t threads = omp_get_max_threads(), share = (n + threads - 1) / threads;
    for (int64_t parts = share; parts > 1; parts--)
        if (multiplied((share + parts - 1) / parts) <= 1.03 * multiplied(share)) return (share + parts - 1) / parts;
    return share;
}

// A block's result begins kernel / 2 rows before its input in one piece of memory: a slab writes over rows that no later one reads.
template <class Block, int DTYPE>
static int stage(const void *x, const Patches &p, const Block *blocks, int64_t count, int64_t kernel, float *out, int64_t n) {
    typedef typename Block::Products P;
    typedef typename Block::Patchifying Patchifying;
    const int64_t height = p.out_height(), width = p.out_width(), row = width * p.out_channels, shift = kernel / 2;
    const int64_t slab = blocks[0].rows_at_once(width);
    const bool one = blocks[0].bytes() <= height * row * (int64_t)sizeof(float);
    const int64_t images = one ? 1 : images_at_once(n, height, width, slab);
    const auto in_slabs = [](int64_t rows, int64_t each, auto work) {
        bool well = true;
        for (int64_t top = 0; well && top < rows; top += each) well = work(top, least(top + each, rows));
        return well;
    };
    return each_slab<P>(n, images, [&](int64_t first, int64_t last, typename P::Scratch &scratch) {
        const int64_t rows = (last - first) * height;
        float *map = (float *)workspace<MAP>((rows + (count - 1) * shift) * row * sizeof(float));
        if (!map) return false;
        map += (count - 1) * shift * row;
        const void *pixels = at(x, first * p.height * p.width * p.channels, DTYPE);
        bool well = in_slabs(rows, p.rows_at_once(), [&](int64_t top, int64_t bottom) {
            return patchify_rows<Patchifying, DTYPE>(pixels, p, map, top, bottom, scratch);
        });
        for (int64_t b = 0; well && b < count; b++) {
            float *to = b == count - 1 ? out + first * height * row : map - shift * row;
            well = in_slabs(rows, slab, [&](int64_t top, int64_t bottom) {
                return blocks[b].rows(map, to, height, width, top, bottom, scratch);
            });
            map = to;
        }
        return well;
    });
}

// pointers: of each block taps, bias, first, first_bias, second, second_bias, and for 8 bits after them the scales of first and of second
// and GELU's table. rest: for 8 bits, of each block multiplier, step and fraction of GELU; else null.
template <class P, int DTYPE>
static int stage_of(const void *x, const Patches &p, const void *const *pointers, const int64_t *rest, int64_t count, float eps,
                    int64_t hidden, int64_t kernel, float *out, int64_t n) {
    const auto floats = [&](int64_t block, int i) { return (const float *)pointers[block * (rest ? 9 : 6) + i]; };
    const int64_t channels = p.out_channels;
#if defined(HAS_TILES)
    if (rest) {
        std::vector<Block8> blocks;
        for (int64_t b = 0; b < count; b++) {
            const Gelu8 gelu = {(const uint8_t *)floats(b, 8), (int16_t)rest[3 * b], (int)rest[3 * b + 1], (int)rest[3 * b + 2]};
            blocks.push_back({floats(b, 0), floats(b, 1), eps, floats(b, 2), floats(b, 4), floats(b, 6), floats(b, 3), floats(b, 7),
                              floats(b, 5), gelu, channels, hidden, kernel});
        }
        return stage<Block8, DTYPE>(x, p, blocks.data(), count, kernel, out, n);
    }
#endif
    std::vector<Block<P, FLOAT32>> blocks;
    for (int64_t b = 0; b < count; b++) {
        const Weights weights = {floats(b, 2), floats(b, 4), floats(b, 3), floats(b, 5), channels, hidden};
        blocks.push_back({floats(b, 0), floats(b, 1), eps, weights, kernel, nullptr, {}});
    }
    return stage<Block<P, FLOAT32>, DTYPE>(x, p, blocks.data(), count, kernel, out, n);
}

// x (n, height, width, channels) float32 or bf16, out (n, height / patch, width / patch, out_channels) float32. Returns
// WELL, NO_MEMORY or NO_KERNEL.
extern "C" int stage_forward(const void *x, int normed, float patch_eps, const void *packed, const float *bias, const float *norm_weight,
                             const float *norm_bias, const void *const *pointers, const int64_t *rest, float eps, float *out, int dtype,
                             int64_t n, int64_t height, int64_t width, int64_t channels, int64_t patch, int64_t out_channels,
                             int64_t count, int64_t hidden, int64_t kernel, int products) {
    if (!is_kernel(kernel)) return NO_KERNEL;
    const Patches p = {height, width, channels, patch, out_channels, normed != 0, patch_eps, packed, bias, norm_weight, norm_bias};
    auto run = products == OF_SPLIT  ? (dtype == FLOAT32 ? stage_of<SplitTiles, FLOAT32> : stage_of<SplitTiles, BFLOAT16>)
               : products == OF_BF16 ? (dtype == FLOAT32 ? stage_of<Tiles, FLOAT32> : stage_of<Tiles, BFLOAT16>)
                                     : (dtype == FLOAT32 ? stage_of<Float32, FLOAT32> : stage_of<Float32, BFLOAT16>);
    try {
        return run(x, p, pointers, rest, count, eps, hidden, kernel, out, n);
    } catch (const std::bad_alloc &) {  // of a vector; one that left a C function would end the process
        return NO_MEMORY;
    }
}
