// What is called from Python. Operands are checked there; nothing here keeps a pointer.
#include "encoder.h"

#include <cstring>

namespace {

thread_local Arena arena;

template <class T> struct LinearScratch {
    int64_t stride;
    T* x;  // (rows, stride)
    Scratch<T> linear;

    LinearScratch(Carver& c, const Linear& l, int64_t rows, int64_t normed)
        : stride(row_stride<T>(l.in_features, ranks(l))), x(c.take<T>(rows * stride)),
          linear(c, rows, l.in_features, ranks(l), normed) {}
};

template <class T>
int linear(const Linear* l, const Norm* norm, const void* x_data, int64_t x_stride, int64_t rows,
           const void* residual_data, int64_t residual_stride, void* y, int64_t y_stride,
           int threads) {
    const int64_t normed = norm->weight ? l->out_features : 0, in = l->in_features;
    const int64_t block = block_of<T>(rows, threads);
    Carver counter{nullptr};
    LinearScratch<T>(counter, *l, scratch_rows<T>(rows, threads), normed);
    Carver c{arena.at_least(counter.bytes)};
    if (!c.next) return 1;
    const LinearScratch<T> s(c, *l, scratch_rows<T>(rows, threads), normed);
    const T *x = (const T*)x_data, *residual = (const T*)residual_data;
    const auto step = [&](T* copied, int64_t row) {
        return Step<T>{*l, copied, s.stride, (T*)y + row * y_stride, y_stride,
                       residual ? residual + row * residual_stride : nullptr, residual_stride,
                       norm->weight ? norm : nullptr};
    };
#pragma omp parallel num_threads(threads)
    if (const TileUse tiles; alone<T>(rows, threads)) {
        const int64_t own = omp_get_thread_num() * block;
        T* copied = s.x + own * s.stride;
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < rows; first += block) {
            const int64_t count = std::min(rows - first, block);
            copy_rows(x + first * x_stride, x_stride, count, in, copied, s.stride);
            run_alone(step(copied, first), count, s.linear.from(own));
        }
    } else {
#pragma omp for
        for (int64_t row = 0; row < rows; row++)
            copy_rows(x + row * x_stride, x_stride, 1, in, s.x + row * s.stride, s.stride);
        run_together(step(s.x, 0), rows, s.linear);
    }
    return 0;
}

template <class T>
int encoder(const Encoder* e, const int64_t* starts, int64_t sequences, void* x, int threads) {
    int64_t longest = 0;
    for (int64_t i = 0; i < sequences; i++)
        if (starts[i + 1] - starts[i] > longest) longest = starts[i + 1] - starts[i];
    const Most most(*e);
    Carver counter{nullptr};
    EncoderScratch<T>(counter, *e, most, starts, sequences, longest, threads);
    Carver c{arena.at_least(counter.bytes)};
    if (!c.next) return 1;
    const EncoderScratch<T> s(c, *e, most, starts, sequences, longest, threads);
    encode(*e, starts, sequences, (T*)x, threads, s);
    return 0;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// 0, or 1 where memory ran out. dtype: 0 is fp32, 1 bf16, 2 int8 weights with x and y in fp32.
EXPORT int lada_linear(int dtype, const Linear* l, const Norm* norm, const void* x,
                       int64_t x_stride, int64_t rows, const void* residual,
                       int64_t residual_stride, void* y, int64_t y_stride, int threads) {
    const auto run = dtype == 0 ? linear<float> : dtype == 1 ? linear<bf16> : linear<quantized>;
    return run(l, norm, x, x_stride, rows, residual, residual_stride, y, y_stride, threads);
}

// Whether each of `count` pairs of memory regions holds the same bytes.
EXPORT int lada_equal(int64_t count, const void* const* a, const void* const* b,
                      const int64_t* sizes) {
    for (int64_t i = 0; i < count; i++)
        if (std::memcmp(a[i], b[i], sizes[i])) return 0;
    return 1;
}

EXPORT int lada_encoder(int dtype, const Encoder* e, const int64_t* starts, int64_t sequences,
                        void* x, int threads) {
    const auto run = dtype == 0 ? encoder<float> : dtype == 1 ? encoder<bf16> : encoder<quantized>;
    return run(e, starts, sequences, x, threads);
}
