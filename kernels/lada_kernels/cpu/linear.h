// y = LN(act([x | x v^T] [sparse | u]^T + bias) + residual). A low-rank weight has no sparse part,
// a block-sparse one no u and v, a dense one is sparse without holes.
//
// The output's columns are cut into panels of NR. A panel stores only the K segments that hold
// weights: where in [x | x v^T] a segment starts, and its weights in the order in which they are
// read. So a product streams through x and the weights, whatever the shape of the blocks.
#pragma once
#include <algorithm>

#include "activation.h"
#include "tiles.h"

extern "C" {

// Block-sparse matrix in panels of NR columns. The caller owns the arrays.
struct Panels {
    const uint32_t* values;          // (groups, nr): VNNI groups, segment after segment
    const int64_t* group_offsets;    // (panels + 1,): first group of each panel
    const int32_t* segment_offsets;  // (panels + 1,): first segment of each panel
    const int32_t* segment_starts;   // (segments,): group of [x | x v^T] where a segment starts
    const int32_t* segment_lengths;  // (segments,): in groups
    const float* scales;             // int8: (panels, 2, nr), of weights for x, and for x v^T
    const int32_t* compensation;     // int8: (panels, 2, nr), 128 times the sums of these weights
    int32_t count;                   // of panels
    int32_t nr;                      // 16 or 32
    int32_t tail;                    // greatest common divisor of segment_lengths % TILE_DEPTH
};

struct Linear {
    Panels v;           // (in_features, rank); no panels without low rank
    Panels sparse_u;    // [sparse | u]: (groups of x, then of x v^T; out_features)
    const float* bias;  // (sparse_u.count * sparse_u.nr,)
    int64_t in_features;
    int64_t out_features;
    int32_t activation;
};

struct LayerNorm {
    const float* weight;  // (features,), or null for no norm
    const float* bias;    // (features,)
    float eps;
};

}  // extern "C"

namespace {

// MR: rows of a register tile. MR x 2 vectors of sums, 2 of weights and 1 of x fill 19 of 32
// registers with AVX-512, 11 of 16 otherwise.
#if defined(__AVX512F__)
constexpr int MR = 8;
#else
constexpr int MR = 4;
#endif
// Rows of x per call of the micro-kernel (a row tile): those of an AMX tile, or one or two register
// tiles.
template <class T> constexpr int TILE_ROWS = USES_AMX<T> ? 16 : 8;
// Widest panel: two AVX-512 vectors or AMX tiles, so that each load of x serves two products.
constexpr int MAX_NR = 32;

// Rank, padded to whole panels.
inline int64_t padded_rank(const Linear& l) { return (int64_t)l.v.count * l.v.nr; }

// Rows of [x | x v^T] in VNNI groups, `stride` groups apart.
template <class T> struct Rows {
    uint32_t* groups;
    int64_t stride;
};

// Copies k elements of each row, and zeroes the rest of the last VNNI group.
template <class T>
void copy_rows(const T* x, int64_t x_stride, int64_t rows, int64_t k, T* y, int64_t y_stride) {
    for (int64_t row = 0; row < rows; row++, x += x_stride, y += y_stride) {
        std::copy_n(x, k, y);
        for (int64_t i = k; i < group_count<T>(k) * Group<T>::SIZE; i++) y[i] = T{};
    }
}

// Segments of one panel and their weights.
struct Panel {
    const uint32_t* values;
    const int32_t* starts;
    const int32_t* lengths;
    int32_t segments;
    int32_t nr;
    int32_t tail;
};

inline Panel panel_of(const Panels& p, int i) {
    const int32_t segment = p.segment_offsets[i];
    return {p.values + p.group_offsets[i] * p.nr, p.segment_starts + segment,
            p.segment_lengths + segment, p.segment_offsets[i + 1] - segment, p.nr, p.tail};
}

// Micro-kernel: TILE_ROWS rows of x times a panel. `epilogue` gets each vector of sums with its row
// and first column. Inlined, since the cost of a call shows for short K, as that of x v^T.
template <class T, int VECS, class Epilogue>
__attribute__((always_inline)) inline void microkernel(Panel p, Rows<T> x, Epilogue epilogue) {
    for (int column = 0; column < p.nr; column += VECS * LANES) {
        for (int row = 0; row < TILE_ROWS<T>; row += MR) {
            typename Group<T>::Sum acc[MR][VECS] = {};
            const uint32_t* w = p.values + column;
            for (int32_t segment = 0; segment < p.segments; segment++) {
                const uint32_t* group = x.groups + row * x.stride + p.starts[segment];
                const int32_t length = p.lengths[segment];
#pragma GCC unroll 4
                for (int32_t i = 0; i < length; i++, group++, w += p.nr) {
                    uvec weights[VECS];
#pragma GCC unroll 2
                    for (int v = 0; v < VECS; v++) weights[v] = load<uvec>(w + v * LANES);
#pragma GCC unroll 8
                    for (int r = 0; r < MR; r++) {
                        const uint32_t broadcast = load<uint32_t>(group + r * x.stride);
#pragma GCC unroll 2
                        for (int v = 0; v < VECS; v++)
                            acc[r][v] = Group<T>::multiply_add(broadcast, weights[v], acc[r][v]);
                    }
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < MR; r++) {
#pragma GCC unroll 2
                for (int v = 0; v < VECS; v++) epilogue(row + r, column + v * LANES, acc[r][v]);
            }
        }
    }
}

#if defined(__AMX_TILE__)
// Micro-kernel by AMX tiles.
template <class T, int VECS, class Epilogue>
__attribute__((always_inline)) inline void amx_microkernel(Panel p, Rows<T> x, Epilogue epilogue) {
    constexpr bool WIDE = VECS == 2;
    const int64_t x_stride = 4 * x.stride, w_stride = VECS * TILE_BYTES;
    const uint32_t* w = p.values;
    configure_tiles(p.tail);
    clear_tile<SUMS>();
    if constexpr (WIDE) clear_tile<SUMS_RIGHT>();
    for (int32_t segment = 0; segment < p.segments; segment++) {
        const uint32_t* group = x.groups + p.starts[segment];
        int32_t left = p.lengths[segment];
        for (; left >= TILE_DEPTH; left -= TILE_DEPTH, group += TILE_DEPTH, w += TILE_DEPTH * p.nr)
            multiply_add_tiles<T, WIDE, X, LEFT, RIGHT>(group, x_stride, w, w_stride);
        for (; left > 0; left -= p.tail, group += p.tail, w += p.tail * p.nr)
            multiply_add_tiles<T, WIDE, X_TAIL, LEFT_TAIL, RIGHT_TAIL>(group, x_stride, w,
                                                                       w_stride);
    }
    typedef typename Group<T>::Sum Sum;
    alignas(64) Sum sums[TILE_ROWS<T>][VECS];
    store_tile<SUMS>(sums, w_stride);
    if constexpr (WIDE) store_tile<SUMS_RIGHT>(&sums[0][1], w_stride);
    for (int r = 0; r < TILE_ROWS<T>; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < VECS; v++) epilogue(r, v * LANES, sums[r][v]);
    }
}
#endif

template <class T, class Epilogue>
__attribute__((always_inline)) inline void microkernel(Panel p, Rows<T> x, Epilogue epilogue) {
#if defined(__AMX_TILE__)
    if constexpr (USES_AMX<T>) {
        if (p.nr >= 2 * LANES) return amx_microkernel<T, 2>(p, x, epilogue);
        return amx_microkernel<T, 1>(p, x, epilogue);
    }
#endif
    if (p.nr >= 2 * LANES)
        microkernel<T, 2>(p, x, epilogue);
    else
        microkernel<T, 1>(p, x, epilogue);
}

// A row tile times a panel, to rows of sums that are `stride` apart.
template <class T> void multiply(Panel p, Rows<T> x, float* sums, int64_t stride) {
    microkernel<T>(p, x, [=](int row, int column, vec sum) {
        store(sums + row * stride + column, sum);
    });
}

// A linear on a row tile: x v^T, panel by panel, stored behind x; then the output, panel by panel.
// int8: x is quantized before the first and x v^T before the second (quantized.h).

template <class T> void quantize_x(const Linear&, const T*, int64_t, int64_t, Rows<T>) {}

template <class T> void multiply_v(const Linear& l, int panel, Rows<T> x) {
    T* y = (T*)(x.groups + group_count<T>(l.in_features)) + (int64_t)panel * l.v.nr;
    microkernel<T>(panel_of(l.v, panel), x, [=](int row, int column, vec sum) {
        store_narrow(y + row * x.stride * Group<T>::SIZE + column, sum);
    });
}

template <class T> void quantize_xv(const Linear&, Rows<T>) {}

// [x | x v^T] [sparse | u]^T + bias for one panel; `epilogue` gets each vector of sums.
template <class T, class Epilogue>
__attribute__((always_inline)) inline void multiply_sparse_u(const Linear& l, int panel, Rows<T> x,
                                                             Epilogue epilogue) {
    const float* bias = l.bias + (int64_t)panel * l.sparse_u.nr;
    microkernel<T>(panel_of(l.sparse_u, panel), x, [=](int row, int column, vec sum) {
        epilogue(row, column, sum + load<vec>(bias + column));
    });
}

// Destination of a panel's output, and the residual that is added: y itself, or fp32 sums for
// LayerNorm, which needs whole rows.
template <class T, class Y> struct Output {
    Y* y;  // at the panel's first column
    int64_t y_stride;
    const T* residual;  // at the panel's first column, or null
    int64_t residual_stride;

    // Stores a vector, of which `left` columns exist from `column` on.
    void put(int64_t row, int64_t column, vec v, int64_t left) const {
        if (residual) v += load_first(residual + row * residual_stride + column, left);
        store_first(y + row * y_stride + column, v, left);
    }
};

// Output of one panel for the first `rows` rows of a tile: straight from registers where there is
// no activation and the panel is whole.
template <class T, class Y>
void output_panel(const Linear& l, int panel, Rows<T> x, int64_t rows, Output<T, Y> out) {
    const int64_t nr = l.sparse_u.nr, left = l.out_features - panel * nr;
    if (l.activation == NONE && left >= nr)
        return multiply_sparse_u(l, panel, x, [=](int row, int column, vec sum) {
            if (row < rows) out.put(row, column, sum, LANES);
        });
    alignas(64) float sums[TILE_ROWS<T> * MAX_NR];
    multiply_sparse_u(l, panel, x, [=, &sums](int row, int column, vec sum) {
        store(sums + row * nr + column, sum);
    });
    activate(sums, rows * nr, (Activation)l.activation);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t n = 0; n < std::min(left, nr); n += LANES)
            out.put(row, n, load<vec>(sums + row * nr + n), left - n);
}

// Sum of f over a row, in four vectors, so that additions do not wait for each other.
template <class X, class F> float sum_of(const X* row, int64_t n, F f) {
    vec totals[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int j = 0; j < 4; j++) totals[j] += f(load_wide(row + i + j * LANES));
    float rest = 0;
    for (; i < n; i++) rest += f(splat(widen(row[i])))[0];
    return horizontal_sum((totals[0] + totals[1]) + (totals[2] + totals[3])) + rest;
}

template <class X, class Y> void convert(const X* row, int64_t n, Y* y) {
    for (int64_t i = 0; i < n; i += LANES) store_first(y + i, load_first(row + i, n - i), n - i);
}

// Gated linear unit: y[:n] = activation(y[:n]) * y[n:].
template <class Y> void gate(Y* y, int64_t n, Activation activation) {
    for (int64_t first = 0; first < n; first += MAX_NR, y += MAX_NR) {
        alignas(64) float values[MAX_NR] = {};
        const int64_t left = std::min<int64_t>(n - first, MAX_NR);
        for (int64_t i = 0; i < left; i += LANES) store(values + i, load_first(y + i, left - i));
        activate(values, MAX_NR, activation);
        for (int64_t i = 0; i < left; i += LANES)
            store_first(y + i, load<vec>(values + i) * load_first(y + n + i, left - i), left - i);
    }
}

// LayerNorm of a row, in two passes in fp32; a copy if the norm has no weight.
template <class X, class Y> void normalize(const X* row, int64_t n, const LayerNorm& norm, Y* y) {
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
