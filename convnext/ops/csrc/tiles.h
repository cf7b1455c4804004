// Products of matrices in one thread on AMX tiles. A tile is 1 KB: 16 rows of 64 bytes of the left or of the packed right matrix, or
// 16 x 16 sums. Two tiles of rows times two tiles of columns give 32 x 32 sums. The vector units consume finished sums (GELU, rounding)
// while the tiles multiply the next ones.
#pragma once
#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>

#include "vector.h"

// Tiles (1 KB) of the right matrix that stay in the first-level cache while all rows are multiplied by them: 32 KB.
#define MAX_CHUNK_TILES 32

struct TileScratch {
    alignas(64) float sums[2][32 * 32];
    float *partial_sums = nullptr;  // sums of 32 columns of all rows, where the depth is divided into chunks
    int64_t rows = 0;
    bool failed = false;  // memory ran out, so a product is missing
    ~TileScratch() { free(partial_sums); }
};

// Linux permits tiles on request (ARCH_REQ_XCOMP_PERM of XTILEDATA), once for a process.
INLINE bool request_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

INLINE void begin_tiles() {
    struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
}

// Finished sums that are not consumed yet; consumed some rows at a time.
template <class Consume> struct PendingSums {
    const float *sums = nullptr;
    int64_t row = 0, column = 0;
    int done = 32, count = 0;
    __attribute__((always_inline)) void take_rows(int rows, Consume &consume) {
        for (int last = done + rows < count ? done + rows : count; done < last; done++)
            consume(row + done, column, load(sums + done * 32, FLOAT32, LANES), load(sums + done * 32 + LANES, FLOAT32, LANES));
    }
};

// Multiplies tiles 4 and 5 (left; upper and lower half of the rows) by 6 and 7 (right) by means of Dot::upper and Dot::lower.
template <class Dot> struct OneProduct {
    static constexpr int64_t LEFT = 1, RIGHT = 2;
    __attribute__((always_inline)) static void step(const char *upper, const char *lower, const char *right, bool has_lower) {
        _tile_loadd(6, right, 64);
        _tile_loadd(7, right + 1024, 64);
        _tile_loadd(4, upper, 64);
        Dot::upper();
        if (has_lower) {
            _tile_loadd(5, lower, 64);
            Dot::lower();
        }
    }
};

// Multiplies a (rows, depth) in tiles by a packed b (depth, columns) and adds the bias if there is one; `depth` counts tiles.
// consume(row, column, left, right) gets 32 columns of a row. Step::step multiplies LEFT tiles of each half of the rows by RIGHT tiles and
// adds to the sums in tiles 0 to 3.
template <class Step, class Consume>
static void multiply_tiles(const void *a, int64_t rows, const void *b, int64_t depth, int64_t columns, const float *bias,
                           TileScratch &scratch, Consume consume) {
    const int64_t chunks = (depth * Step::RIGHT + MAX_CHUNK_TILES - 1) / MAX_CHUNK_TILES;
    if (chunks > 1 && scratch.rows < rows) {
        free(scratch.partial_sums);
        scratch.rows = (rows + 31) / 32 * 32;
        scratch.partial_sums = (float *)aligned_alloc(64, scratch.rows * 32 * sizeof(float));
        if (!scratch.partial_sums) {
            scratch.rows = 0, scratch.failed = true;
            return;
        }
    }
    alignas(64) static const float zeros[32] = {};
    PendingSums<Consume> pending;
    int parity = 0;
    __asm__ volatile("" ::: "memory");  // writes to a must be done: the compiler does not see that tiles read it
    for (int64_t n = 0; n < columns; n += 32)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t first = chunk * depth / chunks, last = (chunk + 1) * depth / chunks;
            const int rows_per_step = (int)((32 + last - first - 1) / (last - first));
            for (int64_t m = 0; m < rows; m += 32) {
                float *sums = chunks > 1 ? scratch.partial_sums + m * 32 : scratch.sums[parity ^= 1];
                const bool has_lower = m + 16 < rows;
                const float *start = chunk ? sums : bias ? bias + n : zeros;
                const int64_t start_stride = chunk ? 128 : 0;  // a stride of 0 repeats the bias in each row
                _tile_loadd(0, start, start_stride);
                _tile_loadd(1, start + 16, start_stride);
                if (has_lower) {
                    _tile_loadd(2, start + 16 * start_stride / 4, start_stride);
                    _tile_loadd(3, start + 16 * start_stride / 4 + 16, start_stride);
                }
                constexpr int64_t left_bytes = Step::LEFT * 1024, right_bytes = Step::RIGHT * 1024;
                const char *upper = (const char *)a + (m / 16 * depth + first) * left_bytes, *lower = upper + depth * left_bytes;
                const char *right = (const char *)b + (n / 32 * depth + first) * right_bytes;
                for (int64_t k = first; k < last; k++, upper += left_bytes, lower += left_bytes, right += right_bytes) {
                    Step::step(upper, lower, right, has_lower);
                    pending.take_rows(rows_per_step, consume);
                }
                pending.take_rows(32, consume);
                _tile_stored(0, sums, 128);
                _tile_stored(1, sums + 16, 128);
                if (has_lower) {
                    _tile_stored(2, sums + 512, 128);
                    _tile_stored(3, sums + 528, 128);
                }
                if (chunk == chunks - 1) pending = {sums, m, n, 0, (int)min(32, rows - m)};
            }
        }
    pending.take_rows(32, consume);
}
#endif
