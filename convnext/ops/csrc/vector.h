// Vectors of 16 floats (AVX-512), read from and written to float32 or bf16 memory. Sums are in float32 for both dtypes.
// Arithmetic uses the vector extensions of GCC and Clang, and intrinsics for what these cannot express.
//
// Checked once under g++ 12.2 with -fsanitize=address,undefined, on a CPU without AVX-512: the intrinsics of AVX-512 and AMX were replaced
// by plain C++. All tests of the operators (96) and the first 24 of 57 tests of convnext.optimize ran without a report of an invalid
// access of memory. The block, LayerNorm and the depthwise convolution, forward and backward, and a small optimized network in float32,
// bf16 and int8 ran without a report of undefined behaviour. Later, on a CPU with AVX-512 and with only the tiles replaced, so did the block
// with GRN.
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint16_t bf16;
enum { FLOAT32 = 0, BFLOAT16 = 1 };  // dtypes: DTYPES of ops/interface.py
// What operators return: FAILURES of ops/interface.py.
enum { OK = 0, OUT_OF_MEMORY = 1, UNSUPPORTED_KERNEL = 2, UNSUPPORTED_DTYPES = 3, NEEDS_TILES = 4 };

INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE f32x16 broadcast(float value) { return value - f32x16{}; }

INLINE f32x16 select16(i32x16 where, f32x16 yes, f32x16 no) {
    return (f32x16)(((i32x16)yes & where) | ((i32x16)no & ~where));
}

INLINE f32x16 widen(u16x16 values) { return (f32x16)(__builtin_convertvector(values, u32x16) << 16); }

INLINE u16x16 narrow(f32x16 values) {  // rounds to nearest, ties to even; NaN stays NaN
#if defined(__AVX512BF16__)
    return (u16x16)_mm512_cvtneps_pbh((__m512)values);
#else
    u32x16 bits = (u32x16)values;
    u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    u32x16 nan = (u32x16)(values != values);
    return __builtin_convertvector((rounded & ~nan) | (((bits >> 16) | 0x40) & nan), u16x16);
#endif
}

INLINE int64_t bytes_of(int dtype) { return dtype == BFLOAT16 ? 2 : 4; }

INLINE const void *at(const void *base, int64_t index, int dtype) { return (const char *)base + index * bytes_of(dtype); }
INLINE void *at(void *base, int64_t index, int dtype) { return (char *)base + index * bytes_of(dtype); }

// Reads the first `count` of 16 lanes; the others become 0, and their memory is not read.
INLINE f32x16 load(const void *from, int dtype, int count) {
    const __mmask16 lanes = (__mmask16)((1u << count) - 1);
    if (dtype == BFLOAT16) return widen((u16x16)_mm256_maskz_loadu_epi16(lanes, from));
    return (f32x16)_mm512_maskz_loadu_ps(lanes, from);
}

INLINE void store(void *to, f32x16 values, int dtype, int count) {
    const __mmask16 lanes = (__mmask16)((1u << count) - 1);
    if (dtype == BFLOAT16) _mm256_mask_storeu_epi16(to, lanes, (__m256i)narrow(values));
    else _mm512_mask_storeu_ps(to, lanes, (__m512)values);
}

// The first of the 16 channels of a block. Where fewer than 16 remain, the last block moves left and computes some channels again.
INLINE int64_t first_channel(int64_t block, int64_t channels) {
    return block + LANES <= channels || channels < LANES ? block : channels - LANES;
}

INLINE float sum16(f32x16 values) { return _mm512_reduce_add_ps((__m512)values); }
