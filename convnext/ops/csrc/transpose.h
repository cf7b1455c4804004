// Transposes 16 x 16 words of 32 bits in registers (Eklundh, 1972): each step swaps one bit of the row and column indices.
#pragma once
#include "vector.h"

#if defined(__AVX512F__)
template <int BIT, class V> INLINE void swap_bit(V *rows) {
    const u32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const u32x16 first = lane, second = (lane ^ BIT) + 16;  // lanes of the first and of the second row of a pair
    const u32x16 set = (u32x16)((lane & BIT) != 0);
    const u32x16 upper = (first & ~set) | (second & set), lower = ((lane | BIT) & ~set) | ((lane + 16) & set);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        if (i & BIT) continue;
        const __m512i a = (__m512i)rows[i], b = (__m512i)rows[i | BIT];
        rows[i] = (V)_mm512_permutex2var_epi32(a, (__m512i)upper, b);
        rows[i | BIT] = (V)_mm512_permutex2var_epi32(a, (__m512i)lower, b);
    }
}

template <class V> INLINE void transpose16(V *rows) { swap_bit<8>(rows), swap_bit<4>(rows), swap_bit<2>(rows), swap_bit<1>(rows); }
#else
template <int BIT> INLINE void swap_bit(__m256 *rows) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        if (i & BIT) continue;
        const __m256 a = rows[i], b = rows[i | BIT];
        if (BIT == 4) rows[i] = _mm256_permute2f128_ps(a, b, 0x20), rows[i | BIT] = _mm256_permute2f128_ps(a, b, 0x31);
        if (BIT == 2)
            rows[i] = (__m256)_mm256_unpacklo_pd((__m256d)a, (__m256d)b), rows[i | BIT] = (__m256)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
        if (BIT == 1)
            rows[i] = _mm256_blend_ps(a, _mm256_moveldup_ps(b), 0xaa), rows[i | BIT] = _mm256_blend_ps(_mm256_movehdup_ps(a), b, 0xaa);
    }
}

INLINE void transpose16(f32x16 *rows) {  // four times 8 x 8
    __m256 quarters[4][8];
    for (int i = 0; i < 8; i++) {
        quarters[0][i] = (__m256)rows[i].low, quarters[1][i] = (__m256)rows[i].high;
        quarters[2][i] = (__m256)rows[i + 8].low, quarters[3][i] = (__m256)rows[i + 8].high;
    }
    for (auto &quarter : quarters) swap_bit<4>(quarter), swap_bit<2>(quarter), swap_bit<1>(quarter);
    for (int i = 0; i < 8; i++) {
        rows[i] = {(f32x8)quarters[0][i], (f32x8)quarters[2][i]};
        rows[i + 8] = {(f32x8)quarters[1][i], (f32x8)quarters[3][i]};
    }
}
#endif
