// Products of bf16 matrices for one thread on AMX tiles, sums in float32. A tile has 16 rows of 64 bytes; two of rows times two of
// columns make 32 x 32 sums. The vector units take finished sums (GELU, rounding) while the tiles multiply the next ones.
#pragma once
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#include "gelu.h"
#include "transpose.h"

struct Amx {
    typedef bf16 Value;
    static constexpr int DTYPE = BFLOAT16;
    static constexpr int64_t PAD = 32;  // rows beyond the last are multiplied too, and dropped
    static constexpr int64_t CHUNK = 12;  // tiles of depth whose 32 columns stay in the first cache
    struct Scratch {
        alignas(64) float sums[2][32 * 32];
        float *kept = nullptr;  // sums of all rows of 32 columns, where the depth is cut into chunks
        int64_t rows = 0;
        ~Scratch() { free(kept); }
    };

    // Linux gives a process the tiles on request (ARCH_REQ_XCOMP_PERM of XTILEDATA).
    static bool supported() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

    static void begin() {
        struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        _tile_loadconfig(&config);
    }
    static void end() { _tile_release(); }
    static f32x16 activation(f32x16 x) { return gelu_to_bf16(x); }
    static f32x16 slope(f32x16 x) { return gelu_slope_to_bf16(x); }
    static void store32(bf16 *to, f32x16 left, f32x16 right) {
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)right, (__m512)left));
    }

    __attribute__((always_inline)) static u32x16 pairs(f32x16 even, f32x16 odd) {  // 16 times two bf16
        alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const __m512i side_by_side = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
        return (u32x16)_mm512_permutexvar_epi16(_mm512_load_si512(order), side_by_side);
    }

    // Row by row in tiles of 16 rows and 32 columns, `stride` columns wide: a product then reads its left matrix from front to back, as
    // caches like it. Of a place, the values up to the next multiple of 32 columns lie behind it.
    template <class Any> static Any *place(Any *a, int64_t row, int64_t column, int64_t stride) {
        return a + ((row >> 4) * (stride >> 5) + (column >> 5)) * 512 + (row & 15) * 32 + (column & 31);
    }

    // A packed matrix (K, N) is [N / 32][K / 32][2][16][16][2]: two tiles side by side, of 16 pairs of rows and 16 columns. A writer gets
    // row k of 32 columns, rows in order from 0.
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

    // Columns c to c + 15 of a (rows, stride) become rows of t (…, t_stride); rows is a multiple of 32.
    static void transpose(const bf16 *a, int64_t c, int64_t stride, int64_t rows, bf16 *t, int64_t t_stride) {
        for (int64_t row = 0; row < rows; row += 32) {
            u32x16 words[16];
            for (int i = 0; i < 16; i++)
                words[i] = pairs(load(place(a, row + 2 * i, c, stride), BFLOAT16, LANES),
                                 load(place(a, row + 2 * i + 1, c, stride), BFLOAT16, LANES));
            transpose16(words);
            for (int i = 0; i < 16; i++) memcpy(place(t, c + i, row, t_stride), &words[i], 64);
        }
    }

    // Finished sums that wait to be taken, some rows at a time.
    template <class Take> struct Waiting {
        const float *sums = nullptr;
        int64_t row = 0, column = 0;
        int done = 32, count = 0;
        __attribute__((always_inline)) void some(int rows, Take &take) {
            for (int last = done + rows < count ? done + rows : count; done < last; done++)
                take(row + done, column, load(sums + done * 32, FLOAT32, LANES), load(sums + done * 32 + LANES, FLOAT32, LANES));
        }
    };

    template <class Take>
    static void multiply(const bf16 *a, int64_t rows, const bf16 *b, int64_t depth, int64_t columns, const float *bias,
                         Scratch &scratch, Take take) {
        const int64_t tiles = depth / 32, chunks = (tiles + CHUNK - 1) / CHUNK;
        if (chunks > 1 && scratch.rows < rows) {
            free(scratch.kept);
            scratch.rows = (rows + 31) / 32 * 32;
            scratch.kept = (float *)aligned_alloc(64, scratch.rows * 32 * sizeof(float));
        }
        alignas(64) static const float zeros[32] = {};
        Waiting<Take> waiting;
        int turn = 0;
        for (int64_t n = 0; n < columns; n += 32)
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                const int64_t first = chunk * tiles / chunks, last = (chunk + 1) * tiles / chunks;
                const int each = (int)((32 + last - first - 1) / (last - first));
                const bf16 *panel = b + n * depth + first * 1024;
                for (int64_t m = 0; m < rows; m += 32) {
                    float *sums = chunks > 1 ? scratch.kept + m * 32 : scratch.sums[turn ^= 1];
                    const bool two = m + 16 < rows;
                    const float *from = chunk ? sums : bias ? bias + n : zeros;
                    const int64_t step = chunk ? 128 : 0;  // a step of 0 repeats the bias in each row
                    _tile_loadd(0, from, step);
                    _tile_loadd(1, from + 16, step);
                    if (two) {
                        _tile_loadd(2, from + 16 * step / 4, step);
                        _tile_loadd(3, from + 16 * step / 4 + 16, step);
                    }
                    const bf16 *upper = place(a, m, first * 32, depth), *lower = place(a, m + 16, first * 32, depth), *weights = panel;
                    for (int64_t k = first; k < last; k++, upper += 512, lower += 512, weights += 1024) {
                        _tile_loadd(6, weights, 64);
                        _tile_loadd(7, weights + 512, 64);
                        _tile_loadd(4, upper, 64);
                        _tile_dpbf16ps(0, 4, 6);
                        _tile_dpbf16ps(1, 4, 7);
                        if (two) {
                            _tile_loadd(5, lower, 64);
                            _tile_dpbf16ps(2, 5, 6);
                            _tile_dpbf16ps(3, 5, 7);
                        }
                        waiting.some(each, take);
                    }
                    waiting.some(32, take);
                    _tile_stored(0, sums, 128);
                    _tile_stored(1, sums + 16, 128);
                    if (two) {
                        _tile_stored(2, sums + 512, 128);
                        _tile_stored(3, sums + 528, 128);
                    }
                    if (chunk == chunks - 1) waiting = {sums, m, n, 0, (int)least(32, rows - m)};
                }
            }
        waiting.some(32, take);
    }
};
#endif
