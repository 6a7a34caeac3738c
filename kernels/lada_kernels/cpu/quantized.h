// int8 products. Weights are quantized ahead, with two scales per output column: one for those that
// multiply x, one for those that multiply x v^T. Rows of x, and then of x v^T, are quantized on the
// fly with one scale each.
//
// x is stored with zero point 128, since VNNI wants one operand unsigned; the compensation, 128
// times the sum of a column's weights, is subtracted from each sum.
#pragma once
#include "linear.h"

namespace {

typedef uint8_t bytes __attribute__((vector_size(LANES)));

template <> struct Rows<quantized> {
    uint32_t* groups;  // x, then x v^T
    int64_t stride;
    float* scales;     // (rows, 2): of x, and of x v^T
    float* xv;         // x v^T in fp32
    int64_t xv_stride;

    Rows from(int64_t row) const {
        return {groups + row * stride, stride, scales + 2 * row, xv + row * xv_stride, xv_stride};
    }
};

// Largest magnitude of a row / 127; NaN for a row that is not finite.
inline float scale_of(const float* row, int64_t k) {
    constexpr int32_t INFINITE = 0x7f800000;
    const auto larger = [](ivec a, ivec b) { return a > b ? a : b; };
    ivec top = {};  // magnitudes are in the order of their bits
    for (int64_t i = 0; i < k; i += LANES)
        top = larger((ivec)load_first(row + i, k - i) & 0x7fffffff, top);
    const int32_t largest = horizontal_reduce(top, larger);
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

// Quantizes rows of k elements to VNNI groups, and writes their scales, two apart.
inline void quantize_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k,
                          uint32_t* groups, int64_t stride, float* scales) {
    for (int64_t row = 0; row < rows; row++, x += x_stride, groups += stride, scales += 2) {
        *scales = scale_of(x, k);
        const float inverse = *scales > 0 ? 1.0f / *scales : 0.0f;
        for (int64_t i = 0; i < k; i += LANES)
            store((uint8_t*)groups + i, quantize(load_first(x + i, k - i), inverse));
    }
}

// A row tile times segments of panel i, in fp32. All of them multiply x (part 0) or x v^T (part 1).
template <class Epilogue>
__attribute__((always_inline)) inline void multiply_part(const Panels& p, int i, int part,
                                                         Panel segments, Rows<quantized> x,
                                                         Epilogue epilogue) {
    const float* scales = p.scales + (2 * i + part) * p.nr;
    const int32_t* compensation = p.compensation + (2 * i + part) * p.nr;
    microkernel<quantized>(segments, x, [=](int row, int column, ivec sum) {
        const ivec exact = sum - load<ivec>(compensation + column);
        const vec scale = load<vec>(scales + column) * x.scales[2 * row + part];
        epilogue(row, column, __builtin_convertvector(exact, vec) * scale);
    });
}

template <>
inline void quantize_x(const Linear& l, const quantized* x, int64_t stride, int64_t rows,
                       Rows<quantized> out) {
    quantize_rows((const float*)x, stride, rows, l.in_features, out.groups, out.stride, out.scales);
}

template <> inline void multiply_v(const Linear& l, int panel, Rows<quantized> x) {
    multiply_part(l.v, panel, 0, panel_of(l.v, panel), x, [=, &l](int row, int column, vec sum) {
        store(x.xv + row * x.xv_stride + panel * l.v.nr + column, sum);
    });
}

template <> inline void quantize_xv(const Linear& l, Rows<quantized> x) {
    quantize_rows(x.xv, x.xv_stride, TILE_ROWS<quantized>, padded_rank(l),
                  x.groups + group_count<quantized>(l.in_features), x.stride, x.scales + 1);
}

// The segments that multiply x, then those that multiply x v^T, which have other scales.
template <class Epilogue>
__attribute__((always_inline)) inline void multiply_sparse_u(const Linear& l, int panel,
                                                             Rows<quantized> x,
                                                             Epilogue epilogue) {
    Panel sparse = panel_of(l.sparse_u, panel), u = sparse;
    int64_t sparse_groups = 0;
    sparse.segments = 0;
    while (sparse.segments < u.segments &&
           u.starts[sparse.segments] < group_count<quantized>(l.in_features))
        sparse_groups += sparse.lengths[sparse.segments++];
    u.values += sparse_groups * u.nr;
    u.starts += sparse.segments;
    u.lengths += sparse.segments;
    u.segments -= sparse.segments;
    const float* base = l.bias + (int64_t)panel * l.sparse_u.nr;
    int64_t base_stride = 0;
    alignas(64) float sums[TILE_ROWS<quantized> * MAX_NR];
    if (sparse.segments && u.segments) {
        multiply_part(l.sparse_u, panel, 0, sparse, x, [=, &sums](int row, int column, vec sum) {
            store(sums + row * MAX_NR + column, sum + load<vec>(base + column));
        });
        base = sums;
        base_stride = MAX_NR;
    }
    const int last = u.segments > 0;
    multiply_part(l.sparse_u, panel, last, last ? u : sparse, x,
                  [=](int row, int column, vec sum) {
                      epilogue(row, column, sum + load<vec>(base + row * base_stride + column));
                  });
}

}  // namespace
