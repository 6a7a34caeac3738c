// C interface, called from Python, which checks the operands. No pointer is kept after a call.
#include "encoder.h"

#include <cstring>

namespace {

enum Dtype { FP32, BF16, INT8 };  // of the weights; with INT8, x and y are fp32

thread_local Workspace workspace;

template <class T> struct LinearScratch {
    int64_t stride;
    T* x;  // (rows, stride)
    Scratch<T> linear;

    LinearScratch(BumpAllocator& a, const Linear& l, int64_t rows, int64_t norm_features)
        : stride(row_stride<T>(l.in_features, padded_rank(l))), x(a.allocate<T>(rows * stride)),
          linear(a, rows, l.in_features, padded_rank(l), norm_features) {}
};

template <class T>
int linear(const Linear* l, const LayerNorm* norm, const void* x_data, int64_t x_stride,
           int64_t rows, const void* residual_data, int64_t residual_stride, void* y,
           int64_t y_stride, int threads) {
    const int64_t norm_features = norm->weight ? l->out_features : 0, in = l->in_features;
    const int64_t block = block_rows<T>(rows, threads);
    BumpAllocator counter{nullptr};
    LinearScratch<T>(counter, *l, scratch_rows<T>(rows, threads), norm_features);
    BumpAllocator a{workspace.at_least(counter.bytes)};
    if (!a.next) return 1;
    const LinearScratch<T> s(a, *l, scratch_rows<T>(rows, threads), norm_features);
    const T *x = (const T*)x_data, *residual = (const T*)residual_data;
    const auto step = [&](T* copied, int64_t row) {
        return Step<T>{*l, copied, s.stride, (T*)y + row * y_stride, y_stride,
                       residual ? residual + row * residual_stride : nullptr, residual_stride,
                       norm->weight ? norm : nullptr};
    };
#pragma omp parallel num_threads(threads)
    if (const TileGuard guard; row_parallel<T>(rows, threads)) {
        const int64_t own = omp_get_thread_num() * block;
        T* copied = s.x + own * s.stride;
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < rows; first += block) {
            const int64_t count = std::min(rows - first, block);
            copy_rows(x + first * x_stride, x_stride, count, in, copied, s.stride);
            run_serial(step(copied, first), count, s.linear.from(own));
        }
    } else {
#pragma omp for
        for (int64_t row = 0; row < rows; row++)
            copy_rows(x + row * x_stride, x_stride, 1, in, s.x + row * s.stride, s.stride);
        run_parallel(step(s.x, 0), rows, s.linear);
    }
    return 0;
}

template <class T>
int encoder(const Encoder* e, const int64_t* starts, int64_t sequences, void* x, int threads) {
    int64_t longest = 0;
    for (int64_t i = 0; i < sequences; i++)
        if (starts[i + 1] - starts[i] > longest) longest = starts[i + 1] - starts[i];
    const MaxSizes sizes(*e);
    BumpAllocator counter{nullptr};
    EncoderScratch<T>(counter, *e, sizes, starts, sequences, longest, threads);
    BumpAllocator a{workspace.at_least(counter.bytes)};
    if (!a.next) return 1;
    const EncoderScratch<T> s(a, *e, sizes, starts, sequences, longest, threads);
    encode(*e, starts, sequences, (T*)x, threads, s);
    return 0;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// y = LN(act(linear(x)) + residual), see `linear.h`. Strides in elements. Returns 0, or 1 where
// memory ran out.
EXPORT int lada_linear(int dtype, const Linear* l, const LayerNorm* norm, const void* x,
                       int64_t x_stride, int64_t rows, const void* residual,
                       int64_t residual_stride, void* y, int64_t y_stride, int threads) {
    const auto run =
        dtype == FP32 ? linear<float> : dtype == BF16 ? linear<bf16> : linear<quantized>;
    return run(l, norm, x, x_stride, rows, residual, residual_stride, y, y_stride, threads);
}

// 1 if each of `count` pairs of memory regions holds the same bytes, else 0.
EXPORT int lada_equal(int64_t count, const void* const* a, const void* const* b,
                      const int64_t* sizes) {
    for (int64_t i = 0; i < count; i++)
        if (std::memcmp(a[i], b[i], sizes[i])) return 0;
    return 1;
}

// Replaces x by the encoder's output, see `encode`. Returns 0, or 1 where memory ran out.
EXPORT int lada_encoder(int dtype, const Encoder* e, const int64_t* starts, int64_t sequences,
                        void* x, int threads) {
    const auto run =
        dtype == FP32 ? encoder<float> : dtype == BF16 ? encoder<bf16> : encoder<quantized>;
    return run(e, starts, sequences, x, threads);
}
