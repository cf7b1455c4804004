// ConvNeXt's whole block with products of 8 bits for inference: weights with a scale for each output, the norm's result with a scale for
// each position, hidden values in 0 … 255 with one scale and zero point that calibration found. Sums are exact integers; everything
// between the products is float32.
#include "depthwise.h"
#include "norm.h"
#include "slab.h"

#if defined(HAS_TILES)
struct Signed {  // left matrix of -128 … 127
    static void upper() { _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7); }
    static void lower() { _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7); }
};

struct Unsigned {  // left matrix of 0 … 255
    static void upper() { _tile_dpbusd(0, 4, 6); _tile_dpbusd(1, 4, 7); }
    static void lower() { _tile_dpbusd(2, 5, 6); _tile_dpbusd(3, 5, 7); }
};

// A tile has 16 rows of 64 columns.
INLINE uint8_t *place(uint8_t *a, int64_t row, int64_t column, int64_t stride) {
    return a + ((row >> 4) * (stride >> 6) + (column >> 6)) * 1024 + (row & 15) * 64 + (column & 63);
}

INLINE int64_t padded64(int64_t n) { return (n + 63) / 64 * 64; }

INLINE f32x16 whole(f32x16 sums) { return (f32x16)_mm512_cvtepi32_ps((__m512i)sums); }

// To the nearest integers, those beyond 0 … 255 to these.
INLINE void store_unsigned(uint8_t *to, f32x16 x) {
    const __m512i rounded = _mm512_max_epi32(_mm512_cvtps_epi32((__m512)x), _mm512_setzero_si512());
    _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(rounded));
}

struct Quantized {  // weights of 8 bits, packed; of the first product's outputs and of the second's, scales and biases
    const void *first, *second;
    const float *first_scale, *first_bias, *second_scale, *second_bias;
    float hidden_scale, hidden_zero;
};

// Norm of a position, in 8 bits; gives its scale.
INLINE float normalise8(const float *from, uint8_t *y, int64_t row, int64_t channels, float eps) {
    const Moments of = moments<FLOAT32>(from, channels, eps);
    f32x16 largest = broadcast(0);
    for (int64_t c = 0; c < channels; c += LANES) {
        const int lanes = (int)least(LANES, channels - c);
        const f32x16 distance = load(from + c, FLOAT32, lanes) - of.mean;
        largest = (f32x16)_mm512_mask_max_ps((__m512)largest, (__mmask16)((1u << lanes) - 1), (__m512)largest,
                                             _mm512_abs_ps((__m512)distance));
    }
    const float most_distant = _mm512_reduce_max_ps((__m512)largest), factor = most_distant > 0 ? 127 / most_distant : 0;
    const int64_t stride = padded64(channels);
    for (int64_t c = 0; c < stride; c += LANES) {
        const f32x16 distance = load(from + c, FLOAT32, (int)most(0, least(LANES, channels - c))) - of.mean;
        const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32((__m512)(distance * factor)));
        _mm_storeu_si128((__m128i *)place(y, row, c, stride), bytes);  // lanes that are none meet weights that are 0
    }
    return most_distant * of.scale / 127;
}

static int block8(const float *x, const float *taps, const float *bias, float eps, const Quantized &w, float *out, int64_t n, int64_t height,
                  int64_t width, int64_t channels, int64_t hidden, int64_t kernel) {
    const int64_t rows = n * height, depth = padded64(channels), hidden_depth = padded64(hidden);
    const int64_t slabs = slabs_of(rows, most(1, most(224, 430080 / ((channels + hidden) * 2)) / width));
    DepthwiseRows *convolve = depthwise_rows_of<FLOAT32, FLOAT32>(kernel);
    if (!convolve) return 1;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        TileScratch scratch;
        begin_tiles();
#pragma omp for schedule(static)
        for (int64_t s = 0; s < slabs; s++) {
            const int64_t first = rows * s / slabs, last = rows * (s + 1) / slabs, count = (last - first) * width;
            const int64_t padded = (count + 31) / 32 * 32, begin = first * width * channels;
            char *memory = (char *)workspace(padded * (depth + hidden_depth + (channels + 1) * sizeof(float)));
            if (!memory) { failed = 1; continue; }
            uint8_t *y = (uint8_t *)memory, *h = y + padded * depth;
            float *convolved = (float *)(h + padded * hidden_depth), *scales = convolved + padded * channels;
            convolve({x, height, width, channels}, taps, bias, nullptr, convolved, first, last);
            for (int64_t row = 0; row < count; row++) scales[row] = normalise8(convolved + row * channels, y, row, channels, eps);
            const float factor = 1 / w.hidden_scale;
            multiply_tiles<Signed>(y, count, w.first, depth / 64, hidden_depth, nullptr, scratch,
                [&](int64_t row, int64_t column, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                    const float *scale = w.first_scale + column, *shift = w.first_bias + column;
                    left = whole(left) * (scales[row] * load(scale, FLOAT32, LANES)) + load(shift, FLOAT32, LANES);
                    right = whole(right) * (scales[row] * load(scale + LANES, FLOAT32, LANES)) + load(shift + LANES, FLOAT32, LANES);
                    uint8_t *to = place(h, row, column, hidden_depth);
                    store_unsigned(to, gelu_to_bf16(left) * factor + w.hidden_zero);
                    store_unsigned(to + LANES, gelu_to_bf16(right) * factor + w.hidden_zero);
                });
            multiply_tiles<Unsigned>(h, count, w.second, hidden_depth / 64, (channels + 31) / 32 * 32, nullptr, scratch,
                [&](int64_t row, int64_t column, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                    const f32x16 parts[] = {left, right};
                    for (int part = 0; part < 2; part++, column += LANES) {
                        const int lanes = (int)most(0, least(LANES, channels - column));
                        const int64_t place = begin + row * channels + column;
                        const f32x16 branch = whole(parts[part]) * load(w.second_scale + column, FLOAT32, LANES) +
                                              load(w.second_bias + column, FLOAT32, LANES);
                        store(out + place, load(x + place, FLOAT32, lanes) + branch, FLOAT32, lanes);
                    }
                });
        }
        _tile_release();
    }
    return failed;
}

// Weights of 8 bits (n, k) in the order of the tiles: [n / 32][k / 64][2][16][16][4], quarters of rows; filled up with zeros.
extern "C" int int8_pack(const int8_t *weight, int8_t *packed, int64_t n, int64_t k, int64_t columns) {
    const int64_t depth = padded64(k);
    memset(packed, 0, columns * depth);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < k; j++)
            packed[(((i / 32 * (depth / 64) + j / 64) * 2 + i / 16 % 2) * 16 + j / 4 % 16) * 64 + i % 16 * 4 + j % 4] = weight[i * k + j];
    return 0;
}

// x and out float32 maps. Return 0, or 1 where memory ran out or the kernel size is none of ours.
extern "C" int int8_block_forward(const float *x, const float *taps, const float *bias, float eps, const void *first,
                                  const float *first_scale, const float *first_bias, const void *second, const float *second_scale,
                                  const float *second_bias, float hidden_scale, float hidden_zero, float *out, int64_t n, int64_t height,
                                  int64_t width, int64_t channels, int64_t hidden, int64_t kernel) {
    const Quantized w = {first, second, first_scale, first_bias, second_scale, second_bias, hidden_scale, hidden_zero};
    return block8(x, taps, bias, eps, w, out, n, height, width, channels, hidden, kernel);
}
#endif
