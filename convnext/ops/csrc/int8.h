// ConvNeXt's whole block with products of 8 bits, for inference. Weights have a scale for each output, the norm's result a scale for each
// position, and hidden values in 0 … 255 one scale and zero point, from calibration. Sums are exact integers; everything between the
// products is float32.
#pragma once
#include "depthwise.h"
#include "norm.h"
#include "slab.h"

#if defined(HAS_TILES)
struct Signed {  // left matrix of -128 … 127
    static void upper() { _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7); }
    static void lower() { _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7); }
};

struct Unsigned {  // left matrix of 0 … 255
    static void upper() { _tile_dpbusd(0, 4, 6); _tile_dpbusd(1, 4, 7); }
    static void lower() { _tile_dpbusd(2, 5, 6); _tile_dpbusd(3, 5, 7); }
};

// The address of a value in a left matrix of tiles of 16 rows and 64 columns.
INLINE uint8_t *address(uint8_t *a, int64_t row, int64_t column, int64_t stride) {
    return a + ((row >> 4) * (stride >> 6) + (column >> 6)) * 1024 + (row & 15) * 64 + (column & 63);
}

INLINE int64_t padded64(int64_t n) { return (n + 63) / 64 * 64; }

INLINE f32x16 to_float(f32x16 sums) { return (f32x16)_mm512_cvtepi32_ps((__m512i)sums); }

// GELU to 8 bits, on 64 values at a time: x Φ(x) = max(x, 0) - |x| Φ(-|x|). The second term, which is below 0.17, comes from a table.
struct Gelu8 {
    const uint8_t *table;     // 256 steps of |x|, the last for all larger ones: zero point - |x| Φ(-|x|) + 1/2
    int16_t multiplier;       // from x in fixed point to 8 bits, in units of 2^-15
    int step, fraction;       // x in fixed point >> step is the index in the table; both terms have `fraction` fractional bits

    // Returns two rows of 32 bytes for two rows of 32 values in fixed point (16 bits, in the order of _mm512_packs_epi32).
    __attribute__((always_inline)) __m512i operator()(__m512i above, __m512i below) const {
        alignas(64) static const uint8_t order[64] = {0,  1,  2,  3,  16, 17, 18, 19, 32, 33, 34, 35, 48, 49, 50, 51, 4,  5,  6,  7,  20, 21,
                                                      22, 23, 36, 37, 38, 39, 52, 53, 54, 55, 8,  9,  10, 11, 24, 25, 26, 27, 40, 41, 42, 43,
                                                      56, 57, 58, 59, 12, 13, 14, 15, 28, 29, 30, 31, 44, 45, 46, 47, 60, 61, 62, 63};
        const __m512i zero = _mm512_setzero_si512(), factor = _mm512_set1_epi16(multiplier);
        const __m128i by = _mm_cvtsi32_si128(step), last = _mm_cvtsi32_si128(fraction);
        const __m512i index = _mm512_packus_epi16(_mm512_srl_epi16(_mm512_abs_epi16(above), by), _mm512_srl_epi16(_mm512_abs_epi16(below), by));
        const __m512i low_half = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), index, _mm512_loadu_si512(table + 64));
        const __m512i high_half = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), index, _mm512_loadu_si512(table + 192));
        const __m512i rest = _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low_half, high_half);
        above = _mm512_mulhrs_epi16(_mm512_max_epi16(above, zero), factor);
        below = _mm512_mulhrs_epi16(_mm512_max_epi16(below, zero), factor);
        above = _mm512_srl_epi16(_mm512_add_epi16(above, _mm512_unpacklo_epi8(rest, zero)), last);
        below = _mm512_srl_epi16(_mm512_add_epi16(below, _mm512_unpackhi_epi8(rest, zero)), last);
        return _mm512_permutexvar_epi8(_mm512_load_si512(order), _mm512_packus_epi16(above, below));
    }
};

// Writes the norm of a position in 8 bits and returns its scale.
INLINE float normalise8(const float *from, uint8_t *y, int64_t row, int64_t channels, float eps) {
    const Moments stats = moments<FLOAT32, true>(from, channels, eps);
    const float factor = stats.max_distance > 0 ? 127 / stats.max_distance : 0;
    const int64_t stride = padded64(channels), full = channels / LANES * LANES;
    const auto put = [&](int64_t c, int lanes) __attribute__((always_inline)) {
        const f32x16 distance = load(from + c, FLOAT32, lanes) - stats.mean;
        const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32((__m512)(distance * factor)));
        _mm_storeu_si128((__m128i *)address(y, row, c, stride), bytes);  // padding lanes are multiplied by zero weights
    };
    for (int64_t c = 0; c < full; c += LANES) put(c, LANES);
    for (int64_t c = full; c < stride; c += LANES) put(c, (int)max(0, min(LANES, channels - c)));
    return stats.max_distance * stats.scale / 127;
}

struct Int8 {  // the kind of products, for for_each_slab
    typedef TileScratch Scratch;
    static void begin() { begin_tiles(); }
    static void end() { _tile_release(); }
};

// The map and its result are float32.
struct Block8 {
    typedef Int8 Products;
    typedef Tiles Patchifying;  // stem and downsampling layers are not quantized
    const float *taps, *bias;
    float eps;
    const void *first, *second;  // packed weights of 8 bits; below, the scales and biases of the first and of the second product's outputs
    const float *first_scale, *first_bias, *second_scale, *second_bias;
    Gelu8 gelu;
    int64_t channels, hidden, kernel;

    int64_t bytes() const { return 2 * padded64(channels) * padded64(hidden); }  // of the weights
    int64_t rows_at_once(int64_t width) const { return max(1, max(MIN_SLAB_ROWS, SLAB_BYTES / ((channels + hidden) * 2)) / width); }

    // Computes rows first_row to last_row - 1 of the result from maps (height rows each). Returns false if memory ran out.
    bool rows(const void *map, void *result, int64_t height, int64_t width, int64_t first_row, int64_t last_row, TileScratch &scratch) const {
        const float *x = (const float *)map;
        float *out = (float *)result;
        DepthwiseRows *convolve = depthwise_rows_of<FLOAT32, FLOAT32>(kernel);
        const int64_t depth = padded64(channels), hidden_depth = padded64(hidden), count = (last_row - first_row) * width;
        const int64_t padded = (count + 31) / 32 * 32, begin = first_row * width * channels;
        char *memory = (char *)scratch_buffer(padded * (depth + sizeof(float) + max(hidden_depth, channels * sizeof(float))));
        if (!memory) return false;
        float *scales = (float *)memory, *convolved = scales + padded;  // hidden values overwrite the convolution's result
        uint8_t *h = (uint8_t *)convolved, *y = h + padded * max(hidden_depth, channels * sizeof(float));
        convolve({x, height, width, channels}, taps, bias, nullptr, convolved, first_row, last_row);
        for (int64_t row = 0; row < count; row++) scales[row] = normalise8(convolved + row * channels, y, row, channels, eps);
        const Gelu8 gelu = this->gelu;
        __m512i above;  // the first of two rows
        multiply_tiles<OneProduct<Signed>>(y, count + (count & 1), first, depth / 64, hidden_depth, nullptr, scratch,
            [&](int64_t row, int64_t column, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                const float *scale = first_scale + column, *shift = first_bias + column;
                left = to_float(left) * (scales[row] * load(scale, FLOAT32, LANES)) + load(shift, FLOAT32, LANES);
                right = to_float(right) * (scales[row] * load(scale + LANES, FLOAT32, LANES)) + load(shift + LANES, FLOAT32, LANES);
                const __m512i both = _mm512_packs_epi32(_mm512_cvtps_epi32((__m512)left), _mm512_cvtps_epi32((__m512)right));
                if (!(row & 1)) { above = both; return; }
                const __m512i bytes = gelu(above, both);
                _mm256_storeu_si256((__m256i *)address(h, row - 1, column, hidden_depth), _mm512_castsi512_si256(bytes));
                _mm256_storeu_si256((__m256i *)address(h, row, column, hidden_depth), _mm512_extracti64x4_epi64(bytes, 1));
            });
        multiply_tiles<OneProduct<Unsigned>>(h, count, second, hidden_depth / 64, (channels + 31) / 32 * 32, nullptr, scratch,
            [&](int64_t row, int64_t column, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                const f32x16 halves[] = {left, right};
                for (int half = 0; half < 2; half++, column += LANES) {
                    const int lanes = (int)max(0, min(LANES, channels - column));
                    const int64_t offset = begin + row * channels + column;
                    const f32x16 branch = to_float(halves[half]) * load(second_scale + column, FLOAT32, LANES) +
                                          load(second_bias + column, FLOAT32, LANES);
                    store(out + offset, load(x + offset, FLOAT32, lanes) + branch, FLOAT32, lanes);
                }
            });
        return true;
    }
};
#endif
