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

constexpr int64_t BLOCK = 32;  // rows that a thread takes at a time

inline int64_t blocks_of(int64_t rows) { return (rows + BLOCK - 1) / BLOCK; }

// Whether there are rows enough for each thread to have its own.
inline bool alone(int64_t rows, int threads) {
    return threads == 1 || blocks_of(rows) >= 2 * threads;
}

// Rows of intermediate results: all of them if shared, otherwise a block for each thread.
inline int64_t scratch_rows(int64_t rows, int threads) {
    return (alone(rows, threads) ? threads : blocks_of(rows)) * BLOCK;
}

struct Scratch {
    uint32_t* panels;
    float* sums;  // of rows that are to be normalised
    int64_t panel_stride, sums_stride;

    Scratch(Carver& c, int64_t rows, int64_t panel_stride, int64_t sums_stride)
        : panel_stride(panel_stride), sums_stride(sums_stride) {
        panels = c.take<uint32_t>(rows * panel_stride);
        sums = c.take<float>(rows * sums_stride);
    }

    // That of the rows from `row` on, a multiple of 8.
    Scratch from(int64_t row) const {
        Scratch s = *this;
        s.panels += row * panel_stride;
        s.sums += row * sums_stride;
        return s;
    }

    uint32_t* panel(int64_t i) const { return panels + i * PANEL * panel_stride; }
};

// One linear layer on some rows.
template <class T> struct Step {
    const Linear& linear;
    const T* x;
    int64_t x_stride;
    T* y;
    int64_t y_stride;
    const T* residual = nullptr;
    int64_t residual_stride = 0;
    const Norm* norm = nullptr;
};

inline int64_t panels_of(int64_t rows) { return (rows + PANEL - 1) / PANEL; }

template <class T> void pack(const Step<T>& step, int64_t i, int64_t rows, const Scratch& s) {
    const int64_t row = i * PANEL, left = rows - row < PANEL ? rows - row : PANEL;
    pack_x(step.linear, step.x + row * step.x_stride, step.x_stride, left, s.panel(i));
}

template <class T>
void expand(const Step<T>& step, int stripe, int64_t i, int64_t rows, const Scratch& s) {
    const int64_t row = i * PANEL, left = rows - row < PANEL ? rows - row : PANEL;
    const T* residual = step.residual ? step.residual + row * step.residual_stride : nullptr;
    if (step.norm)
        expand(step.linear, stripe, s.panel(i), left,
               Output<T, float>{s.sums + row * s.sums_stride, s.sums_stride, residual,
                                step.residual_stride});
    else
        expand(step.linear, stripe, s.panel(i), left,
               Output<T, T>{step.y + row * step.y_stride, step.y_stride, residual,
                            step.residual_stride});
}

template <class T> void normalize(const Step<T>& step, int64_t row, const Scratch& s) {
    normalize(s.sums + row * s.sums_stride, step.linear.out_features, *step.norm,
              step.y + row * step.y_stride);
}

// By one thread: at most BLOCK rows.
template <class T> void run_alone(const Step<T>& step, int64_t rows, const Scratch& s) {
    const int64_t panels = panels_of(rows);
    for (int64_t i = 0; i < panels; i++) pack(step, i, rows, s);
    for (int stripe = 0; stripe < step.linear.down.count; stripe++)
        for (int64_t i = 0; i < panels; i++) reduce<T>(step.linear, stripe, s.panel(i));
    for (int64_t i = 0; i < panels; i++) finish_reduction<T>(step.linear, s.panel(i));
    for (int stripe = 0; stripe < step.linear.up.count; stripe++)
        for (int64_t i = 0; i < panels; i++) expand(step, stripe, i, rows, s);
    if (step.norm)
        for (int64_t row = 0; row < rows; row++) normalize(step, row, s);
}

// By all threads of the region, each of which must call it.
template <class T> void run_together(const Step<T>& step, int64_t rows, const Scratch& s) {
    const int64_t panels = panels_of(rows);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < panels; i++) pack(step, i, rows, s);
#pragma omp for schedule(dynamic)
    for (int stripe = 0; stripe < step.linear.down.count; stripe++)
        for (int64_t i = 0; i < panels; i++) reduce<T>(step.linear, stripe, s.panel(i));
    if (std::is_same<T, quantized>() && step.linear.down.count) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < panels; i++) finish_reduction<T>(step.linear, s.panel(i));
    }
#pragma omp for schedule(dynamic)
    for (int stripe = 0; stripe < step.linear.up.count; stripe++)
        for (int64_t i = 0; i < panels; i++) expand(step, stripe, i, rows, s);
    if (step.norm) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) normalize(step, row, s);
    }
}

template <class T> Step<T> from_row(Step<T> step, int64_t row) {
    step.x += row * step.x_stride;
    step.y += row * step.y_stride;
    if (step.residual) step.residual += row * step.residual_stride;
    return step;
}

}  // namespace
