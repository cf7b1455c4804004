// Products of float32 matrices in one thread, on vector units.
#pragma once
#include "gelu.h"
#include "products_vector.h"
#include "transpose.h"

struct Floats {  // for multiply_vectors
    typedef native Register;
    typedef f32x16 Whole;
    static native zero() { return broadcast_native(0); }
    static native read(const void *from) { return load_native(from, FLOAT32, NATIVE); }
    static native repeat(const void *word) { return broadcast_native(*(const float *)word); }
    static native add_product(native sums, native value, native columns) { return sums + value * columns; }
};

struct Float32 {
    typedef float Value;
    static constexpr int DTYPE = FLOAT32;
    static constexpr int64_t PAD = 1;  // the number of rows is padded to a multiple of this
    struct Scratch {
        bool failed = false;  // no memory is allocated, so none runs out
    };

    static void begin() {}
    static void end() {}
    static f32x16 activation(f32x16 x) { return gelu(x); }
    static f32x16 slope(f32x16 x) { return gelu_slope(x); }
    static void put(float *to, f32x16 values) { store(to, values, FLOAT32, LANES); }
    static void store32(float *to, f32x16 left, f32x16 right) { store(to, left, FLOAT32, LANES), store(to + LANES, right, FLOAT32, LANES); }
    static void load32(const float *from, f32x16 &left, f32x16 &right) {
        left = load(from, FLOAT32, LANES), right = load(from + LANES, FLOAT32, LANES);
    }

    // Of a left matrix. Rows a multiple of 4 KB apart would compete for the same places of the first-level cache.
    static int64_t stride(int64_t depth) { return depth + LANES; }
    template <class T> static T *address(T *a, int64_t row, int64_t column, int64_t stride) { return a + row * stride + column; }

    // A packed matrix (K, N), K and N multiples of 32, is [N / 32][K][32]. A writer gets 32 columns of row k, rows in order from 0.
    struct Writer {
        float *panel;
        __attribute__((always_inline)) void put(int64_t k, f32x16 left, f32x16 right) const { store32(panel + k * 32, left, right); }
    };

    // Writes columns c to c + 15 of a (rows, stride) as rows of t (…, t_stride); rows is a multiple of 32.
    static void transpose(const float *a, int64_t c, int64_t stride, int64_t rows, float *t, int64_t t_stride) {
        for (int64_t row = 0; row < rows; row += 16) {
            f32x16 words[16];
            for (int i = 0; i < 16; i++) words[i] = load(address(a, row + i, c, stride), FLOAT32, LANES);
            transpose16(words);
            for (int i = 0; i < 16; i++) store(address(t, c + i, row, t_stride), words[i], FLOAT32, LANES);
        }
    }

    // Multiplies a (rows, depth) by b and adds the bias if there is one; consume(row, column, left, right) gets 32 columns of a row.
    template <class Consume>
    static void multiply(const float *a, int64_t rows, const float *b, int64_t depth, int64_t columns, const float *bias, Scratch &,
                         Consume consume) {
        multiply_vectors<Floats>(a, stride(depth), rows, b, depth, depth, columns, bias, consume);
    }
};
