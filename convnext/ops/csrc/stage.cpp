// A patchifying layer and the blocks of one width behind it. If the threads can share the images evenly, each takes images of its own
// through all layers and waits for no other; else all work on the same layer. A thread takes one image at a time, so that the maps between layers stay in its core's cache, or several where the weights, which are
// read again each time, are larger than one image's map.
#include "grn.h"
#include "int8.h"
#include "patchify.h"

#include <new>
#include <vector>

#define MAP_SLOT 1  // the scratch buffer of the maps; slabs have slot 0

#define MAX_MAP_BYTES (64 << 20)  // of one image's map, of which each thread keeps one

// Whether each thread takes images of its own: if they can be shared out evenly. Then it waits for no other.
static bool images_of_own(int64_t n, int64_t map_bytes) {
    const int64_t threads = omp_get_max_threads();
    return (n % threads == 0 || n >= 8 * threads) && map_bytes <= MAX_MAP_BYTES;
}

// Returns the smallest number of images of `height` rows that waste at most 3 % more of the products than a thread's whole share does.
// Products compute 32 positions of a slab at a time, so a slab's last ones are padded.
static int64_t images_at_once(int64_t n, int64_t height, int64_t width, int64_t slab) {
    const auto multiplied = [&](int64_t images) {  // positions per image, padding included
        const int64_t rows = images * height, last = rows % slab;
        return (rows / slab * ((slab * width + 31) / 32) + (last * width + 31) / 32) * 32.0 / images;
    };
    const int64_t threads = omp_get_max_threads(), share = (n + threads - 1) / threads;
    for (int64_t parts = share; parts > 1; parts--)
        if (multiplied((share + parts - 1) / parts) <= 1.03 * multiplied(share)) return (share + parts - 1) / parts;
    return share;
}

// work(first, last) gets `each` of `count` at a time, and returns false if memory ran out.
template <class Work> static bool in_parts(int64_t count, int64_t each, Work work) {
    bool ok = true;
    for (int64_t first = 0; ok && first < count; first += each) ok = work(first, min(first + each, count));
    return ok;
}

// A block without GRN on whole images, in one thread.
template <class Block>
static bool by_rows(const Block &block, const float *map, float *to, int64_t images, int64_t height, int64_t width,
                    typename Block::Products::Scratch &scratch) {
    return in_parts(images * height, block.rows_at_once(width), [&](int64_t top, int64_t bottom) {
        return block.rows(map, to, height, width, top, bottom, scratch);
    });
}

template <class P>
static bool whole_block(const Block<P, FLOAT32> &block, const float *map, float *to, int64_t images, int64_t height, int64_t width,
                        typename P::Scratch &scratch) {
    if (!block.grn.gamma) return by_rows(block, map, to, images, height, width, scratch);
    const GrnBlock<P, FLOAT32> grn = {block, height, width};
    const int64_t values = height * width * block.weights.width;
    return in_parts(images, grn.images_at_once(), [&](int64_t first, int64_t last) {
        return grn.images(map + first * values, to + first * values, nullptr, last - first, scratch);
    });
}

// The same on n images in all threads. Returns OK or OUT_OF_MEMORY.
template <class P>
static int whole_map(const Block<P, FLOAT32> &block, const float *map, float *to, int64_t n, int64_t height, int64_t width) {
    if (block.grn.gamma) return grn_block(map, block, to, n, height, width);
    return all_rows(block, map, to, n * height, height, width);
}

#if defined(HAS_INT8)
static bool whole_block(const Block8 &block, const float *map, float *to, int64_t images, int64_t height, int64_t width,
                        Int8::Scratch &scratch) {
    return by_rows(block, map, to, images, height, width, scratch);
}

static int whole_map(const Block8 &block, const float *map, float *to, int64_t n, int64_t height, int64_t width) {
    return all_rows(block, map, to, n * height, height, width);
}
#endif

// The blocks one after the other on n images, in all threads. Returns OK or OUT_OF_MEMORY.
template <class Block, int DTYPE>
static int stage_together(const void *x, const Patches &p, const Block *blocks, int64_t count, float *out, int64_t n) {
    typedef typename Block::Patchifying Patchifying;
    const int64_t height = p.out_height(), width = p.out_width(), rows = n * height, values = rows * width * p.out_channels;
    float *maps = (float *)scratch_buffer<MAP_SLOT>(2 * values * sizeof(float));
    if (!maps) return OUT_OF_MEMORY;
    int failed = for_each_slab<Patchifying>(rows, p.rows_at_once(), [&](int64_t first, int64_t last, typename Patchifying::Scratch &scratch) {
        return patchify_rows<Patchifying, DTYPE>(x, p, maps, first, last, scratch);
    });
    for (int64_t b = 0; !failed && b < count; b++) {
        float *to = b == count - 1 ? out : maps + (b + 1) % 2 * values;
        failed = whole_map(blocks[b], maps + b % 2 * values, to, n, height, width);
    }
    return failed;
}

// Input and result of a block share one buffer. The result begins kernel / 2 rows before the input, so a slab overwrites only rows that
// no later slab reads.
template <class Block, int DTYPE>
static int stage(const void *x, const Patches &p, const Block *blocks, int64_t count, int64_t kernel, float *out, int64_t n) {
    typedef typename Block::Products P;
    typedef typename Block::Patchifying Patchifying;
    const int64_t height = p.out_height(), width = p.out_width(), row = width * p.out_channels, shift = kernel / 2;
    const int64_t slab = blocks[0].rows_at_once(width);
    if (!images_of_own(n, height * row * sizeof(float))) return stage_together<Block, DTYPE>(x, p, blocks, count, out, n);
    const bool one_image = blocks[0].bytes() <= height * row * (int64_t)sizeof(float);
    const int64_t images = one_image ? 1 : images_at_once(n, height, width, slab);
    return for_each_slab<P>(n, images, [&](int64_t first, int64_t last, typename P::Scratch &scratch) {
        const int64_t rows = (last - first) * height;
        float *map = (float *)scratch_buffer<MAP_SLOT>((rows + (count - 1) * shift) * row * sizeof(float));
        if (!map) return false;
        map += (count - 1) * shift * row;
        const void *pixels = at(x, first * p.height * p.width * p.channels, DTYPE);
        bool ok = in_parts(rows, p.rows_at_once(), [&](int64_t top, int64_t bottom) {
            return patchify_rows<Patchifying, DTYPE>(pixels, p, map, top, bottom, scratch);
        });
        for (int64_t b = 0; ok && b < count; b++) {
            float *to = b == count - 1 ? out + first * height * row : map - shift * row;
            ok = whole_block(blocks[b], map, to, last - first, height, width, scratch);
            map = to;
        }
        return ok;
    });
}

// tensors: taps, bias, first, first_bias, second and second_bias of each block, and GRN's gamma and beta or null; for 8 bits, instead of that,
// first_scale, second_scale and GELU's table. gelu_parameters: multiplier, step and fraction of each block for 8 bits, else null.
template <class P, int DTYPE>
static int stage_of(const void *x, const Patches &p, const void *const *tensors, const int64_t *gelu_parameters, int64_t count, float eps,
                    float grn_eps, int64_t hidden, int64_t kernel, float *out, int64_t n) {
    const auto floats = [&](int64_t block, int i) { return (const float *)tensors[block * (gelu_parameters ? 9 : 7) + i]; };
    const int64_t channels = p.out_channels;
#if defined(HAS_INT8)
    if (gelu_parameters) {
        std::vector<Block8> blocks;
        for (int64_t b = 0; b < count; b++) {
            const Gelu8 gelu = {(const uint8_t *)floats(b, 8), (int16_t)gelu_parameters[3 * b],
                                (int)gelu_parameters[3 * b + 1], (int)gelu_parameters[3 * b + 2]};
            blocks.push_back({floats(b, 0), floats(b, 1), eps, floats(b, 2), floats(b, 4), floats(b, 6), floats(b, 3), floats(b, 7),
                              floats(b, 5), gelu, channels, hidden, kernel});
        }
        return stage<Block8, DTYPE>(x, p, blocks.data(), count, kernel, out, n);
    }
#endif
    std::vector<Block<P, FLOAT32>> blocks;
    for (int64_t b = 0; b < count; b++) {
        const Weights weights = {floats(b, 2), floats(b, 4), floats(b, 3), floats(b, 5), channels, hidden};
        blocks.push_back({floats(b, 0), floats(b, 1), eps, weights, kernel, nullptr, {}, grn_of(floats(b, 6), weights, grn_eps)});
    }
    return stage<Block<P, FLOAT32>, DTYPE>(x, p, blocks.data(), count, kernel, out, n);
}

// x (n, height, width, channels) is float32 or bf16, out (n, height / patch, width / patch, out_channels) float32. Returns OK, OUT_OF_MEMORY,
// UNSUPPORTED_KERNEL, NEEDS_TILES or NEEDS_INT8.
extern "C" int stage_forward(const void *x, int normed, float patch_eps, const void *packed, const float *bias, const float *norm_weight,
                             const float *norm_bias, const void *const *block_tensors, const int64_t *gelu_parameters, float eps, float grn_eps,
                             float *out, int dtype, int64_t n, int64_t height, int64_t width, int64_t channels, int64_t patch, int64_t out_channels,
                             int64_t blocks, int64_t hidden, int64_t kernel, int products) {
    if (!is_kernel(kernel)) return UNSUPPORTED_KERNEL;
    if (products != PRODUCTS_FLOAT32 && !TILES_COMPILED) return NEEDS_TILES;
    if (gelu_parameters && !INT8_COMPILED) return NEEDS_INT8;
    const Patches p = {height, width, channels, patch, out_channels, normed != 0, patch_eps, packed, bias, norm_weight, norm_bias};
    auto run = products == PRODUCTS_SPLIT  ? (dtype == FLOAT32 ? stage_of<SplitTiles, FLOAT32> : stage_of<SplitTiles, BFLOAT16>)
               : products == PRODUCTS_BF16 ? (dtype == FLOAT32 ? stage_of<Tiles, FLOAT32> : stage_of<Tiles, BFLOAT16>)
                                           : (dtype == FLOAT32 ? stage_of<Float32, FLOAT32> : stage_of<Float32, BFLOAT16>);
    try {
        return run(x, p, block_tensors, gelu_parameters, blocks, eps, grn_eps, hidden, kernel, out, n);
    } catch (const std::bad_alloc &) {  // of a vector; an exception that leaves a C function ends the process
        return OUT_OF_MEMORY;
    }
}
