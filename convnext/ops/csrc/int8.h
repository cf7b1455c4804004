// ConvNeXt's whole block with products of 8 bits, for inference. Weights have a scale for each output, the norm's result a scale for each
// position, and hidden values in 0 … 255 one scale and zero point, from calibration. Sums are exact integers; everything between the
// products is float32.
#pragma once
#include "block.h"
#include "products_vnni.h"

#if !defined(HAS_TILES) && !defined(HAS_VNNI)
enum { INT8_COMPILED = 0 };
#else
#define HAS_INT8
enum { INT8_COMPILED = 1 };
#if defined(HAS_TILES)
typedef TilesOfBytes Int8;
#else
typedef Vnni Int8;
#endif

INLINE int64_t padded64(int64_t n) { return (n + 63) / 64 * 64; }

#if NATIVE == 16
typedef __m512i Integers;
#define INTEGERS(NAME) _mm512_##NAME
#define ROW_REGISTERS 1  // of 32 values of 16 bits
INLINE void to_16_bits(f32x16 left, f32x16 right, __m512i *row) {
    row[0] = _mm512_packs_epi32(_mm512_cvtps_epi32((__m512)left), _mm512_cvtps_epi32((__m512)right));
}
INLINE __m128i to_8_bits(f32x16 values) { return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32((__m512)values)); }
INLINE __m512i look_up(const uint8_t *table, __m512i index) {
    const __m512i low_half = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), index, _mm512_loadu_si512(table + 64));
    const __m512i high_half = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), index, _mm512_loadu_si512(table + 192));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low_half, high_half);
}
INLINE void store_rows(uint8_t *above, uint8_t *below, __m512i values) {  // in the order of packus_epi16 of packs_epi32
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    values = _mm512_permutexvar_epi32(order, values);
    _mm256_storeu_si256((__m256i *)above, _mm512_castsi512_si256(values));
    _mm256_storeu_si256((__m256i *)below, _mm512_extracti64x4_epi64(values, 1));
}
INLINE __m512i all_zero() { return _mm512_setzero_si512(); }
#else
typedef __m256i Integers;
#define INTEGERS(NAME) _mm256_##NAME
#define ROW_REGISTERS 2
INLINE void to_16_bits(f32x16 left, f32x16 right, __m256i *row) {
    const auto rounded = [](f32x8 values) { return _mm256_cvtps_epi32((__m256)values); };
    row[0] = _mm256_packs_epi32(rounded(left.low), rounded(left.high));
    row[1] = _mm256_packs_epi32(rounded(right.low), rounded(right.high));
}
INLINE __m128i to_8_bits(f32x16 values) {
    __m256i row[2];
    to_16_bits(values, values, row);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(_mm256_packs_epi16(row[0], row[0]), order));
}
INLINE __m256i look_up(const uint8_t *table, __m256i index) {  // 16 entries at a time; an index of another 16 gets its highest bit and gives 0
    __m256i found = _mm256_setzero_si256();
    for (int high = 0; high < 16; high++) {
        const __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table + high * 16)));
        const __m256i low = _mm256_adds_epu8(_mm256_xor_si256(index, _mm256_set1_epi8((char)(high << 4))), _mm256_set1_epi8(0x70));
        found = _mm256_or_si256(found, _mm256_shuffle_epi8(entries, low));
    }
    return found;
}
INLINE void store_rows(uint8_t *above, uint8_t *below, __m256i values) {
    values = _mm256_permutevar8x32_epi32(values, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm_storeu_si128((__m128i *)above, _mm256_castsi256_si128(values));
    _mm_storeu_si128((__m128i *)below, _mm256_extracti128_si256(values, 1));
}
INLINE __m256i all_zero() { return _mm256_setzero_si256(); }
#endif

// GELU to 8 bits, on a register of values at a time: x Φ(x) = max(x, 0) - |x| Φ(-|x|). The second term, which is below 0.17, comes from a
// table.
struct Gelu8 {
    const uint8_t *table;     // 256 steps of |x|, the last for all larger ones: zero point - |x| Φ(-|x|) + 1/2
    int16_t multiplier;       // from x in fixed point to 8 bits, in units of 2^-15
    int step, fraction;       // x in fixed point >> step is the index in the table; both terms have `fraction` fractional bits

    // Returns the results of two registers of values in fixed point (16 bits, in the order of packs_epi32).
    __attribute__((always_inline)) Integers operator()(Integers above, Integers below) const {
        const Integers zero = all_zero(), factor = INTEGERS(set1_epi16)(multiplier);
        const __m128i by = _mm_cvtsi32_si128(step), last = _mm_cvtsi32_si128(fraction);
        const auto steps = [&](Integers x) { return INTEGERS(srl_epi16)(INTEGERS(abs_epi16)(x), by); };
        const Integers rest = look_up(table, INTEGERS(packus_epi16)(steps(above), steps(below)));
        const auto result = [&](Integers x, Integers tail) {
            return INTEGERS(srl_epi16)(INTEGERS(add_epi16)(INTEGERS(mulhrs_epi16)(INTEGERS(max_epi16)(x, zero), factor), tail), last);
        };
        above = result(above, INTEGERS(unpacklo_epi8)(rest, zero));
        below = result(below, INTEGERS(unpackhi_epi8)(rest, zero));
        return INTEGERS(packus_epi16)(above, below);
    }
};

// Writes the norm of a position in 8 bits and returns its scale.
INLINE float normalise8(const float *from, uint8_t *y, int64_t row, int64_t channels, float eps) {
    const Moments stats = moments<FLOAT32, true>(from, channels, eps);
    const float factor = stats.max_distance > 0 ? 127 / stats.max_distance : 0;
    const int64_t stride = padded64(channels), full = channels / LANES * LANES;
    const auto put = [&](int64_t c, int lanes) __attribute__((always_inline)) {
        const f32x16 distance = load(from + c, FLOAT32, lanes) - stats.mean;
        const __m128i bytes = _mm_add_epi8(to_8_bits(distance * factor), _mm_set1_epi8((char)Int8::SHIFT));
        _mm_storeu_si128((__m128i *)Int8::address(y, row, c, Int8::stride(stride)), bytes);  // padding lanes are multiplied by zero weights
    };
    for (int64_t c = 0; c < full; c += LANES) put(c, LANES);
    for (int64_t c = full; c < stride; c += LANES) put(c, (int)max(0, min(LANES, channels - c)));
    return stats.max_distance * stats.scale / 127;
}

// The map and its result are float32.
struct Block8 {
    typedef Int8 Products;
    typedef Int8::Others Patchifying;  // stem and downsampling layers are not quantized
    const float *taps, *bias;
    float eps;
    const void *first, *second;  // packed weights of 8 bits; below, the scales and biases of the first and of the second product's outputs
    const float *first_scale, *first_bias, *second_scale, *second_bias;
    Gelu8 gelu;
    int64_t channels, hidden, kernel;

    int64_t bytes() const { return 2 * padded64(channels) * padded64(hidden); }  // of the weights
    int64_t rows_at_once(int64_t width) const { return max(1, max(MIN_SLAB_ROWS, SLAB_BYTES / ((channels + hidden) * 2)) / width); }

    struct Slab8 {
        float *scales, *convolved;  // hidden values overwrite the convolution's result
        uint8_t *hidden, *y;
    };

    // For `count` positions of the map; scales is null if memory ran out.
    template <int SLOT = 0> Slab8 allocate(int64_t count) const {
        const int64_t padded = (count + 31) / 32 * 32, wide = max(Int8::stride(padded64(hidden)), channels * sizeof(float));
        char *memory = (char *)scratch_buffer<SLOT>(padded * (Int8::stride(padded64(channels)) + sizeof(float) + wide));
        if (!memory) return {};
        float *scales = (float *)memory, *convolved = scales + padded;
        return {scales, convolved, (uint8_t *)convolved, (uint8_t *)convolved + padded * wide};
    }

    // The normalised convolution of rows first to last - 1 of maps x (height rows each), into a slab that begins with row `begin`.
    void normalised(const float *x, int64_t height, int64_t width, int64_t first, int64_t last, int64_t begin, const Slab8 &slab) const {
        float *convolved = slab.convolved + (first - begin) * width * channels;
        depthwise_rows_of<FLOAT32, FLOAT32>(kernel)({x, height, width, channels}, taps, bias, nullptr, convolved, first, last);
        for (int64_t i = 0, row = (first - begin) * width; i < (last - first) * width; i++, row++)
            slab.scales[row] = normalise8(convolved + i * channels, slab.y, row, channels, eps);
    }

    // The first product, and GELU, for `count` positions.
    void expand(const Slab8 &slab, int64_t count, Columns columns, Int8::Scratch &scratch) const {
        const int64_t depth = padded64(channels), stride = padded64(hidden);
        const Gelu8 gelu = this->gelu;
        Integers above[ROW_REGISTERS];  // the first of two rows
        const int8_t *weights = (const int8_t *)first;
        Int8::multiply<true>(slab.y, count + (count & 1), weights + columns.first * depth, (const int32_t *)(weights + stride * depth) + columns.first,
                             depth, channels, columns.last - columns.first, scratch,
            [&](int64_t row, int64_t column, i32x16 left, i32x16 right) __attribute__((always_inline)) {
                column += columns.first;
                const float *scale = first_scale + column, *shift = first_bias + column;
                const auto fixed = [&](i32x16 sums, int64_t c) __attribute__((always_inline)) {
                    return to_float(sums) * (slab.scales[row] * load(scale + c, FLOAT32, LANES)) + load(shift + c, FLOAT32, LANES);
                };
                Integers both[ROW_REGISTERS];
                to_16_bits(fixed(left, 0), fixed(right, LANES), both);
                for (int i = 0; i < ROW_REGISTERS; i++) {
                    if (!(row & 1)) { above[i] = both[i]; continue; }
                    const auto to = [&](int64_t r) { return Int8::address(slab.hidden, r, column + i * LANES, Int8::stride(stride)); };
                    store_rows(to(row - 1), to(row), gelu(above[i], both[i]));
                }
            });
    }

    // The second product plus x, for `count` positions.
    void project(const Slab8 &slab, int64_t count, Columns columns, const float *x, float *out, Int8::Scratch &scratch) const {
        const int64_t depth = padded64(hidden);
        Int8::multiply<false>(slab.hidden, count, (const int8_t *)second + columns.first * depth, nullptr, depth, hidden,
                              columns.last - columns.first, scratch,
            [&](int64_t row, int64_t column, i32x16 left, i32x16 right) __attribute__((always_inline)) {
                column += columns.first;
                const i32x16 halves[] = {left, right};
                for (int half = 0; half < 2; half++, column += LANES) {
                    const int lanes = (int)max(0, min(LANES, channels - column));
                    const int64_t offset = row * channels + column;
                    const f32x16 branch = to_float(halves[half]) * load(second_scale + column, FLOAT32, LANES) +
                                          load(second_bias + column, FLOAT32, LANES);
                    store(out + offset, load(x + offset, FLOAT32, lanes) + branch, FLOAT32, lanes);
                }
            });
    }

    Columns all_hidden() const { return {0, padded64(hidden)}; }
    Columns all_channels() const { return {0, (channels + 31) / 32 * 32}; }

    // Computes rows first_row to last_row - 1 of the result from maps (height rows each). Returns false if memory ran out.
    bool rows(const void *map, void *result, int64_t height, int64_t width, int64_t first_row, int64_t last_row, Int8::Scratch &scratch) const {
        const int64_t count = (last_row - first_row) * width, begin = first_row * width * channels;
        const Slab8 slab = allocate(count);
        if (!slab.scales) return false;
        normalised((const float *)map, height, width, first_row, last_row, first_row, slab);
        expand(slab, count, all_hidden(), scratch);
        project(slab, count, all_channels(), (const float *)map + begin, (float *)result + begin, scratch);
        return true;
    }

    // Computes `rows` rows of the map in all threads, which share the columns of the weights. Returns OK or OUT_OF_MEMORY.
    int by_columns(const void *map, void *result, int64_t rows, int64_t height, int64_t width) const {
        const int64_t count = rows * width;
        const float *x = (const float *)map;
        float *out = (float *)result;
        const Slab8 slab = allocate<COLUMNS_SLOT>(count);
        if (!slab.scales) return OUT_OF_MEMORY;
        return in_parallel<Int8>([&](Int8::Scratch &scratch) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; row++) normalised(x, height, width, row, row + 1, 0, slab);
#pragma omp for schedule(static)
            for (int64_t c = 0; c < all_hidden().last; c += 32) expand(slab, count, {c, c + 32}, scratch);
#pragma omp for schedule(static)
            for (int64_t c = 0; c < all_channels().last; c += 32) project(slab, count, {c, c + 32}, x, out, scratch);
        });
    }
};
#endif
