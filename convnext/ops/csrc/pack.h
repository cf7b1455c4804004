// Weights in the order in which products read them: 32 columns of the product, which are rows of the weight, behind one another.
#pragma once
#include "slab.h"
#include "transpose.h"

// Reads 16 rows of a matrix (rows, columns) from a row and column on, as 16 vectors of a column each; 0 beyond the matrix. One of the steps
// is 1, and memory is read along it.
static void read_columns(const float *weight, int64_t row_step, int64_t column_step, int64_t rows, int64_t columns, f32x16 *found) {
    if (row_step == 1) {
        for (int i = 0; i < LANES; i++)
            found[i] = i < columns ? load(weight + i * column_step, FLOAT32, (int)max(0, min(LANES, rows))) : broadcast(0);
        return;
    }
    for (int i = 0; i < LANES; i++)
        found[i] = i < rows ? load(weight + i * row_step, FLOAT32, (int)max(0, min(LANES, columns))) : broadcast(0);
    transpose16(found);
}

// Packs rows `row` to `row` + 31 of a weight.
template <class P> static void pack_panel(const Loose &w, int64_t row, typename P::Value *packed) {
    typename P::Writer writer = {packed};
    const auto scale = [&](int64_t first) {
        return w.row_scale ? load(w.row_scale + first, FLOAT32, (int)max(0, min(LANES, w.n - first))) : broadcast(1);
    };
    const f32x16 scales[2] = {scale(row), scale(row + LANES)};
    for (int64_t column = 0; column < w.depth(); column += LANES) {
        f32x16 values[2][LANES];
        for (int half = 0; half < 2; half++) {
            const int64_t first = row + half * LANES;
            read_columns(w.values + first * w.row_step + column * w.column_step, w.row_step, w.column_step, w.n - first, w.k - column,
                         values[half]);
        }
        for (int j = 0; j < LANES; j++) {
            f32x16 left = values[0][j], right = values[1][j];
            if (w.row_scale) left *= scales[0], right *= scales[1];
            if (w.column_scale && column + j < w.k) left *= w.column_scale[column + j], right *= w.column_scale[column + j];
            writer.put(column + j, left, right);
        }
    }
}

template <class P> static void pack(const Loose &w, void *packed) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < w.n; row += 32) pack_panel<P>(w, row, (typename P::Value *)packed + row * w.depth());
}
