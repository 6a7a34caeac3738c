// Who computes what, in a parallel region. With many rows a thread takes a block of them through a
// whole chain of layers, so that what it writes is in its cache when it reads it; with few, the
// threads share the stripes of each layer.
//
// OpenMP is torch's own: the library is linked against none and finds the one torch has loaded, so
// that there is one pool of threads.
#pragma once
#include <omp.h>

#include <type_traits>

#include "quantized.h"
#include "memory.h"

namespace {

// Rows that a thread takes at a time: with the matrix unit, enough for products to outlast the loads
// of their weights, as long as there are two such blocks for each thread.
template <class T> int64_t block_of(int64_t rows, int threads) {
    if (!TILED<T>) return 16;
    return threads == 1 || rows >= 2 * threads * 64 ? 64 : 32;
}

template <class T> int64_t blocks_of(int64_t rows, int threads) {
    const int64_t block = block_of<T>(rows, threads);
    return (rows + block - 1) / block;
}

// Whether there are rows enough for each thread to have its own.
template <class T> bool alone(int64_t rows, int threads) {
    return threads == 1 || blocks_of<T>(rows, threads) >= 2 * threads;
}

// Rows of intermediate results: all of them if shared, otherwise a block for each thread.
template <class T> int64_t scratch_rows(int64_t rows, int threads) {
    const int64_t blocks = alone<T>(rows, threads) ? threads : blocks_of<T>(rows, threads);
    return blocks * block_of<T>(rows, threads);
}

template <class T> int64_t tiles_of(int64_t rows) { return (rows + TILE<T> - 1) / TILE<T>; }

inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <class T> constexpr bool QUANTIZED = std::is_same<T, quantized>::value;

// One linear layer on some rows.
template <class T, class Y = T> struct Step {
    const Linear& linear;
    T* x;  // whole tiles of rows, `row_stride` apart
    int64_t x_stride;
    Y* y = nullptr;
    int64_t y_stride = 0;
    const T* residual = nullptr;
    int64_t residual_stride = 0;
    const Norm* norm = nullptr;
    T* total = nullptr;  // rows `residual_stride` apart: where they go before they are normalised
    Activation gate = NONE;  // y is gate(its first half) * its second
};

// From a row of x to the next one, with room between them for x v^T.
template <class T> int64_t row_stride(int64_t features, int64_t ranks) {
    return padded(features + (QUANTIZED<T> ? 0 : ranks), 32);
}

// What a linear layer needs beside x and y, for as many rows as are computed at a time.
template <class T> struct Scratch {
    float* sums;  // of rows that are to be normalised
    int64_t sums_stride;
    Rows<T> quantized_x;  // of int8; others read x where it is

    Scratch(Carver& c, int64_t rows, int64_t features, int64_t ranks, int64_t normed)
        : sums(c.take<float>(rows * padded(normed, LANES))), sums_stride(padded(normed, LANES)) {
        if constexpr (QUANTIZED<T>) {
            const int64_t stride = padded(units<T>(features) + units<T>(ranks), 16);
            quantized_x.units = c.take<uint32_t>(rows * stride);
            quantized_x.stride = stride;
            quantized_x.scales = c.take<float>(rows * 2);
            quantized_x.ranks = c.take<float>(rows * ranks);
            quantized_x.ranks_stride = ranks;
        }
    }

    // That of the rows from `row` on.
    Scratch from(int64_t row) const {
        Scratch s = *this;
        s.sums += row * sums_stride;
        if constexpr (QUANTIZED<T>) s.quantized_x = quantized_x.from(row);
        return s;
    }
};

// Tile i of a step's rows, and how many of them there are.
template <class T, class Y>
Rows<T> tile_of(const Step<T, Y>& step, int64_t i, const Scratch<T>& s) {
    if constexpr (QUANTIZED<T>)
        return s.quantized_x.from(i * TILE<T>);
    else
        return {(uint32_t*)(step.x + i * TILE<T> * step.x_stride), step.x_stride / Unit<T>::TERMS};
}

template <class T> int64_t rows_in(int64_t i, int64_t rows) {
    return std::min<int64_t>(rows - i * TILE<T>, TILE<T>);
}

template <class T, class Y>
void quantize_x(const Step<T, Y>& step, int64_t i, int64_t rows, const Scratch<T>& s) {
    quantize_x(step.linear, step.x + i * TILE<T> * step.x_stride, step.x_stride,
               rows_in<T>(i, rows), tile_of(step, i, s));
}

template <class T, class Y>
void expand(const Step<T, Y>& step, int stripe, int64_t i, int64_t rows, const Scratch<T>& s) {
    const int64_t row = i * TILE<T>, column = (int64_t)stripe * step.linear.up.width;
    const Rows<T> x = tile_of(step, i, s);
    const T* residual =
        step.residual ? step.residual + row * step.residual_stride + column : nullptr;
    if (step.norm)
        expand(step.linear, stripe, x, rows_in<T>(i, rows),
               Output<T, float>{s.sums + row * s.sums_stride + column, s.sums_stride, residual,
                                step.residual_stride});
    else
        expand(step.linear, stripe, x, rows_in<T>(i, rows),
               Output<T, Y>{step.y + row * step.y_stride + column, step.y_stride, residual,
                            step.residual_stride});
}

// What is left to do once a row is whole.
template <class T, class Y>
void complete(const Step<T, Y>& step, int64_t row, const Scratch<T>& s) {
    Y* y = step.y + row * step.y_stride;
    const int64_t n = step.linear.out_features;
    if (step.norm) {
        const float* sums = s.sums + row * s.sums_stride;
        if (step.total) convert(sums, n, step.total + row * step.residual_stride);
        normalize(sums, n, *step.norm, y);
    }
    if (step.gate != NONE) gate(y, n / 2, step.gate);
}

template <class T, class Y> bool completes(const Step<T, Y>& step) {
    return step.norm || step.gate != NONE;
}

// By one thread, of a block of rows: x v^T, to where `expand` finds it.
template <class T, class Y>
void reduce_alone(const Step<T, Y>& step, int64_t rows, const Scratch<T>& s) {
    const int64_t tiles = tiles_of<T>(rows);
    for (int64_t i = 0; i < tiles; i++) quantize_x(step, i, rows, s);
    for (int stripe = 0; stripe < step.linear.down.count; stripe++)
        for (int64_t i = 0; i < tiles; i++) reduce(step.linear, stripe, tile_of(step, i, s));
    for (int64_t i = 0; i < tiles; i++) quantize_ranks(step.linear, tile_of(step, i, s));
}

template <class T, class Y>
void run_alone(const Step<T, Y>& step, int64_t rows, const Scratch<T>& s) {
    reduce_alone(step, rows, s);
    for (int stripe = 0; stripe < step.linear.up.count; stripe++)
        for (int64_t i = 0; i < tiles_of<T>(rows); i++) expand(step, stripe, i, rows, s);
    if (completes(step))
        for (int64_t row = 0; row < rows; row++) complete(step, row, s);
}

// By all threads of the region, each of which must call it.
template <class T, class Y>
void reduce_together(const Step<T, Y>& step, int64_t rows, const Scratch<T>& s) {
    const int64_t tiles = tiles_of<T>(rows);
    if (QUANTIZED<T>) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tiles; i++) quantize_x(step, i, rows, s);
    }
    if (step.linear.down.count) {
#pragma omp for schedule(static)
        for (int stripe = 0; stripe < step.linear.down.count; stripe++)
            for (int64_t i = 0; i < tiles; i++) reduce(step.linear, stripe, tile_of(step, i, s));
        if (QUANTIZED<T>) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < tiles; i++) quantize_ranks(step.linear, tile_of(step, i, s));
        }
    }
}

template <class T, class Y>
void run_together(const Step<T, Y>& step, int64_t rows, const Scratch<T>& s) {
    reduce_together(step, rows, s);
#pragma omp for schedule(static)
    for (int stripe = 0; stripe < step.linear.up.count; stripe++)
        for (int64_t i = 0; i < tiles_of<T>(rows); i++) expand(step, stripe, i, rows, s);
    if (completes(step)) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) complete(step, row, s);
    }
}

}  // namespace
