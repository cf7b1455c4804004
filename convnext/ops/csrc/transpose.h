// Transposes 16 x 16 words of 32 bits in registers (Eklundh, 1972): each step swaps one bit of the row and column indices.
#pragma once
#include "vector.h"

template <int BIT> INLINE void swap_bit(u32x16 *rows) {
    const u32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const u32x16 first = lane, second = (lane ^ BIT) + 16;  // lanes of the first and of the second row of a pair
    const u32x16 set = (u32x16)((lane & BIT) != 0);
    const u32x16 upper = (first & ~set) | (second & set), lower = ((lane | BIT) & ~set) | ((lane + 16) & set);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        if (i & BIT) continue;
        const __m512i a = (__m512i)rows[i], b = (__m512i)rows[i | BIT];
        rows[i] = (u32x16)_mm512_permutex2var_epi32(a, (__m512i)upper, b);
        rows[i | BIT] = (u32x16)_mm512_permutex2var_epi32(a, (__m512i)lower, b);
    }
}

INLINE void transpose16(u32x16 *rows) { swap_bit<8>(rows), swap_bit<4>(rows), swap_bit<2>(rows), swap_bit<1>(rows); }
