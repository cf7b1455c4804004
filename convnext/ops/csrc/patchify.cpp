// A patchifying convolution on whole maps.
#include "patchify.h"

template <class P, int DTYPE> static int patchify(const void *x, const Patches &p, float *out, int64_t n) {
    return for_each_slab<P>(n * p.out_height(), p.rows_at_once(), [&](int64_t first, int64_t last, typename P::Scratch &scratch) {
        return patchify_rows<P, DTYPE>(x, p, out, first, last, scratch);
    });
}

// x is float32 or bf16, out float32. norm_weight and norm_bias are of the norm behind, or null. Returns OK, OUT_OF_MEMORY or NEEDS_TILES.
extern "C" int patchify_forward(const void *x, int normed, float eps, const void *packed, const float *bias, const float *norm_weight,
                                const float *norm_bias, float *out, int dtype, int64_t n, int64_t height, int64_t width, int64_t channels,
                                int64_t patch, int64_t out_channels, int products) {
    if (products != PRODUCTS_FLOAT32 && !TILES_COMPILED) return NEEDS_TILES;
    const Patches p = {height, width, channels, patch, out_channels, normed != 0, eps, packed, bias, norm_weight, norm_bias};
    auto run = products == PRODUCTS_SPLIT  ? (dtype == FLOAT32 ? patchify<SplitTiles, FLOAT32> : patchify<SplitTiles, BFLOAT16>)
               : products == PRODUCTS_BF16 ? (dtype == FLOAT32 ? patchify<Tiles, FLOAT32> : patchify<Tiles, BFLOAT16>)
                                           : (dtype == FLOAT32 ? patchify<Float32, FLOAT32> : patchify<Float32, BFLOAT16>);
    return run(x, p, out, n);
}
