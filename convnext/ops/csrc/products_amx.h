// Products of matrices in one thread on tiles, sums in float32: of bf16, and of float32 numbers, each split into two bf16.
#pragma once
#include "tiles.h"

#if defined(HAS_TILES)
#include "gelu.h"
#include "transpose.h"

#include <type_traits>

struct Amx {
    typedef bf16 Value;
    typedef TileScratch Scratch;
    static constexpr int DTYPE = BFLOAT16;
    static constexpr int64_t PAD = 32;  // padding rows are multiplied too, and their sums dropped

    static void begin() { begin_tiles(); }
    static void end() { _tile_release(); }
    static f32x16 activation(f32x16 x) { return gelu_to_bf16(x); }
    static f32x16 slope(f32x16 x) { return gelu_slope_to_bf16(x); }
    static void put(bf16 *to, f32x16 values) { store(to, values, BFLOAT16, LANES); }
    static void store32(bf16 *to, f32x16 left, f32x16 right) {
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)right, (__m512)left));
    }

    static void load32(const bf16 *from, f32x16 &left, f32x16 &right) {
        left = load(from, BFLOAT16, LANES), right = load(from + LANES, BFLOAT16, LANES);
    }

    __attribute__((always_inline)) static u32x16 pairs(f32x16 even, f32x16 odd) {  // 16 pairs of bf16
        alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const __m512i side_by_side = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
        return (u32x16)_mm512_permutexvar_epi16(_mm512_load_si512(order), side_by_side);
    }

    static int64_t stride(int64_t depth) { return depth; }  // of a left matrix
    // A left matrix, `stride` columns wide, is stored in tiles of 16 rows and 32 columns, row by row of tiles: a product then reads it
    // sequentially. The values up to the next multiple of 32 columns follow an address.
    template <class T> static T *address(T *a, int64_t row, int64_t column, int64_t stride) {
        return a + ((row >> 4) * (stride >> 5) + (column >> 5)) * 512 + (row & 15) * 32 + (column & 31);
    }

    // A packed matrix (K, N) is [N / 32][K / 32][2][16][16][2]: pairs of adjacent tiles, each of 16 pairs of rows and 16 columns. A
    // writer gets 32 columns of row k, rows in order from 0.
    struct Writer {
        bf16 *panel;
        f32x16 left = {}, right = {};
        __attribute__((always_inline)) void put(int64_t k, f32x16 new_left, f32x16 new_right) {
            if (k & 1) {
                bf16 *to = panel + ((k >> 5) * 1024 + ((k >> 1) & 15) * 32);
                _mm512_storeu_si512(to, (__m512i)pairs(left, new_left));
                _mm512_storeu_si512(to + 512, (__m512i)pairs(right, new_right));
            }
            left = new_left, right = new_right;
        }
    };

    // Writes columns c to c + 15 of a (rows, stride) as rows of t (…, t_stride); rows is a multiple of 32.
    static void transpose(const bf16 *a, int64_t c, int64_t stride, int64_t rows, bf16 *t, int64_t t_stride) {
        for (int64_t row = 0; row < rows; row += 32) {
            u32x16 words[16];
            for (int i = 0; i < 16; i++)
                words[i] = pairs(load(address(a, row + 2 * i, c, stride), BFLOAT16, LANES),
                                 load(address(a, row + 2 * i + 1, c, stride), BFLOAT16, LANES));
            transpose16(words);
            for (int i = 0; i < 16; i++) memcpy(address(t, c + i, row, t_stride), &words[i], 64);
        }
    }

    struct Dot {
        static void upper() { _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); }
        static void lower() { _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7); }
    };

    template <class Consume>
    static void multiply(const bf16 *a, int64_t rows, const bf16 *b, int64_t depth, int64_t columns, const float *bias,
                         Scratch &scratch, Consume consume) {
        multiply_tiles<OneProduct<Dot>>(a, rows, b, depth / 32, columns, bias, scratch, consume);
    }
};

// Products of float32 matrices. Each number is the sum of two bf16, its high and its low part. Of the four products of parts, three are
// computed, without low times low. An operand keeps 16 bits, so the relative error is about 1e-5: PyTorch's matmul precision "high".
// For inference only.
struct Split {
    typedef float Value;  // four bytes of an operand: high parts in one tile, low parts in the next
    typedef TileScratch Scratch;
    static constexpr int DTYPE = FLOAT32;
    static constexpr int64_t PAD = 32;

    static void begin() { begin_tiles(); }
    static void end() { _tile_release(); }
    static f32x16 activation(f32x16 x) { return gelu_to_split(x); }

    __attribute__((always_inline)) static f32x16 high_part(f32x16 x) { return (f32x16)(((u32x16)x + 0x8000) & 0xffff0000); }
    static void store32(bf16 *to, f32x16 left, f32x16 right) {
        const f32x16 left_high = high_part(left), right_high = high_part(right);
        Amx::store32(to, left_high, right_high);
        Amx::store32(to + 512, left - left_high, right - right_high);
    }
    static void load32(const bf16 *from, f32x16 &left, f32x16 &right) {
        f32x16 left_low, right_low;
        Amx::load32(from, left, right);
        Amx::load32(from + 512, left_low, right_low);
        left += left_low, right += right_low;
    }
    static void put(bf16 *to, f32x16 values) {
        const f32x16 high = high_part(values);
        Amx::put(to, high);
        Amx::put(to + 512, values - high);
    }

    static int64_t stride(int64_t depth) { return depth; }
    static bf16 *address(Value *a, int64_t row, int64_t column, int64_t stride) {
        return (bf16 *)a + ((row >> 4) * (stride >> 5) + (column >> 5)) * 1024 + (row & 15) * 32 + (column & 31);
    }

    struct Writer {  // as Amx's, in groups of four tiles: high parts of two times 16 columns, then low parts
        Value *panel;
        f32x16 left = {}, right = {};
        __attribute__((always_inline)) void put(int64_t k, f32x16 new_left, f32x16 new_right) {
            if (k & 1) {
                bf16 *to = (bf16 *)panel + ((k >> 5) * 2048 + ((k >> 1) & 15) * 32);
                const f32x16 a = high_part(left), b = high_part(new_left), c = high_part(right), d = high_part(new_right);
                _mm512_storeu_si512(to, (__m512i)Amx::pairs(a, b));
                _mm512_storeu_si512(to + 512, (__m512i)Amx::pairs(c, d));
                _mm512_storeu_si512(to + 1024, (__m512i)Amx::pairs(left - a, new_left - b));
                _mm512_storeu_si512(to + 1536, (__m512i)Amx::pairs(right - c, new_right - d));
            }
            left = new_left, right = new_right;
        }
    };

    struct ThreeProducts {
        static constexpr int64_t LEFT = 2, RIGHT = 4;
        __attribute__((always_inline)) static void step(const char *upper, const char *lower, const char *right, bool has_lower) {
            _tile_loadd(6, right + 2048, 64);
            _tile_loadd(7, right + 3072, 64);
            _tile_loadd(4, upper, 64);
            Amx::Dot::upper();
            if (has_lower) {
                _tile_loadd(5, lower, 64);
                Amx::Dot::lower();
            }
            _tile_loadd(6, right, 64);
            _tile_loadd(7, right + 1024, 64);
            Amx::Dot::upper();
            if (has_lower) Amx::Dot::lower();
            _tile_loadd(4, upper + 1024, 64);
            Amx::Dot::upper();
            if (has_lower) {
                _tile_loadd(5, lower + 1024, 64);
                Amx::Dot::lower();
            }
        }
    };

    template <class Consume>
    static void multiply(const Value *a, int64_t rows, const Value *b, int64_t depth, int64_t columns, const float *bias, Scratch &scratch,
                         Consume consume) {
        multiply_tiles<ThreeProducts>(a, rows, b, depth / 32, columns, bias, scratch, consume);
    }
};

// Products of matrices of 8 bits, with exact sums of 32 bits.
struct TilesOfBytes {
    typedef TileScratch Scratch;
    typedef Amx Others;                  // products that are not of 8 bits
    static constexpr uint8_t SHIFT = 0;  // a signed left matrix is stored as it is
    static void begin() { begin_tiles(); }
    static void end() { _tile_release(); }

    struct Signed {  // left matrix of -128 … 127
        static void upper() { _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7); }
        static void lower() { _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7); }
    };

    struct Unsigned {  // left matrix of 0 … 255
        static void upper() { _tile_dpbusd(0, 4, 6); _tile_dpbusd(1, 4, 7); }
        static void lower() { _tile_dpbusd(2, 5, 6); _tile_dpbusd(3, 5, 7); }
    };

    static int64_t stride(int64_t depth) { return depth; }
    // A left matrix consists of tiles of 16 rows and 64 columns.
    static uint8_t *address(uint8_t *a, int64_t row, int64_t column, int64_t stride) {
        return a + ((row >> 4) * (stride >> 6) + (column >> 6)) * 1024 + (row & 15) * 64 + (column & 63);
    }

    // Where value (n, k) of a matrix with `depth` values a column, a multiple of 64, is packed: [n / 32][k / 64][2][16][16][4].
    static int64_t place(int64_t n, int64_t k, int64_t depth) {
        return (((n / 32 * (depth / 64) + k / 64) * 2 + n / 16 % 2) * 16 + k / 4 % 16) * 64 + n % 16 * 4 + k % 4;
    }

    // Multiplies a (rows, depth) by b (depth, columns). consume(row, column, left, right) gets 32 columns of a row.
    template <bool SIGNED, class Consume>
    static void multiply(const uint8_t *a, int64_t rows, const int8_t *b, const int32_t *, int64_t depth, int64_t, int64_t columns,
                         Scratch &scratch, Consume consume) {
        typedef std::conditional_t<SIGNED, Signed, Unsigned> Dot;
        multiply_tiles<OneProduct<Dot>>(a, rows, b, depth / 64, columns, nullptr, scratch,
                                        [&](int64_t row, int64_t column, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                                            consume(row, column, bits(left), bits(right));
                                        });
    }
};
#endif
