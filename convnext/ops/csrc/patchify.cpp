// A patchifying convolution on whole maps.
#include "patchify.h"

template <class P, int DTYPE> static int patchify(const void *x, const Patches &p, float *out, int64_t n) {
    return each_slab<P>(n * p.out_height(), p.rows_at_once(), [&](int64_t first, int64_t last, typename P::Scratch &scratch) {
        return patchify_rows<P, DTYPE>(x, p, out, first, last, scratch);
    });
}

// x float32 or bf16, out float32. norm_weight and norm_bias of the norm behind, or null. Returns WELL or NO_MEMORY.
extern "C" int patchify_forward(const void *x, int normed, float eps, const void *packed, const float *bias, const float *norm_weight,
                                const float *norm_bias, float *out, int dtype, int64_t n, int64_t height, int64_t width, int64_t channels,
                                int64_t patch, int64_t out_channels, int products) {
    const Patches p = {height, width, channels, patch, out_channels, normed != 0, eps, packed, bias, norm_weight, norm_bias};
    if (products == OF_SPLIT) return dtype == FLOAT32 ? patchify<SplitTiles, FLOAT32>(x, p, out, n) : patchify<SplitTiles, BFLOAT16>(x, p, out, n);
    if (products == OF_BF16) return dtype == FLOAT32 ? patchify<Tiles, FLOAT32>(x, p, out, n) : patchify<Tiles, BFLOAT16>(x, p, out, n);
    return dtype == FLOAT32 ? patchify<Float32, FLOAT32>(x, p, out, n) : patchify<Float32, BFLOAT16>(x, p, out, n);
}
