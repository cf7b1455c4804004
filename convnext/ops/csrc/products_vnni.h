// Products of matrices of 8 bits in one thread on vector units (VNNI), with exact sums of 32 bits. An instruction multiplies four bytes of
// 0 … 255 by four of -128 … 127, so a signed left matrix is stored plus 128, and sums begin with what that adds, negated.
#pragma once
#include "products_f32.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define HAS_VNNI

struct Bytes {  // for multiply_vectors
    typedef i32x16 Whole;
#if defined(__AVX512VNNI__)
    typedef i32x16 Register;
    static i32x16 read(const void *from) { return (i32x16)_mm512_loadu_si512(from); }
    static i32x16 repeat(const void *word) { return (i32x16)_mm512_set1_epi32(*(const int32_t *)word); }
    static i32x16 add_product(i32x16 sums, i32x16 value, i32x16 columns) {
        return (i32x16)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)value, (__m512i)columns);
    }
#else
    typedef i32x8 Register;
    static i32x8 read(const void *from) { return (i32x8)_mm256_loadu_si256((const __m256i *)from); }
    static i32x8 repeat(const void *word) { return (i32x8)_mm256_set1_epi32(*(const int32_t *)word); }
    static i32x8 add_product(i32x8 sums, i32x8 value, i32x8 columns) {
        return (i32x8)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)value, (__m256i)columns);
    }
#endif
    static Register zero() { return Register{}; }
};

struct Vnni {
    typedef Float32::Scratch Scratch;
    typedef Float32 Others;               // products that are not of 8 bits
    static constexpr uint8_t SHIFT = 128;  // added to a signed left matrix

    static void begin() {}
    static void end() {}
    static int64_t stride(int64_t depth) { return depth + 64; }  // of a left matrix: as Float32's
    static uint8_t *address(uint8_t *a, int64_t row, int64_t column, int64_t stride) { return a + row * stride + column; }

    // Where value (n, k) of a matrix with `depth` values a column, a multiple of 64, is packed.
    static int64_t place(int64_t n, int64_t k, int64_t depth) { return (n / 32 * (depth / 4) + k / 4) * 128 + n % 32 * 4 + k % 4; }

    // Multiplies a (rows, depth) by b (depth, columns), of which the first `used` values of the depth are not 0. If a is SIGNED, sums begin
    // with `starts` (columns). consume(row, column, left, right) gets 32 columns of a row.
    template <bool SIGNED, class Consume>
    static void multiply(const uint8_t *a, int64_t rows, const int8_t *b, const int32_t *starts, int64_t depth, int64_t used, int64_t columns,
                         Scratch &, Consume consume) {
        multiply_vectors<Bytes>(a, stride(depth) / 4, rows, b, depth / 4, (used + 3) / 4, columns, starts, consume);
    }
};
#endif
