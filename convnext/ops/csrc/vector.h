// Vectors of 16 floats, read from and written to float32 or bf16 memory. Sums are in float32 for both dtypes. With AVX-512 a vector is one
// register, with AVX2 two; all that follows is written once for both.
// Arithmetic uses the vector extensions of GCC and Clang, and intrinsics for what these cannot express.
//
// Checked under g++ 12.2 with -fsanitize=address,undefined at the levels avx2_vnni and avx512_vnni: the tests of the operators and of
// convnext.optimize (149), with two threads, ran without a report. So did those with AMX, its tiles replaced by plain C++, in an earlier
// version.
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint16_t bf16;
#if defined(__AVX512F__)
#define NATIVE 16  // floats of a register
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef f32x16 native;
#else
#include "pair.h"
#define NATIVE 8
typedef Pair<f32x8> f32x16;
typedef Pair<i32x8> i32x16;
typedef Pair<u32x8> u32x16;
typedef f32x8 native;
#endif
enum { FLOAT32 = 0, BFLOAT16 = 1 };  // dtypes: DTYPES of ops/interface.py
// What operators return: FAILURES of ops/interface.py.
enum { OK = 0, OUT_OF_MEMORY = 1, UNSUPPORTED_KERNEL = 2, UNSUPPORTED_DTYPES = 3, NEEDS_TILES = 4, NEEDS_INT8 = 5 };

INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE f32x16 broadcast(float value) { return value - f32x16{}; }
INLINE f32x8 broadcast8(float value) { return value - f32x8{}; }

INLINE i32x16 bits(f32x16 values) { return __builtin_bit_cast(i32x16, values); }
INLINE f32x16 from_bits(i32x16 values) { return __builtin_bit_cast(f32x16, values); }
INLINE f32x16 from_bits(u32x16 values) { return __builtin_bit_cast(f32x16, values); }

INLINE f32x16 select16(i32x16 where, f32x16 yes, f32x16 no) { return from_bits((bits(yes) & where) | (bits(no) & ~where)); }
INLINE f32x16 magnitude(f32x16 x) { return from_bits(bits(x) & 0x7fffffff); }

INLINE int64_t bytes_of(int dtype) { return dtype == BFLOAT16 ? 2 : 4; }

INLINE const void *at(const void *base, int64_t index, int dtype) { return (const char *)base + index * bytes_of(dtype); }
INLINE void *at(void *base, int64_t index, int dtype) { return (char *)base + index * bytes_of(dtype); }

// The first of the `lanes` channels of a block. Where fewer remain, the last block moves left and computes some channels again.
INLINE int64_t first_channel(int64_t block, int64_t channels, int64_t lanes) {
    return block + lanes <= channels || channels < lanes ? block : channels - lanes;
}

// load reads the first `count` of 16 lanes; the others become 0, and their memory is not read. store writes the first `count` lanes.
// bf16 is rounded to nearest, ties to even; NaN stays NaN.
#if defined(__AVX512F__)
INLINE u16x16 narrow(f32x16 values) {
#if defined(__AVX512BF16__)
    return (u16x16)_mm512_cvtneps_pbh((__m512)values);
#else
    u32x16 all = (u32x16)values;
    u32x16 rounded = (all + 0x7fff + ((all >> 16) & 1)) >> 16;
    u32x16 nan = (u32x16)(values != values);
    return __builtin_convertvector((rounded & ~nan) | (((all >> 16) | 0x40) & nan), u16x16);
#endif
}

INLINE f32x16 load(const void *from, int dtype, int count) {
    const __mmask16 lanes = (__mmask16)((1u << count) - 1);
    if (dtype == BFLOAT16) {
        const u16x16 values = (u16x16)_mm256_maskz_loadu_epi16(lanes, from);
        return (f32x16)(__builtin_convertvector(values, u32x16) << 16);
    }
    return (f32x16)_mm512_maskz_loadu_ps(lanes, from);
}

INLINE void store(void *to, f32x16 values, int dtype, int count) {
    const __mmask16 lanes = (__mmask16)((1u << count) - 1);
    if (dtype == BFLOAT16) _mm256_mask_storeu_epi16(to, lanes, (__m256i)narrow(values));
    else _mm512_mask_storeu_ps(to, lanes, (__m512)values);
}

INLINE float sum16(f32x16 values) { return _mm512_reduce_add_ps((__m512)values); }
INLINE float max16(f32x16 values) { return _mm512_reduce_max_ps((__m512)values); }
INLINE f32x16 maximum(f32x16 x, float bound) { return (f32x16)_mm512_max_ps((__m512)x, _mm512_set1_ps(bound)); }
INLINE f32x16 minimum(f32x16 x, float bound) { return (f32x16)_mm512_min_ps((__m512)x, _mm512_set1_ps(bound)); }
INLINE f32x16 square_root(f32x16 x) { return (f32x16)_mm512_sqrt_ps((__m512)x); }
// imm 2: the smaller magnitude, with the sign of x; imm 11: the larger magnitude, positive
INLINE f32x16 clamp(f32x16 x, float bound) { return (f32x16)_mm512_range_ps((__m512)x, _mm512_set1_ps(bound), 2); }
INLINE f32x16 larger_magnitude(f32x16 a, f32x16 b) { return (f32x16)_mm512_range_ps((__m512)a, (__m512)b, 11); }
INLINE f32x16 first_lanes(f32x16 x, int count) {  // the others become 0
    return (f32x16)_mm512_maskz_mov_ps((__mmask16)((1u << count) - 1), (__m512)x);
}
INLINE f32x16 to_float(i32x16 values) { return (f32x16)_mm512_cvtepi32_ps((__m512i)values); }
INLINE i32x16 to_int(f32x16 values) { return (i32x16)_mm512_cvtps_epi32((__m512)values); }  // rounds to nearest
INLINE native load_native(const void *from, int dtype, int count) { return load(from, dtype, count); }
INLINE void store_native(void *to, native values, int dtype, int count) { store(to, values, dtype, count); }
INLINE native broadcast_native(float value) { return broadcast(value); }
#endif

#if !defined(__AVX512F__)
// The first `count` of 8 lanes, count from 0 to 8, and beyond these bounds none or all.
INLINE __m256i lanes8(int count) {
    alignas(32) static const int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(ones_then_zeros + 8 - (count < 0 ? 0 : count > 8 ? 8 : count)));
}

INLINE f32x8 load_native(const void *from, int dtype, int count) {
    if (dtype == BFLOAT16) {
        __m128i values;
        if (count >= 8) values = _mm_loadu_si128((const __m128i *)from);
        else {
            alignas(16) uint16_t some[8] = {};
            for (int i = 0; i < count; i++) some[i] = ((const uint16_t *)from)[i];
            values = _mm_load_si128((const __m128i *)some);
        }
        return (f32x8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16);
    }
    return count >= 8 ? (f32x8)_mm256_loadu_ps((const float *)from) : (f32x8)_mm256_maskload_ps((const float *)from, lanes8(count));
}

INLINE void store_native(void *to, f32x8 values, int dtype, int count) {
    if (dtype == FLOAT32) {
        if (count >= 8) _mm256_storeu_ps((float *)to, (__m256)values);
        else _mm256_maskstore_ps((float *)to, lanes8(count), (__m256)values);
        return;
    }
    const u32x8 all = (u32x8)values, nan = (u32x8)(values != values);
    const u32x8 rounded = (all + 0x7fff + ((all >> 16) & 1)) >> 16;
    const __m256i words = (__m256i)((rounded & ~nan) | (((all >> 16) | 0x40) & nan));
    const __m128i packed = _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 8));
    alignas(16) uint16_t some[8];
    if (count >= 8) return _mm_storeu_si128((__m128i *)to, packed);
    _mm_store_si128((__m128i *)some, packed);
    for (int i = 0; i < count; i++) ((uint16_t *)to)[i] = some[i];
}

INLINE f32x16 load(const void *from, int dtype, int count) {
    return {load_native(from, dtype, count), load_native(at(from, 8, dtype), dtype, count - 8)};
}

INLINE void store(void *to, f32x16 values, int dtype, int count) {
    store_native(to, values.low, dtype, count);
    store_native(at(to, 8, dtype), values.high, dtype, count - 8);
}

INLINE float sum16(f32x16 values) {
    const __m256 eight = (__m256)(values.low + values.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
INLINE float max16(f32x16 values) {
    const __m256 eight = _mm256_max_ps((__m256)values.low, (__m256)values.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
INLINE f32x8 maximum(f32x8 x, f32x8 y) { return (f32x8)_mm256_max_ps((__m256)x, (__m256)y); }
INLINE f32x8 minimum(f32x8 x, f32x8 y) { return (f32x8)_mm256_min_ps((__m256)x, (__m256)y); }
INLINE f32x16 maximum(f32x16 x, float bound) { return {maximum(x.low, broadcast8(bound)), maximum(x.high, broadcast8(bound))}; }
INLINE f32x16 minimum(f32x16 x, float bound) { return {minimum(x.low, broadcast8(bound)), minimum(x.high, broadcast8(bound))}; }
INLINE f32x16 clamp(f32x16 x, float bound) { return minimum(maximum(x, -bound), bound); }
INLINE f32x16 larger_magnitude(f32x16 a, f32x16 b) {
    a = magnitude(a), b = magnitude(b);
    return {maximum(a.low, b.low), maximum(a.high, b.high)};
}
INLINE f32x16 square_root(f32x16 x) { return {(f32x8)_mm256_sqrt_ps((__m256)x.low), (f32x8)_mm256_sqrt_ps((__m256)x.high)}; }
INLINE f32x16 first_lanes(f32x16 x, int count) {
    return from_bits(bits(x) & i32x16{(i32x8)lanes8(count), (i32x8)lanes8(count - 8)});
}
INLINE f32x16 to_float(i32x16 x) { return {(f32x8)_mm256_cvtepi32_ps((__m256i)x.low), (f32x8)_mm256_cvtepi32_ps((__m256i)x.high)}; }
INLINE i32x16 to_int(f32x16 x) { return {(i32x8)_mm256_cvtps_epi32((__m256)x.low), (i32x8)_mm256_cvtps_epi32((__m256)x.high)}; }
INLINE native broadcast_native(float value) { return broadcast8(value); }
#endif
