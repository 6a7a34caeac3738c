// Rows of x as the products read them: panels of 8 rows, unit by unit, so that a step of a product
// is one vector of weights times 8 neighbouring scalars.
#pragma once
#include "vec.h"

namespace {

constexpr int PANEL = 8;

typedef uint32_t octet __attribute__((vector_size(32)));

// After three perfect shuffles of rows (i, i + 4), row and column have changed places.
inline void transpose(octet (&r)[PANEL]) {
    for (int round = 0; round < 3; round++) {
        octet t[PANEL];
        for (int i = 0; i < 4; i++) {
            t[2 * i] = __builtin_shufflevector(r[i], r[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            t[2 * i + 1] = __builtin_shufflevector(r[i], r[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        for (int i = 0; i < PANEL; i++) r[i] = t[i];
    }
}

// The first `terms` columns of up to 8 rows, `stride` elements apart, as units of 8, `step` values
// apart; rows and terms that are not there are 0.
template <class T>
inline void pack_panel(const T* x, int64_t stride, int64_t rows, int64_t terms, uint32_t* panel,
                       int64_t step = PANEL) {
    constexpr int TERMS = Unit<T>::TERMS;
    const int64_t whole = terms / TERMS;
    int64_t unit = 0;
    for (; unit + PANEL <= whole; unit += PANEL) {
        octet r[PANEL] = {};
        for (int64_t i = 0; i < rows; i++) r[i] = load<octet>(x + i * stride + unit * TERMS);
        transpose(r);
        for (int i = 0; i < PANEL; i++) store(panel + (unit + i) * step, r[i]);
    }
    for (; unit < units<T>(terms); unit++) {
        const int64_t bytes = (unit < whole ? TERMS : terms - whole * TERMS) * sizeof(T);
        for (int64_t i = 0; i < PANEL; i++) {
            uint32_t value = 0;
            if (i < rows) memcpy(&value, x + i * stride + unit * TERMS, bytes);
            panel[unit * step + i] = value;
        }
    }
}

}  // namespace
