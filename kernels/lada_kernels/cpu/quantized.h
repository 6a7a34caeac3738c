// Products of int8: weights with a scale for each column of the output, rows of x with a scale that
// is found when they are packed. x v^T is quantized anew, so a column has a scale for weights that
// meet x, and one for those that meet x v^T.
//
// Bytes of x are offset by 128, for the instructions want them without sign; what that adds to each
// sum is known beforehand, and subtracted.
#pragma once
#include "linear.h"

namespace {

typedef uint8_t bytes __attribute__((vector_size(LANES)));

// Behind the units of a panel: scales of its rows for x, then for x v^T, and x v^T in fp32.
inline float* scales_of(const Linear& l, uint32_t* panel) {
    return (float*)(panel + (units<quantized>(l.in_features) + ranks(l) / 4) * PANEL);
}

template <> inline int64_t panel_units<quantized>(const Linear& l) {
    return units<quantized>(l.in_features) + ranks(l) / 4 + 2 + ranks(l);
}

// The largest magnitude of a row over 127; NaN for a row that is not finite.
inline float scale_of(const float* row, int64_t terms) {
    vec top = {}, poison = {};
    for (int64_t k = 0; k < terms; k += LANES) {
        const vec v = load_first(row + k, terms - k);
        top = max(max(v, -v), top);
        poison += v * 0.0f;
    }
    return largest(top) / 127.0f + sum(poison);
}

inline bytes quantize(vec v, float inverse) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: the sum's last bits are an integer
    const ivec rounded = (ivec)(v * inverse + ROUND) + 128;
    return __builtin_convertvector(rounded, bytes);
}

// Up to 8 rows as units of 4 terms, and their scales.
inline void pack_quantized(const float* x, int64_t stride, int64_t rows, int64_t terms,
                           uint32_t* panel, float* scales) {
    constexpr int64_t STEP = 4 * PANEL;
    float inverse[PANEL] = {};
    for (int64_t i = 0; i < PANEL; i++) {
        scales[i] = i < rows ? scale_of(x + i * stride, terms) : 0.0f;
        if (scales[i] > 0) inverse[i] = 1.0f / scales[i];
    }
    for (int64_t k = 0; k < terms; k += STEP) {
        octet r[PANEL] = {};
        for (int64_t i = 0; i < rows; i++) {
            uint8_t row[STEP];
            for (int64_t j = 0; j < STEP; j += LANES)
                store(row + j, quantize(load_first(x + i * stride + k + j, terms - k - j),
                                        inverse[i]));
            r[i] = load<octet>(row);
        }
        transpose(r);
        const int64_t left = units<quantized>(terms - k);
        for (int64_t i = 0; i < PANEL && i < left; i++)
            store(panel + (k / 4 + i) * PANEL, r[i]);
    }
}

// Sums of the runs that meet x (part 0) or x v^T (part 1), in fp32; the latter are added.
inline void multiply_part(const Stripes& s, int i, int part, Stripe runs, const uint32_t* panel,
                          const float* row_scales, float* sums, int64_t stride) {
    const float* scales = s.scales + (2 * i + part) * s.width;
    const int32_t* offsets = s.offsets + (2 * i + part) * s.width;
    for_each_sum<quantized>(runs, panel, [=](int row, int column, ivec sum) {
        const ivec exact = sum - load<ivec>(offsets + column);
        vec v = __builtin_convertvector(exact, vec) * load<vec>(scales + column) * row_scales[row];
        float* at = sums + row * stride + column;
        store(at, part ? v + load<vec>(at) : v);
    });
}

template <>
inline void pack_x(const Linear& l, const quantized* x, int64_t stride, int64_t rows,
                   uint32_t* panel) {
    pack_quantized((const float*)x, stride, rows, l.in_features, panel, scales_of(l, panel));
}

template <> inline void reduce<quantized>(const Linear& l, int stripe, uint32_t* panel) {
    const float* scales = scales_of(l, panel);
    float* ranks_fp32 = scales_of(l, panel) + 2 * PANEL;
    multiply_part(l.down, stripe, 0, stripe_of(l.down, stripe), panel, scales,
                  ranks_fp32 + stripe * l.down.width, ranks(l));
}

template <> inline void finish_reduction<quantized>(const Linear& l, uint32_t* panel) {
    float* scales = scales_of(l, panel);
    const int64_t unit = units<quantized>(l.in_features);
    pack_quantized(scales + 2 * PANEL, ranks(l), PANEL, ranks(l), panel + unit * PANEL,
                   scales + PANEL);
}

template <>
inline void multiply_up<quantized>(const Linear& l, int stripe, const uint32_t* panel,
                                   float* sums) {
    const float* scales = scales_of(l, (uint32_t*)panel);
    Stripe x_runs = stripe_of(l.up, stripe), rank_runs = x_runs;
    int64_t met = 0;
    x_runs.runs = 0;
    while (x_runs.runs < rank_runs.runs &&
           rank_runs.starts[x_runs.runs] < units<quantized>(l.in_features))
        met += x_runs.lengths[x_runs.runs++];
    rank_runs.weights += met * rank_runs.width;
    rank_runs.starts += x_runs.runs;
    rank_runs.lengths += x_runs.runs;
    rank_runs.runs -= x_runs.runs;
    multiply_part(l.up, stripe, 0, x_runs, panel, scales, sums, l.up.width);
    if (rank_runs.runs)
        multiply_part(l.up, stripe, 1, rank_runs, panel, scales + PANEL, sums, l.up.width);
}

}  // namespace
