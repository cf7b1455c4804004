// Products of matrices for one thread on AMX tiles. A tile is 1 KB: 16 rows of 64 bytes of the left matrix, or of the packed right one,
// and 16 x 16 sums. Two tiles of rows times two of columns make 32 x 32 sums. The vector units take finished sums (GELU, rounding) while
// the tiles multiply the next ones.
#pragma once
#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>

#include "vector.h"

#define CHUNK 32  // tiles of 32 columns of the right matrix that stay in the first cache

struct TileScratch {
    alignas(64) float sums[2][32 * 32];
    float *kept = nullptr;  // sums of all rows of 32 columns, where the depth is cut into chunks
    int64_t rows = 0;
    bool failed = false;  // memory ran out, and what was to be multiplied was not
    ~TileScratch() { free(kept); }
};

// Linux gives a process the tiles on request (ARCH_REQ_XCOMP_PERM of XTILEDATA).
INLINE bool request_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

INLINE void begin_tiles() {
    struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
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

// Tiles 4 and 5, a left one of each half of the rows, times 6 and 7, two right ones, by Dot::upper and Dot::lower.
template <class Dot> struct Single {
    static constexpr int64_t LEFT = 1, RIGHT = 2;
    __attribute__((always_inline)) static void step(const char *upper, const char *lower, const char *right, bool two) {
        _tile_loadd(6, right, 64);
        _tile_loadd(7, right + 1024, 64);
        _tile_loadd(4, upper, 64);
        Dot::upper();
        if (two) {
            _tile_loadd(5, lower, 64);
            Dot::lower();
        }
    }
};

// a (rows, depth) in tiles times a packed b (depth, columns), `depth` in tiles, plus bias where there is one; take(row, column, left,
// right) gets each row's sums of 32 columns. Kind::step multiplies LEFT tiles of each half of the rows by RIGHT tiles into the sums 0 to 3.
template <class Kind, class Take>
static void multiply_tiles(const void *a, int64_t rows, const void *b, int64_t depth, int64_t columns, const float *bias,
                           TileScratch &scratch, Take take) {
    const int64_t chunks = (depth * Kind::RIGHT + CHUNK - 1) / CHUNK;
    if (chunks > 1 && scratch.rows < rows) {
        free(scratch.kept);
        scratch.rows = (rows + 31) / 32 * 32;
        scratch.kept = (float *)aligned_alloc(64, scratch.rows * 32 * sizeof(float));
        if (!scratch.kept) {
            scratch.rows = 0, scratch.failed = true;
            return;
        }
    }
    alignas(64) static const float zeros[32] = {};
    Waiting<Take> waiting;
    int turn = 0;
    __asm__ volatile("" ::: "memory");  // what was written to a has to be there: a compiler does not see tiles read it
    for (int64_t n = 0; n < columns; n += 32)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t first = chunk * depth / chunks, last = (chunk + 1) * depth / chunks;
            const int each = (int)((32 + last - first - 1) / (last - first));
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
                constexpr int64_t of_left = Kind::LEFT * 1024, of_right = Kind::RIGHT * 1024;
                const char *upper = (const char *)a + (m / 16 * depth + first) * of_left, *lower = upper + depth * of_left;
                const char *right = (const char *)b + (n / 32 * depth + first) * of_right;
                for (int64_t k = first; k < last; k++, upper += of_left, lower += of_left, right += of_right) {
                    Kind::step(upper, lower, right, two);
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
#endif
