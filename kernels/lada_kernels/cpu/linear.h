// y = LN(act([x | x v^T] S^T + bias) + residual), S block-sparse: low rank is an S whose only blocks
// are u, beside v; a dense weight is an S without holes.
//
// The output's columns are stripes of 16 or 32. Of each, S stores runs of rows that hold weights:
// where a run meets x, and the weights in the order in which they are met. So a product is a walk
// over two streams, whatever the blocks were.
#pragma once
#include "activation.h"
#include "panel.h"

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
};

struct Linear {
    Stripes down;       // v: (in_features, rank), or none
    Stripes up;         // S: (x's units and then those of x v^T, out_features)
    const float* bias;  // (up.count * up.width,), or null
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

#if defined(__AVX512F__)
constexpr int ROWS = 8;  // of the tile that is held in registers
#else
constexpr int ROWS = 4;
#endif
constexpr int MAX_WIDTH = 32;  // of a stripe

inline int64_t ranks(const Linear& l) { return (int64_t)l.down.count * l.down.width; }

template <class T> int64_t panel_units(const Linear& l) {
    return units<T>(l.in_features) + ranks(l) / Unit<T>::TERMS;
}

// Runs of one stripe, and its weights.
struct Stripe {
    const uint32_t* weights;
    const int32_t* starts;
    const int32_t* lengths;
    int32_t runs;
    int32_t width;
};

inline Stripe stripe_of(const Stripes& s, int i) {
    const int32_t run = s.runs[i];
    return {s.weights + s.first[i] * s.width, s.starts + run, s.lengths + run, s.runs[i + 1] - run,
            s.width};
}

// A panel times a stripe; `finish` gets each vector of sums with its row and first column.
template <class T, int VECS, class Finish>
inline void for_each_sum(Stripe s, const uint32_t* panel, Finish finish) {
    for (int column = 0; column < s.width; column += VECS * LANES) {
        for (int row = 0; row < PANEL; row += ROWS) {
            typename Unit<T>::Sum acc[ROWS][VECS] = {};
            const uint32_t* w = s.weights + column;
            for (int32_t run = 0; run < s.runs; run++) {
                const uint32_t* x = panel + (int64_t)s.starts[run] * PANEL + row;
                const int32_t length = s.lengths[run];
#pragma GCC unroll 4
                for (int32_t i = 0; i < length; i++, x += PANEL, w += s.width) {
                    uvec weights[VECS];
#pragma GCC unroll 2
                    for (int v = 0; v < VECS; v++) weights[v] = load<uvec>(w + v * LANES);
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 2
                        for (int v = 0; v < VECS; v++)
                            acc[r][v] = Unit<T>::multiply_add(x[r], weights[v], acc[r][v]);
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

template <class T, class Finish>
inline void for_each_sum(Stripe s, const uint32_t* panel, Finish finish) {
    if (s.width >= 2 * LANES)
        for_each_sum<T, 2>(s, panel, finish);
    else
        for_each_sum<T, 1>(s, panel, finish);
}

// Eight rows of sums, `stride` apart: a panel times a stripe.
template <class T> void multiply(Stripe s, const uint32_t* panel, float* sums, int64_t stride) {
    for_each_sum<T>(s, panel, [=](int row, int column, vec sum) {
        store(sums + row * stride + column, sum);
    });
}

// A panel of x; x v^T, once each of its stripes was reduced; and the output's columns of a stripe.

template <class T>
void pack_x(const Linear& l, const T* x, int64_t stride, int64_t rows, uint32_t* panel) {
    pack_panel(x, stride, rows, l.in_features, panel);
}

// A stripe of x v^T, rounded, to where the panel holds it.
template <class T> void reduce(const Linear& l, int stripe, uint32_t* panel) {
    const int width = l.down.width;
    float sums[PANEL * MAX_WIDTH];
    T rounded[PANEL * MAX_WIDTH];
    multiply<T>(stripe_of(l.down, stripe), panel, sums, width);
    for (int i = 0; i < PANEL * width; i += LANES) store_narrow(rounded + i, load<vec>(sums + i));
    const int64_t unit = units<T>(l.in_features) + (int64_t)stripe * width / Unit<T>::TERMS;
    pack_panel(rounded, width, PANEL, width, panel + unit * PANEL);
}

template <class T> void finish_reduction(const Linear&, uint32_t*) {}

template <class T>
void multiply_up(const Linear& l, int stripe, const uint32_t* panel, float* sums) {
    multiply<T>(stripe_of(l.up, stripe), panel, sums, l.up.width);
}

// Where finished rows go: y itself, or fp32 sums that are normalised once a row is whole.
template <class T, class Y> struct Output {
    Y* y;
    int64_t y_stride;
    const T* residual;  // or null
    int64_t residual_stride;
};

// A stripe of the output of a panel's first rows.
template <class T, class Y>
void expand(const Linear& l, int stripe, const uint32_t* panel, int64_t rows, Output<T, Y> out) {
    float sums[PANEL * MAX_WIDTH];
    multiply_up<T>(l, stripe, panel, sums);
    for (int64_t row = 0; row < rows; row++) {
        for (int column = 0; column < l.up.width; column += LANES) {
            const int64_t n = (int64_t)stripe * l.up.width + column, left = l.out_features - n;
            if (left <= 0) break;
            vec y = load<vec>(sums + row * l.up.width + column);
            if (l.bias) y += load<vec>(l.bias + n);
            y = activate(y, (Activation)l.activation);
            if (out.residual) y += load_first(out.residual + row * out.residual_stride + n, left);
            store_first(out.y + row * out.y_stride + n, y, left);
        }
    }
}

// LayerNorm of a row, in two passes over fp32.
template <class T> void normalize(const float* row, int64_t n, const Norm& norm, T* y) {
    vec total = {};
    for (int64_t i = 0; i < n; i += LANES) total += load_first(row + i, n - i);
    const float mean = sum(total) / n;
    vec squares = {};
    for (int64_t i = 0; i < n; i += LANES) {
        vec distance = load_first(row + i, n - i) - mean;
        for (int64_t lane = n - i; lane < LANES; lane++) distance[lane] = 0;
        squares += distance * distance;
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / n + norm.eps);
    for (int64_t i = 0; i < n; i += LANES) {
        vec v = (load_first(row + i, n - i) - mean) * scale;
        v = v * load_first(norm.weight + i, n - i) + load_first(norm.bias + i, n - i);
        store_first(y + i, v, n - i);
    }
}

}  // namespace
