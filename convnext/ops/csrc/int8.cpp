// ConvNeXt's block with products of 8 bits on whole maps, and the order in which these read weights.
#include "int8.h"

#if defined(HAS_TILES)
// Packs weights of 8 bits (n, k) in the order of the tiles, [n / 32][k / 64][2][16][16][4], padded with zeros. Returns OK.
extern "C" int int8_pack(const int8_t *weight, int8_t *packed, int64_t n, int64_t k, int64_t columns) {
    const int64_t depth = padded64(k);
    memset(packed, 0, columns * depth);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < k; j++)
            packed[(((i / 32 * (depth / 64) + j / 64) * 2 + i / 16 % 2) * 16 + j / 4 % 16) * 64 + i % 16 * 4 + j % 4] = weight[i * k + j];
    return OK;
}

// x and out are float32 maps. table, multiplier, step and fraction are those of Gelu8. Returns OK, OUT_OF_MEMORY or UNSUPPORTED_KERNEL.
extern "C" int int8_block_forward(const float *x, const float *taps, const float *bias, float eps, const void *first,
                                  const float *first_bias, const void *second, const float *second_bias, const float *first_scale,
                                  const float *second_scale, const uint8_t *table, float *out, int64_t multiplier, int64_t step,
                                  int64_t fraction, int64_t n, int64_t height, int64_t width, int64_t channels, int64_t hidden,
                                  int64_t kernel) {
    if (!is_kernel(kernel)) return UNSUPPORTED_KERNEL;
    const Gelu8 gelu = {table, (int16_t)multiplier, (int)step, (int)fraction};
    const Block8 block = {taps, bias, eps, first, second, first_scale, first_bias, second_scale, second_bias, gelu, channels, hidden, kernel};
    return for_each_slab<Int8>(n * height, block.rows_at_once(width), [&](int64_t begin, int64_t end, TileScratch &scratch) {
        return block.rows(x, out, height, width, begin, end, scratch);
    });
}
#endif
