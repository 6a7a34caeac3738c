// Products of int8: weights with a scale for each column of the output, rows of x with a scale that
// is found as they come. x v^T is quantized anew, so a column has a scale for weights that
// meet x, and one for those that meet x v^T.
//
// Bytes of x are offset by 128, for the instructions want them without sign; what that adds to each
// sum is known beforehand, and subtracted.
#pragma once
#include "linear.h"

namespace {

typedef uint8_t bytes __attribute__((vector_size(LANES)));

template <> struct Rows<quantized> {
    uint32_t* units;  // x, and behind it x v^T
    int64_t stride;
    float* scales;    // (rows, 2): of x, and of x v^T
    float* ranks;     // x v^T in fp32
    int64_t ranks_stride;

    Rows from(int64_t row) const {
        return {units + row * stride, stride, scales + 2 * row, ranks + row * ranks_stride,
                ranks_stride};
    }
};

// The largest magnitude of a row over 127; NaN for a row that is not finite.
inline float scale_of(const float* row, int64_t terms) {
    constexpr int32_t INFINITE = 0x7f800000;
    const auto larger = [](ivec a, ivec b) { return a > b ? a : b; };
    ivec top = {};  // magnitudes are in the order of their bits
    for (int64_t k = 0; k < terms; k += LANES)
        top = larger((ivec)load_first(row + k, terms - k) & 0x7fffffff, top);
    const int32_t largest = fold(top, larger);
    return largest < INFINITE ? load<float>(&largest) / 127.0f : __builtin_nanf("");
}

inline bytes quantize(vec v, float inverse) {
    constexpr float ROUND = 12582912.0f + 128;  // 1.5 * 2^23: the sum's last bits are an integer
    const uvec rounded = (uvec)(v * inverse + ROUND);
#if defined(__AVX512F__)
    return (bytes)_mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)rounded);
#else
    return __builtin_convertvector(rounded, bytes);
#endif
}

// Rows as units of 4 terms, and their scales, two apart.
inline void quantize_rows(const float* x, int64_t x_stride, int64_t rows, int64_t terms,
                          uint32_t* units, int64_t stride, float* scales) {
    for (int64_t row = 0; row < rows; row++, x += x_stride, units += stride, scales += 2) {
        *scales = scale_of(x, terms);
        const float inverse = *scales > 0 ? 1.0f / *scales : 0.0f;
        for (int64_t k = 0; k < terms; k += LANES)
            store((uint8_t*)units + k, quantize(load_first(x + k, terms - k), inverse));
    }
}

// A tile times runs that all meet x (part 0) or x v^T (part 1), in fp32.
template <class Finish>
__attribute__((always_inline)) inline void multiply_part(const Stripes& s, int i, int part,
                                                         Stripe runs, Rows<quantized> x,
                                                         Finish finish) {
    const float* scales = s.scales + (2 * i + part) * s.width;
    const int32_t* offsets = s.offsets + (2 * i + part) * s.width;
    for_each_sum<quantized>(runs, x, [=](int row, int column, ivec sum) {
        const ivec exact = sum - load<ivec>(offsets + column);
        const vec scale = load<vec>(scales + column) * x.scales[2 * row + part];
        finish(row, column, __builtin_convertvector(exact, vec) * scale);
    });
}

template <>
inline void quantize_x(const Linear& l, const quantized* x, int64_t stride, int64_t rows,
                       Rows<quantized> out) {
    quantize_rows((const float*)x, stride, rows, l.in_features, out.units, out.stride, out.scales);
}

template <> inline void reduce(const Linear& l, int stripe, Rows<quantized> x) {
    multiply_part(l.down, stripe, 0, stripe_of(l.down, stripe), x,
                  [=, &l](int row, int column, vec sum) {
                      store(x.ranks + row * x.ranks_stride + stripe * l.down.width + column, sum);
                  });
}

template <> inline void quantize_ranks(const Linear& l, Rows<quantized> x) {
    quantize_rows(x.ranks, x.ranks_stride, TILE<quantized>, ranks(l),
                  x.units + units<quantized>(l.in_features), x.stride, x.scales + 1);
}

template <class Finish>
__attribute__((always_inline)) inline void multiply_up(const Linear& l, int stripe,
                                                       Rows<quantized> x, Finish finish) {
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
    const float* base = l.bias + (int64_t)stripe * l.up.width;
    int64_t base_stride = 0;
    alignas(64) float sums[TILE<quantized> * MAX_WIDTH];
    if (x_runs.runs && rank_runs.runs) {
        multiply_part(l.up, stripe, 0, x_runs, x, [=, &sums](int row, int column, vec sum) {
            store(sums + row * MAX_WIDTH + column, sum + load<vec>(base + column));
        });
        base = sums;
        base_stride = MAX_WIDTH;
    }
    const int last = rank_runs.runs > 0;
    multiply_part(l.up, stripe, last, last ? rank_runs : x_runs, x,
                  [=](int row, int column, vec sum) {
                      finish(row, column, sum + load<vec>(base + row * base_stride + column));
                  });
}

}  // namespace
