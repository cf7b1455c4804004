// Transposition of 16 x 16 words of 32 bits in registers (Eklundh, 1972): at each step, rows and columns swap one bit of their numbers.
#pragma once
#include "vector.h"

template <int BIT> INLINE void swap_bit(u32x16 *rows) {
    const u32x16 number = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const u32x16 here = number, there = (number ^ BIT) + 16;  // lanes of the first and of the second of two rows
    const u32x16 set = (u32x16)((number & BIT) != 0);
    const u32x16 upper = (here & ~set) | (there & set), lower = ((number | BIT) & ~set) | ((number + 16) & set);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        if (i & BIT) continue;
        const __m512i a = (__m512i)rows[i], b = (__m512i)rows[i | BIT];
        rows[i] = (u32x16)_mm512_permutex2var_epi32(a, (__m512i)upper, b);
        rows[i | BIT] = (u32x16)_mm512_permutex2var_epi32(a, (__m512i)lower, b);
    }
}

INLINE void transpose16(u32x16 *rows) { swap_bit<8>(rows), swap_bit<4>(rows), swap_bit<2>(rows), swap_bit<1>(rows); }
