// What is called from Python. Operands are checked there; nothing here keeps a pointer.
#include <utility>

#include "encoder.h"

namespace {

thread_local Arena arena;

template <class T>
int linear(const Linear* l, const Norm* norm, const void* x, int64_t x_stride, int64_t rows,
           const void* residual, int64_t residual_stride, void* y, int64_t y_stride, int threads) {
    const int64_t sums = norm->weight ? l->out_features : 0;
    const auto carve = [&](Carver c) {
        Scratch s(c, scratch_rows(rows, threads), panel_units<T>(*l), sums);
        return std::pair{s, c.bytes};
    };
    char* memory = arena.at_least(carve({nullptr}).second);
    if (!memory) return 1;
    const Scratch s = carve({memory}).first;
    const Step<T> step{*l, (const T*)x, x_stride, (T*)y, y_stride, (const T*)residual,
                       residual_stride, norm->weight ? norm : nullptr};
#pragma omp parallel num_threads(threads)
    if (alone(rows, threads)) {
        const Scratch own = s.from(omp_get_thread_num() * BLOCK);
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < rows; first += BLOCK)
            run_alone(from_row(step, first), rows - first < BLOCK ? rows - first : BLOCK, own);
    } else {
        run_together(step, rows, s);
    }
    return 0;
}

template <class T>
int encoder(const Encoder* e, const int64_t* starts, int64_t sequences, void* x, int threads) {
    int64_t longest = 0;
    for (int64_t i = 0; i < sequences; i++)
        if (starts[i + 1] - starts[i] > longest) longest = starts[i + 1] - starts[i];
    Carver counter{nullptr};
    EncoderScratch<T>(counter, *e, starts[sequences], longest, threads);
    Carver c{arena.at_least(counter.bytes)};
    if (!c.next) return 1;
    encode(*e, starts, sequences, (T*)x, threads,
           EncoderScratch<T>(c, *e, starts[sequences], longest, threads));
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

EXPORT int lada_encoder(int dtype, const Encoder* e, const int64_t* starts, int64_t sequences,
                        void* x, int threads) {
    const auto run = dtype == 0 ? encoder<float> : dtype == 1 ? encoder<bf16> : encoder<quantized>;
    return run(e, starts, sequences, x, threads);
}
