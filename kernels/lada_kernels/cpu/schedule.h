// Distribution of a linear's work over the threads of a parallel region. With many rows, each
// thread takes a block of them through a whole chain of linears, so that intermediate results stay
// in its cache; with few, the threads share the panels of each linear.
//
// OpenMP is torch's own: the library is linked against none and finds the one that torch has
// loaded, so that there is one pool of threads.
#pragma once
#include <omp.h>

#include <type_traits>

#include "memory.h"
#include "quantized.h"

namespace {

// MC: rows of a block. Two row tiles; with AMX two or four, so that products outlast the loads of
// their weights, as long as there are two such blocks for each thread.
template <class T> int64_t block_rows(int64_t rows, int threads) {
    if (!USES_AMX<T>) return 16;
    return threads == 1 || rows >= 2 * threads * 64 ? 64 : 32;
}

template <class T> int64_t block_count(int64_t rows, int threads) {
    const int64_t block = block_rows<T>(rows, threads);
    return (rows + block - 1) / block;
}

// True if there are enough blocks of rows for the threads to work on blocks of their own: two for
// each thread, to balance the load.
template <class T> bool row_parallel(int64_t rows, int threads) {
    return threads == 1 || block_count<T>(rows, threads) >= 2 * threads;
}

// Rows of intermediate results: a block for each thread if row-parallel, otherwise all.
template <class T> int64_t scratch_rows(int64_t rows, int threads) {
    const bool split = row_parallel<T>(rows, threads);
    const int64_t blocks = split ? threads : block_count<T>(rows, threads);
    return blocks * block_rows<T>(rows, threads);
}

template <class T> int64_t tile_count(int64_t rows) {
    return (rows + TILE_ROWS<T> - 1) / TILE_ROWS<T>;
}

inline int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

template <class T> constexpr bool QUANTIZED = std::is_same<T, quantized>::value;

// Operands and epilogue of a linear: y = gate(LN(act(linear(x)) + residual)).
template <class T, class Y = T> struct Step {
    const Linear& linear;
    T* x;  // whole row tiles
    int64_t x_stride;
    Y* y = nullptr;
    int64_t y_stride = 0;
    const T* residual = nullptr;
    int64_t residual_stride = 0;
    const LayerNorm* norm = nullptr;
    T* residual_out = nullptr;  // rows before LN, `residual_stride` apart; null to drop them
    Activation gate = NONE;     // gated linear unit: y is gate(first half) * second half
};

// Elements from a row of x to the next, with room for x v^T: a multiple of 32, so that rows begin
// at cache lines, and at VNNI groups.
template <class T> int64_t row_stride(int64_t features, int64_t rank) {
    return round_up(features + (QUANTIZED<T> ? 0 : rank), 32);
}

// Scratch memory of a linear, for as many rows as are computed at a time.
template <class T> struct Scratch {
    float* sums;  // rows before LN
    int64_t sums_stride;
    Rows<T> quantized_x;  // int8 only; other dtypes read x in place

    Scratch(BumpAllocator& a, int64_t rows, int64_t features, int64_t rank, int64_t norm_features)
        : sums(a.allocate<float>(rows * round_up(norm_features, LANES))),
          sums_stride(round_up(norm_features, LANES)) {
        if constexpr (QUANTIZED<T>) {
            const int64_t groups = group_count<T>(features) + group_count<T>(rank);
            const int64_t stride = round_up(groups, 16);
            quantized_x.groups = a.allocate<uint32_t>(rows * stride);
            quantized_x.stride = stride;
            quantized_x.scales = a.allocate<float>(rows * 2);
            quantized_x.xv = a.allocate<float>(rows * rank);
            quantized_x.xv_stride = rank;
        }
    }

    // Scratch memory of the rows from `row` on.
    Scratch from(int64_t row) const {
        Scratch s = *this;
        s.sums += row * sums_stride;
        if constexpr (QUANTIZED<T>) s.quantized_x = quantized_x.from(row);
        return s;
    }
};

// Row tile i of a step's x.
template <class T, class Y>
Rows<T> tile_of(const Step<T, Y>& step, int64_t i, const Scratch<T>& s) {
    if constexpr (QUANTIZED<T>)
        return s.quantized_x.from(i * TILE_ROWS<T>);
    else
        return {(uint32_t*)(step.x + i * TILE_ROWS<T> * step.x_stride),
                step.x_stride / Group<T>::SIZE};
}

// Rows of tile i that exist.
template <class T> int64_t rows_in(int64_t i, int64_t rows) {
    return std::min<int64_t>(rows - i * TILE_ROWS<T>, TILE_ROWS<T>);
}

template <class T, class Y>
void quantize_x(const Step<T, Y>& step, int64_t i, int64_t rows, const Scratch<T>& s) {
    quantize_x(step.linear, step.x + i * TILE_ROWS<T> * step.x_stride, step.x_stride,
               rows_in<T>(i, rows), tile_of(step, i, s));
}

// Output of one panel for row tile i; with a norm, fp32 sums that `row_epilogue` normalises.
template <class T, class Y>
void output_panel(const Step<T, Y>& step, int panel, int64_t i, int64_t rows,
                  const Scratch<T>& s) {
    const int64_t row = i * TILE_ROWS<T>, column = (int64_t)panel * step.linear.sparse_u.nr;
    const Rows<T> x = tile_of(step, i, s);
    const T* residual =
        step.residual ? step.residual + row * step.residual_stride + column : nullptr;
    if (step.norm)
        output_panel(step.linear, panel, x, rows_in<T>(i, rows),
                     Output<T, float>{s.sums + row * s.sums_stride + column, s.sums_stride,
                                      residual, step.residual_stride});
    else
        output_panel(step.linear, panel, x, rows_in<T>(i, rows),
                     Output<T, Y>{step.y + row * step.y_stride + column, step.y_stride, residual,
                                  step.residual_stride});
}

// Epilogue that needs a whole row: LayerNorm and gate.
template <class T, class Y>
void row_epilogue(const Step<T, Y>& step, int64_t row, const Scratch<T>& s) {
    Y* y = step.y + row * step.y_stride;
    const int64_t n = step.linear.out_features;
    if (step.norm) {
        const float* sums = s.sums + row * s.sums_stride;
        if (step.residual_out) convert(sums, n, step.residual_out + row * step.residual_stride);
        normalize(sums, n, *step.norm, y);
    }
    if (step.gate != NONE) gate(y, n / 2, step.gate);
}

template <class T, class Y> bool has_row_epilogue(const Step<T, Y>& step) {
    return step.norm || step.gate != NONE;
}

// x v^T of a block of rows, stored behind x, by the calling thread.
template <class T, class Y>
void multiply_v_serial(const Step<T, Y>& step, int64_t rows, const Scratch<T>& s) {
    const int64_t tiles = tile_count<T>(rows);
    for (int64_t i = 0; i < tiles; i++) quantize_x(step, i, rows, s);
    for (int panel = 0; panel < step.linear.v.count; panel++)
        for (int64_t i = 0; i < tiles; i++) multiply_v(step.linear, panel, tile_of(step, i, s));
    for (int64_t i = 0; i < tiles; i++) quantize_xv(step.linear, tile_of(step, i, s));
}

// A linear on a block of rows, by the calling thread.
template <class T, class Y>
void run_serial(const Step<T, Y>& step, int64_t rows, const Scratch<T>& s) {
    multiply_v_serial(step, rows, s);
    for (int panel = 0; panel < step.linear.sparse_u.count; panel++)
        for (int64_t i = 0; i < tile_count<T>(rows); i++) output_panel(step, panel, i, rows, s);
    if (has_row_epilogue(step))
        for (int64_t row = 0; row < rows; row++) row_epilogue(step, row, s);
}

// x v^T of all rows, by all threads of the region, each of which must call it.
template <class T, class Y>
void multiply_v_parallel(const Step<T, Y>& step, int64_t rows, const Scratch<T>& s) {
    const int64_t tiles = tile_count<T>(rows);
    if (QUANTIZED<T>) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tiles; i++) quantize_x(step, i, rows, s);
    }
    if (step.linear.v.count) {
#pragma omp for schedule(static)
        for (int panel = 0; panel < step.linear.v.count; panel++)
            for (int64_t i = 0; i < tiles; i++) multiply_v(step.linear, panel, tile_of(step, i, s));
        if (QUANTIZED<T>) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < tiles; i++) quantize_xv(step.linear, tile_of(step, i, s));
        }
    }
}

// A linear on all rows, by all threads of the region, each of which must call it.
template <class T, class Y>
void run_parallel(const Step<T, Y>& step, int64_t rows, const Scratch<T>& s) {
    multiply_v_parallel(step, rows, s);
#pragma omp for schedule(static)
    for (int panel = 0; panel < step.linear.sparse_u.count; panel++)
        for (int64_t i = 0; i < tile_count<T>(rows); i++) output_panel(step, panel, i, rows, s);
    if (has_row_epilogue(step)) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) row_epilogue(step, row, s);
    }
}

}  // namespace
