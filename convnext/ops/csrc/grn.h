// Global Response Normalization (ConvNeXt V2) in a block. Of a channel's hidden values h in an image:
//   out = h s + beta    s = 1 + gamma g / (mean of g over the channels + eps)    g = sqrt(Σ h²) over the positions of the image
// s needs the whole image, so a block takes two passes over it. The first computes h,
// keeps it, and sums its squares; the second scales it and multiplies. The squares of each row of the map have a sum of their own, and
// these are added in order, so that results do not depend on how the rows are divided.
#pragma once
#include "block.h"

#define GRN_SLOT 2  // the scratch buffer of what the first pass keeps; slabs have slot 0, maps slot 1

template <class P, int DTYPE> struct GrnBlock {
    typedef typename P::Value Value;
    const Block<P, DTYPE> &block;
    int64_t height, width;

    struct Kept {  // of some images
        Value *hidden;   // of each slab
        float *squares;  // (rows of the map, padded hidden channels)
        float *factors;  // s (images, padded hidden channels)
        int64_t rows, slabs, slab_values;
        int64_t begin(int64_t slab) const { return rows * slab / slabs; }
    };

    // Returns memory for images in `slabs` slabs; hidden is null if memory ran out.
    Kept keep(int64_t images, int64_t slabs) const {
        const int64_t rows = images * height, stride = block.weights.padded_hidden();
        const int64_t positions = (rows + slabs - 1) / slabs * width, slab_values = (positions + P::PAD - 1) / P::PAD * P::PAD * P::stride(stride);
        char *memory = (char *)scratch_buffer<GRN_SLOT>(slabs * slab_values * sizeof(Value) + (rows + images) * stride * sizeof(float));
        float *squares = (float *)(memory + slabs * slab_values * sizeof(Value));
        return {(Value *)memory, squares, squares + rows * stride, rows, slabs, slab_values};
    }

    // The first pass over a slab of the images x. Returns false if memory ran out.
    bool first_pass(const void *x, const Kept &kept, int64_t number, typename P::Scratch &scratch) const {
        const Weights &w = block.weights;
        const int64_t first = kept.begin(number), last = kept.begin(number + 1), stride = w.padded_hidden(), across = width;
        Slab<P> slab;
        if (!slab.allocate(w, (last - first) * width)) return false;
        block.normalised(x, height, width, first, last, first, slab);
        Value *hidden = kept.hidden + number * kept.slab_values;
        float *squares = kept.squares + first * stride;
        memset(squares, 0, (last - first) * stride * sizeof(float));
        P::multiply(slab.y, (last - first) * width, (const Value *)w.first, w.padded_width(), stride, w.first_bias, scratch,
                    [&](int64_t row, int64_t column, f32x16 left, f32x16 right) __attribute__((always_inline)) {
                        left = P::activation(left), right = P::activation(right);
                        float *sum = squares + (uint32_t)row / (uint32_t)across * stride + column;
                        store(sum, load(sum, FLOAT32, LANES) + left * left, FLOAT32, LANES);
                        store(sum + LANES, load(sum + LANES, FLOAT32, LANES) + right * right, FLOAT32, LANES);
                        P::store32(P::address(hidden, row, column, P::stride(stride)), left, right);
                    });
        return true;
    }

    // Computes s of all images from the sums of squares.
    void reduce(const Kept &kept) const {
        const int64_t stride = block.weights.padded_hidden();
        for (int64_t row = 0; row < kept.rows; row += height) {
            float *norms = kept.factors + row / height * stride;
            f32x16 total = broadcast(0);
            for (int64_t c = 0; c < stride; c += LANES) {
                f32x16 sum = broadcast(0);
                for (int64_t h = 0; h < height; h++) sum += load(kept.squares + (row + h) * stride + c, FLOAT32, LANES);
                const f32x16 norm = square_root(sum);
                store(norms + c, norm, FLOAT32, LANES);
                total += norm;  // padding channels are 0
            }
            const float scale = 1 / (sum16(total) / block.weights.hidden + block.grn.eps);
            for (int64_t c = 0; c < stride; c += LANES)
                store(norms + c, 1.0f + load(block.grn.gamma + c, FLOAT32, LANES) * (load(norms + c, FLOAT32, LANES) * scale), FLOAT32, LANES);
        }
    }

    // The second pass over a slab.
    void second_pass(const void *x, void *out, const float *keep, const Kept &kept, int64_t number, typename P::Scratch &scratch) const {
        const Weights &w = block.weights;
        const int64_t first = kept.begin(number), count = (kept.begin(number + 1) - first) * width, stride = w.padded_hidden();
        const int64_t positions = height * width, begin = first * width * w.width;
        const float *beta = block.grn.beta;
        Value *hidden = kept.hidden + number * kept.slab_values;
        for (int64_t row = 0; row < count; row++) {
            const float *factors = kept.factors + (first * width + row) / positions * stride;
            for (int64_t c = 0; c < stride; c += 32) {
                const auto values = P::address(hidden, row, c, P::stride(stride));
                f32x16 left, right;
                P::load32(values, left, right);
                left = left * load(factors + c, FLOAT32, LANES) + load(beta + c, FLOAT32, LANES);
                right = right * load(factors + c + LANES, FLOAT32, LANES) + load(beta + c + LANES, FLOAT32, LANES);
                P::store32(values, left, right);
            }
        }
        project<P, DTYPE>(hidden, (const Value *)w.second, w, {0, w.padded_width()}, scratch, count, at(x, begin, DTYPE),
                          at(out, begin, DTYPE), keep, positions, first * width);
    }

    // The number of images whose positions are about a slab, at least one.
    int64_t images_at_once() const { return max(1, (block.rows_at_once(width) + height / 2) / height); }

    // Computes the block of images x in one thread. Returns false if memory ran out.
    bool images(const void *x, void *out, const float *keep, int64_t count, typename P::Scratch &scratch) const {
        const int64_t each = block.rows_at_once(width);
        const Kept kept = this->keep(count, max(1, (count * height + each / 2) / each));
        bool ok = kept.hidden != nullptr;
        for (int64_t s = 0; ok && s < kept.slabs; s++) ok = first_pass(x, kept, s, scratch);
        if (ok) reduce(kept);
        for (int64_t s = 0; ok && s < kept.slabs; s++) second_pass(x, out, keep, kept, s, scratch);
        return ok;
    }

    // Computes the block of images x in all threads, which take slabs of the same images. Returns OK or OUT_OF_MEMORY.
    int images_together(const void *x, void *out, const float *keep, int64_t count) const {
        typedef typename P::Scratch Scratch;
        const Kept kept = this->keep(count, slab_count(count * height, block.rows_at_once(width)));
        if (!kept.hidden) return OUT_OF_MEMORY;
        const int failed = for_each_slab<P>(kept.slabs, 1, [&](int64_t number, int64_t, Scratch &scratch) {
            return first_pass(x, kept, number, scratch);
        });
        if (failed) return failed;
        reduce(kept);
        return for_each_slab<P>(kept.slabs, 1, [&](int64_t number, int64_t, Scratch &scratch) {
            second_pass(x, out, keep, kept, number, scratch);
            return true;
        });
    }
};

// The block of n images x. Each thread takes images of its own and waits for no other, if the threads can share them evenly.
template <class P, int DTYPE>
static int grn_block(const void *x, const Block<P, DTYPE> &block, void *out, int64_t n, int64_t height, int64_t width) {
    const GrnBlock<P, DTYPE> grn = {block, height, width};
    const int64_t threads = omp_get_max_threads(), values = height * width * block.weights.width;  // of an image
    const auto from = [&](int64_t image) { return at(x, image * values, DTYPE); };
    const auto to = [&](int64_t image) { return at(out, image * values, DTYPE); };
    const auto keep = [&](int64_t image) { return block.keep ? block.keep + image : nullptr; };
    if (n % threads == 0 || n >= 8 * threads)
        return for_each_slab<P>(n, grn.images_at_once(), [&](int64_t first, int64_t last, typename P::Scratch &scratch) {
            return grn.images(from(first), to(first), keep(first), last - first, scratch);
        });
    const int64_t group = max(1, threads * block.rows_at_once(width) / height);
    int failed = OK;
    for (int64_t first = 0; !failed && first < n; first += group)
        failed = grn.images_together(from(first), to(first), keep(first), min(group, n - first));
    return failed;
}
