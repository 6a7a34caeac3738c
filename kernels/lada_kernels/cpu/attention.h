// Attention of one head of one sequence: softmax(q k^T * scale + bias) v, a tile of queries at a
// time, over all keys or those in a window. Both products are those of `linear.h`: the keys, and
// then the values, are stripes without holes.
#pragma once
#include "linear.h"
#include "memory.h"

namespace {

constexpr int KEYS = MAX_WIDTH;  // of a stripe

inline int64_t stripes_of(int64_t columns) { return (columns + KEYS - 1) / KEYS; }

// Memory for one head of a sequence of `length` tokens.
template <class T> struct AttentionScratch {
    uint32_t* keys;     // (stripes of keys, units of features, 32)
    uint32_t* values;   // (stripes of features, units of keys, 32)
    T* queries;         // (8, features, in whole units)
    float* scores;      // (8, keys)
    T* probabilities;   // (8, keys)

    AttentionScratch(Carver& c, int64_t length, int64_t features) {
        const int64_t keys_padded = stripes_of(length) * KEYS;
        keys = c.take<uint32_t>(keys_padded * units<T>(features));
        values = c.take<uint32_t>(stripes_of(features) * KEYS * units<T>(length));
        queries = c.take<T>(TILE<T> * units<T>(features) * Unit<T>::TERMS);
        scores = c.take<float>(TILE<T> * keys_padded);
        probabilities = c.take<T>(TILE<T> * keys_padded);
    }
};

constexpr int OCTET = 8;  // rows that change places with columns at a time

typedef uint32_t octet __attribute__((vector_size(4 * OCTET)));

// After three perfect shuffles of rows (i, i + 4), row and column have changed places.
inline void transpose(octet (&r)[OCTET]) {
    for (int round = 0; round < 3; round++) {
        octet t[OCTET];
        for (int i = 0; i < 4; i++) {
            t[2 * i] = __builtin_shufflevector(r[i], r[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            t[2 * i + 1] = __builtin_shufflevector(r[i], r[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        for (int i = 0; i < OCTET; i++) r[i] = t[i];
    }
}

// Up to 8 rows of k as columns of a stripe, unit by unit; rows that are not there are 0.
template <class T>
void pack_keys(const T* k, int64_t stride, int64_t rows, int64_t features, uint32_t* stripe) {
    constexpr int TERMS = Unit<T>::TERMS;
    const int64_t whole = features / TERMS;
    int64_t unit = 0;
    for (; unit + OCTET <= whole; unit += OCTET) {
        octet r[OCTET] = {};
        for (int64_t i = 0; i < rows; i++) r[i] = load<octet>(k + i * stride + unit * TERMS);
        transpose(r);
        for (int i = 0; i < OCTET; i++) store(stripe + (unit + i) * KEYS, r[i]);
    }
    for (; unit < units<T>(features); unit++) {
        const int64_t bytes = (unit < whole ? TERMS : features - whole * TERMS) * sizeof(T);
        for (int64_t i = 0; i < OCTET; i++) {
            uint32_t value = 0;
            if (i < rows) memcpy(&value, k + i * stride + unit * TERMS, bytes);
            stripe[unit * KEYS + i] = value;
        }
    }
}

// Up to 32 columns of v, its rows in units: what multiplies a panel of probabilities.
template <class T>
void pack_values(const T* v, int64_t stride, int64_t length, int64_t columns, uint32_t* stripe) {
    for (int64_t key = 0; key < length; key += Unit<T>::TERMS, stripe += KEYS) {
        for (int64_t j = 0; j < KEYS; j += LANES) {
            const T* at = v + key * stride + j;
            store(stripe + j, Unit<T>::zip(load_first(at, columns - j),
                                           load_first(at + stride, key + 1 < length ? columns - j : 0)));
        }
    }
}

// Queries and keys turned by the angles of their positions: the first half of a row's features are
// the real parts of complex numbers, the second the imaginary ones ("RoFormer", eq. 34).
// angles: (positions, features), cosines and then sines.
template <class T>
void rotate(T* x, int64_t stride, int64_t length, int64_t features, const float* angles) {
    const int64_t half = features / 2;
    for (int64_t row = 0; row < length; row++, x += stride, angles += features) {
        for (int64_t i = 0; i < half; i += LANES) {
            const int64_t left = half - i;
            const vec real = load_first(x + i, left), imaginary = load_first(x + half + i, left);
            const vec cosine = load_first(angles + i, left);
            const vec sine = load_first(angles + half + i, left);
            store_first(x + i, real * cosine - imaginary * sine, left);
            store_first(x + half + i, imaginary * cosine + real * sine, left);
        }
    }
}

// A tile's first rows of scores to e^(score - largest), and the inverse of their sums. The first
// sees the keys from `first` to `end`, of `length`, each next row those one later; others get 0.
// bias: what the first row's scores have added once they are scaled, each next row's one key later.
template <class T>
void softmax(float* scores, int64_t rows, int64_t length, int64_t first, int64_t end, float scale,
             const float* bias, T* out, float (&inverse)[TILE<T>]) {
    const int64_t padded = stripes_of(length) * KEYS;
    for (int r = 0; r < rows; r++, first++, end++, scores += padded, out += padded) {
        if (bias)
            for (int64_t i = 0; i < padded; i += LANES)
                store(scores + i, load<vec>(scores + i) * scale + load<vec>(bias + i - r));
        for (int64_t i = 0; i < std::min(first, padded); i++) scores[i] = -__builtin_inff();
        for (int64_t i = std::min(length, end); i < padded; i++) scores[i] = -__builtin_inff();
        vec top = splat(-__builtin_inff()), total = {};
        for (int64_t i = 0; i < padded; i += LANES) top = max(load<vec>(scores + i), top);
        const float left = bias ? 1 : scale, shift = largest(top) * left;
        for (int64_t i = 0; i < padded; i += LANES) {
            vec e = exp(load<vec>(scores + i) * left - shift);
            total += e;
            store_narrow(out + i, e);
        }
        inverse[r] = 1.0f / sum(total);
    }
}

// Columns without holes.
inline Stripe whole_stripe(const uint32_t* weights, const int32_t* units) {
    static constexpr int32_t START = 0;
    return {weights, &START, units, 1, KEYS, *units % DEPTH};
}

// q, k, v, y: (length, features), rows `stride` and `y_stride` elements apart. bias: null, or of a
// query and the key `d` after it (before it, if d < 0) at `d`; read of whole stripes.
// window: how far from a query the keys are that it sees.
template <class T, class Y>
void attend(const T* q, const T* k, const T* v, int64_t stride, int64_t length, int64_t features,
            float scale, const float* bias, int64_t window, Y* y, int64_t y_stride,
            AttentionScratch<T> s) {
    const int64_t key_units = units<T>(length);
    const int32_t feature_units = units<T>(features);
    const int64_t padded = stripes_of(length) * KEYS;
    for (int64_t key = 0; key < padded; key += OCTET) {
        const int64_t rows = std::clamp<int64_t>(length - key, 0, OCTET);
        uint32_t* stripe = s.keys + key / KEYS * KEYS * feature_units;
        pack_keys(k + key * stride, stride, rows, features, stripe + key % KEYS);
    }
    for (int64_t j = 0; j < features; j += KEYS)
        pack_values(v + j, stride, length, features - j, s.values + j * key_units);

    for (int64_t query = 0; query < length; query += TILE<T>) {
        const int64_t rows = std::min<int64_t>(length - query, TILE<T>);
        // whole stripes of keys, from the first that the first row sees to the last row's last
        const int64_t first = std::max<int64_t>(0, query - window) / KEYS * KEYS;
        const int64_t seen = std::min(length, query + rows + window) - first;
        const int64_t seen_padded = stripes_of(seen) * KEYS;
        const Rows<T> queries{(uint32_t*)s.queries, feature_units};
        const Rows<T> probabilities{(uint32_t*)s.probabilities, seen_padded / Unit<T>::TERMS};
        copy_rows(q + query * stride, stride, rows, features, s.queries,
                  feature_units * Unit<T>::TERMS);
        for (int64_t key = 0; key < seen; key += KEYS) {
            const uint32_t* keys = s.keys + (first + key) * feature_units;
            multiply<T>(whole_stripe(keys, &feature_units), queries, s.scores + key, seen_padded);
        }
        float inverse[TILE<T>];
        softmax(s.scores, rows, seen, query - window - first, query + window + 1 - first, scale,
                bias ? bias + first - query : nullptr, s.probabilities, inverse);
        const int32_t seen_units = units<T>(seen);
        for (int64_t j = 0; j < features; j += KEYS) {
            alignas(64) float sums[TILE<T> * KEYS];
            const uint32_t* values = s.values + j * key_units + first / Unit<T>::TERMS * KEYS;
            multiply<T>(whole_stripe(values, &seen_units), probabilities, sums, KEYS);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < KEYS && j + i < features; i += LANES)
                    store_first(y + (query + r) * y_stride + j + i,
                                load<vec>(sums + r * KEYS + i) * inverse[r], features - j - i);
        }
    }
}

}  // namespace
