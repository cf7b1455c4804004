// Products of matrices in one thread on vector units: a left matrix (rows, steps), row by row, times a packed one, 32 of its columns at a
// time. Both consist of words of 32 bits, a float or four bytes. A packed matrix is [columns / 32][steps][32].
#pragma once
#include "vector.h"

// Rows of a tile: their sums of two registers of columns stay in registers, beside the weights of one step and one value. 14 of AVX-512's 32
// registers of 16 words, since maps of images of 224 pixels have a multiple of 7 positions, and 6 of AVX2's 16 registers of 8.
#define TILE_ROWS (NATIVE == 16 ? 14 : 6)
#define HALF_TILE_ROWS (TILE_ROWS / 2)
#define PARTS (32 / NATIVE)

template <class Unit, int ROWS, class Consume>
static void vector_tile(const uint32_t *a, int64_t stride, const uint32_t *b, int64_t steps, const uint32_t *start, int64_t row, int64_t column,
                        Consume &consume) {
    typedef typename Unit::Register Register;
    Register finished[ROWS][PARTS];
    for (int part = 0; part < PARTS; part += 2, b += 2 * NATIVE) {
        Register sums[ROWS][2];
#pragma GCC unroll 14
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < 2; i++) sums[r][i] = start ? Unit::read(start + (part + i) * NATIVE) : Unit::zero();
        for (int64_t k = 0; k < steps; k++) {
            const Register left = Unit::read(b + k * 32), right = Unit::read(b + k * 32 + NATIVE);
#pragma GCC unroll 14
            for (int r = 0; r < ROWS; r++) {
                const Register value = Unit::repeat(a + r * stride + k);
                sums[r][0] = Unit::add_product(sums[r][0], value, left);
                sums[r][1] = Unit::add_product(sums[r][1], value, right);
            }
        }
#pragma GCC unroll 14
        for (int r = 0; r < ROWS; r++) finished[r][part] = sums[r][0], finished[r][part + 1] = sums[r][1];
    }
#pragma GCC unroll 14
    for (int r = 0; r < ROWS; r++) {
        typename Unit::Whole halves[2];
        static_assert(sizeof(halves) == sizeof(finished[r]));
        memcpy(halves, finished[r], sizeof(halves));
        consume(row + r, column, halves[0], halves[1]);
    }
}

// Multiplies the first `steps` words of each row of a, whose rows begin every `stride` words, by b (depth, columns). Sums begin with `start`
// (columns), or with 0 if it is null. consume(row, column, left, right) gets 32 columns of a row.
template <class Unit, class Consume>
static void multiply_vectors(const void *a, int64_t stride, int64_t rows, const void *b, int64_t depth, int64_t steps, int64_t columns,
                             const void *start, Consume &consume) {
    for (int64_t n = 0; n < columns; n += 32) {
        const uint32_t *panel = (const uint32_t *)b + n * depth, *begin = start ? (const uint32_t *)start + n : nullptr;
        int64_t m = 0;
        const auto left = [&] { return (const uint32_t *)a + m * stride; };
        for (; m + TILE_ROWS <= rows; m += TILE_ROWS) vector_tile<Unit, TILE_ROWS>(left(), stride, panel, steps, begin, m, n, consume);
        for (; m + HALF_TILE_ROWS <= rows; m += HALF_TILE_ROWS)
            vector_tile<Unit, HALF_TILE_ROWS>(left(), stride, panel, steps, begin, m, n, consume);
        if (HALF_TILE_ROWS > 3)
            for (; m + 3 <= rows; m += 3) vector_tile<Unit, 3>(left(), stride, panel, steps, begin, m, n, consume);
        for (; m < rows; m++) vector_tile<Unit, 1>(left(), stride, panel, steps, begin, m, n, consume);
    }
}
