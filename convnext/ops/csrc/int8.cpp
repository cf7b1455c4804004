// ConvNeXt's block with products of 8 bits on whole maps, and the order in which these read weights.
#include "int8.h"

extern "C" int has_int8() {
#if defined(HAS_TILES)
    return request_tiles();
#else
    return INT8_COMPILED;
#endif
}

// Packs weights of 8 bits (n, k), padded with zeros to (columns, a multiple of 64), in the order in which products read them. Behind them
// are `columns` sums of 32 bits with which the products of a signed matrix begin. Returns OK or NEEDS_INT8.
extern "C" int int8_pack(const int8_t *weight, int8_t *packed, int64_t n, int64_t k, int64_t columns) {
#if defined(HAS_INT8)
    const int64_t depth = padded64(k);
    memset(packed, 0, columns * (depth + sizeof(int32_t)));
    int32_t *starts = (int32_t *)(packed + columns * depth);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < k; j++) {
            packed[Int8::place(i, j, depth)] = weight[i * k + j];
            starts[i] -= Int8::SHIFT * weight[i * k + j];
        }
    return OK;
#else
    (void)weight, (void)packed, (void)n, (void)k, (void)columns;
    return NEEDS_INT8;
#endif
}

// x and out are float32 maps. table, multiplier, step and fraction are those of Gelu8. Returns OK, OUT_OF_MEMORY, UNSUPPORTED_KERNEL or
// NEEDS_INT8.
extern "C" int int8_block_forward(const float *x, const float *taps, const float *bias, float eps, const void *first,
                                  const float *first_bias, const void *second, const float *second_bias, const float *first_scale,
                                  const float *second_scale, const uint8_t *table, float *out, int64_t multiplier, int64_t step,
                                  int64_t fraction, int64_t n, int64_t height, int64_t width, int64_t channels, int64_t hidden,
                                  int64_t kernel) {
    if (!is_kernel(kernel)) return UNSUPPORTED_KERNEL;
#if defined(HAS_INT8)
    const Gelu8 gelu = {table, (int16_t)multiplier, (int)step, (int)fraction};
    const Block8 block = {taps, bias, eps, first, second, first_scale, first_bias, second_scale, second_bias, gelu, channels, hidden, kernel};
    return all_rows(block, x, out, n * height, height, width);
#else
    (void)x, (void)taps, (void)bias, (void)eps, (void)first, (void)first_bias, (void)second, (void)second_bias, (void)first_scale;
    (void)second_scale, (void)table, (void)out, (void)multiplier, (void)step, (void)fraction, (void)n, (void)height, (void)width;
    (void)channels, (void)hidden;
    return NEEDS_INT8;
#endif
}
