// y = LN(act([x | x v^T] S^T + bias) + residual), S block-sparse: low rank is an S whose only blocks
// are u, beside v; a dense weight is an S without holes.
//
// The output's columns are stripes of 16 or 32. Of each, S stores runs of rows that hold weights:
// where a run meets x, and the weights in the order in which they are met. So a product is a walk
// over two streams, whatever the blocks were.
#pragma once
#include <algorithm>

#include "activation.h"
#include "tiles.h"

extern "C" {

// Stripes of columns, each a list of runs. Owned by the caller.
struct Stripes {
    const uint32_t* weights;  // (units, width): of each stripe, run after run
    const int64_t* first;     // (stripes + 1,): the first unit of each
    const int32_t* runs;      // (stripes + 1,): the first run of each
    const int32_t* starts;    // (runs,): the first unit of x that a run meets
    const int32_t* lengths;   // (runs,): in units
    const float* scales;      // int8: (stripes, 2, width), of weights that meet x, and x v^T
    const int32_t* offsets;   // int8: likewise, 128 times the sum of such weights
    int32_t count;
    int32_t width;            // 16 or 32
    int32_t rest;             // greatest common divisor of the lengths modulo DEPTH
};

struct Linear {
    Stripes down;       // v: (in_features, rank), or none
    Stripes up;         // S: (x's units and then those of x v^T, out_features)
    const float* bias;  // (up.count * up.width,)
    int64_t in_features;
    int64_t out_features;
    int32_t activation;
};

struct Norm {
    const float* weight;  // (out_features,), or null for no norm
    const float* bias;
    float eps;
};

}  // extern "C"

namespace {

// Rows of x that meet a stripe at a time.
template <class T> constexpr int TILE = TILED<T> ? 16 : 8;
#if defined(__AVX512F__)
constexpr int ROWS = 8;  // of those, how many sums are held in registers
#else
constexpr int ROWS = 4;
#endif
constexpr int MAX_WIDTH = 32;  // of a stripe

inline int64_t ranks(const Linear& l) { return (int64_t)l.down.count * l.down.width; }

// Rows as products read them, in units: x, and behind it x v^T.
template <class T> struct Rows {
    uint32_t* units;
    int64_t stride;
};

// The first `terms` of some rows, and zeros to the end of their last unit.
template <class T>
void copy_rows(const T* x, int64_t x_stride, int64_t rows, int64_t terms, T* y, int64_t y_stride) {
    for (int64_t row = 0; row < rows; row++, x += x_stride, y += y_stride) {
        std::copy_n(x, terms, y);
        for (int64_t i = terms; i < units<T>(terms) * Unit<T>::TERMS; i++) y[i] = T{};
    }
}

// Runs of one stripe, and its weights.
struct Stripe {
    const uint32_t* weights;
    const int32_t* starts;
    const int32_t* lengths;
    int32_t runs;
    int32_t width;
    int32_t rest;
};

inline Stripe stripe_of(const Stripes& s, int i) {
    const int32_t run = s.runs[i];
    return {s.weights + s.first[i] * s.width, s.starts + run, s.lengths + run, s.runs[i + 1] - run,
            s.width, s.rest};
}

// A tile times a stripe; `finish` gets each vector of sums with its row and first column. Inlined,
// since with few terms, as of x v^T, what a call costs shows.
template <class T, int VECS, class Finish>
__attribute__((always_inline)) inline void for_each_sum(Stripe s, Rows<T> x, Finish finish) {
    for (int column = 0; column < s.width; column += VECS * LANES) {
        for (int row = 0; row < TILE<T>; row += ROWS) {
            typename Unit<T>::Sum acc[ROWS][VECS] = {};
            const uint32_t* w = s.weights + column;
            for (int32_t run = 0; run < s.runs; run++) {
                const uint32_t* unit = x.units + row * x.stride + s.starts[run];
                const int32_t length = s.lengths[run];
#pragma GCC unroll 4
                for (int32_t i = 0; i < length; i++, unit++, w += s.width) {
                    uvec weights[VECS];
#pragma GCC unroll 2
                    for (int v = 0; v < VECS; v++) weights[v] = load<uvec>(w + v * LANES);
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; r++) {
                        const uint32_t u = load<uint32_t>(unit + r * x.stride);
#pragma GCC unroll 2
                        for (int v = 0; v < VECS; v++)
                            acc[r][v] = Unit<T>::multiply_add(u, weights[v], acc[r][v]);
                    }
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 2
                for (int v = 0; v < VECS; v++) finish(row + r, column + v * LANES, acc[r][v]);
            }
        }
    }
}

#if defined(__AMX_TILE__)
// The same by the matrix unit.
template <class T, int VECS, class Finish>
__attribute__((always_inline)) inline void for_each_tiled_sum(Stripe s, Rows<T> x, Finish finish) {
    constexpr bool WIDE = VECS == 2;
    const int64_t x_stride = 4 * x.stride, w_stride = VECS * TILE_BYTES;
    const uint32_t* w = s.weights;
    shape_tiles(s.rest);
    clear_tile<SUMS>();
    if constexpr (WIDE) clear_tile<SUMS_RIGHT>();
    for (int32_t run = 0; run < s.runs; run++) {
        const uint32_t* unit = x.units + s.starts[run];
        int32_t left = s.lengths[run];
        for (; left >= DEPTH; left -= DEPTH, unit += DEPTH, w += DEPTH * s.width)
            multiply_add_tiles<T, WIDE, X, LEFT, RIGHT>(unit, x_stride, w, w_stride);
        for (; left > 0; left -= s.rest, unit += s.rest, w += s.rest * s.width)
            multiply_add_tiles<T, WIDE, X_REST, LEFT_REST, RIGHT_REST>(unit, x_stride, w, w_stride);
    }
    typedef typename Unit<T>::Sum Sum;
    alignas(64) Sum sums[TILE<T>][VECS];
    store_tile<SUMS>(sums, w_stride);
    if constexpr (WIDE) store_tile<SUMS_RIGHT>(&sums[0][1], w_stride);
    for (int r = 0; r < TILE<T>; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < VECS; v++) finish(r, v * LANES, sums[r][v]);
    }
}
#endif

template <class T, class Finish>
__attribute__((always_inline)) inline void for_each_sum(Stripe s, Rows<T> x, Finish finish) {
#if defined(__AMX_TILE__)
    if constexpr (TILED<T>) {
        if (s.width >= 2 * LANES) return for_each_tiled_sum<T, 2>(s, x, finish);
        return for_each_tiled_sum<T, 1>(s, x, finish);
    }
#endif
    if (s.width >= 2 * LANES)
        for_each_sum<T, 2>(s, x, finish);
    else
        for_each_sum<T, 1>(s, x, finish);
}

// A tile times a stripe; rows of sums are `stride` apart.
template <class T> void multiply(Stripe s, Rows<T> x, float* sums, int64_t stride) {
    for_each_sum<T>(s, x, [=](int row, int column, vec sum) {
        store(sums + row * stride + column, sum);
    });
}

// A tile through a linear: x v^T, stripe by stripe, to where the rows hold it; then the output's
// columns, stripe by stripe. Of int8, x is quantized before and x v^T in between.

template <class T> void quantize_x(const Linear&, const T*, int64_t, int64_t, Rows<T>) {}

template <class T> void reduce(const Linear& l, int stripe, Rows<T> x) {
    T* y = (T*)(x.units + units<T>(l.in_features)) + (int64_t)stripe * l.down.width;
    for_each_sum<T>(stripe_of(l.down, stripe), x, [=](int row, int column, vec sum) {
        store_narrow(y + row * x.stride * Unit<T>::TERMS + column, sum);
    });
}

template <class T> void quantize_ranks(const Linear&, Rows<T>) {}

// `finish` gets each vector of the sums of an output's stripe, bias within.
template <class T, class Finish>
__attribute__((always_inline)) inline void multiply_up(const Linear& l, int stripe, Rows<T> x,
                                                       Finish finish) {
    const float* bias = l.bias + (int64_t)stripe * l.up.width;
    for_each_sum<T>(stripe_of(l.up, stripe), x, [=](int row, int column, vec sum) {
        finish(row, column, sum + load<vec>(bias + column));
    });
}

// Where finished rows go: y itself, or fp32 sums that are normalised once a row is whole.
template <class T, class Y> struct Output {
    Y* y;  // of the stripe's first column
    int64_t y_stride;
    const T* residual;  // likewise, or null
    int64_t residual_stride;

    // Up to a vector of a row, with `left` columns from `column` on.
    void put(int64_t row, int64_t column, vec v, int64_t left) const {
        if (residual) v += load_first(residual + row * residual_stride + column, left);
        store_first(y + row * y_stride + column, v, left);
    }
};

// A stripe of the output of a tile's first rows: from registers where nothing is in the way.
template <class T, class Y>
void expand(const Linear& l, int stripe, Rows<T> x, int64_t rows, Output<T, Y> out) {
    const int64_t width = l.up.width, left = l.out_features - stripe * width;
    if (l.activation == NONE && left >= width)
        return multiply_up(l, stripe, x, [=](int row, int column, vec sum) {
            if (row < rows) out.put(row, column, sum, LANES);
        });
    alignas(64) float sums[TILE<T> * MAX_WIDTH];
    multiply_up(l, stripe, x, [=, &sums](int row, int column, vec sum) {
        store(sums + row * width + column, sum);
    });
    activate(sums, rows * width, (Activation)l.activation);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t n = 0; n < std::min(left, width); n += LANES)
            out.put(row, n, load<vec>(sums + row * width + n), left - n);
}

// The sum of f over a row: four vectors at a time, whose additions need not wait for each other.
template <class X, class F> float sum_of(const X* row, int64_t n, F f) {
    vec totals[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int j = 0; j < 4; j++) totals[j] += f(load_wide(row + i + j * LANES));
    float rest = 0;
    for (; i < n; i++) rest += f(splat(widen(row[i])))[0];
    return sum((totals[0] + totals[1]) + (totals[2] + totals[3])) + rest;
}

template <class X, class Y> void convert(const X* row, int64_t n, Y* y) {
    for (int64_t i = 0; i < n; i += LANES) store_first(y + i, load_first(row + i, n - i), n - i);
}

// y[:n] = activation(y[:n]) * y[n:].
template <class Y> void gate(Y* y, int64_t n, Activation activation) {
    for (int64_t first = 0; first < n; first += MAX_WIDTH, y += MAX_WIDTH) {
        alignas(64) float values[MAX_WIDTH] = {};
        const int64_t left = std::min<int64_t>(n - first, MAX_WIDTH);
        for (int64_t i = 0; i < left; i += LANES) store(values + i, load_first(y + i, left - i));
        activate(values, MAX_WIDTH, activation);
        for (int64_t i = 0; i < left; i += LANES)
            store_first(y + i, load<vec>(values + i) * load_first(y + n + i, left - i), left - i);
    }
}

// LayerNorm of a row, in two passes over fp32; without a weight, the row as it is.
template <class X, class Y> void normalize(const X* row, int64_t n, const Norm& norm, Y* y) {
    if (!norm.weight) return convert(row, n, y);
    const float mean = sum_of(row, n, [](vec v) { return v; }) / n;
    const float squares = sum_of(row, n, [=](vec v) { return (v - mean) * (v - mean); });
    const float scale = 1.0f / __builtin_sqrtf(squares / n + norm.eps);
    for (int64_t i = 0; i < n; i += LANES) {
        vec v = (load_first(row + i, n - i) - mean) * scale;
        v = v * load_first(norm.weight + i, n - i) + load_first(norm.bias + i, n - i);
        store_first(y + i, v, n - i);
    }
}

}  // namespace
