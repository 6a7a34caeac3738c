// Attention of one head of one sequence: softmax(q k^T / scale) v, eight queries at a time. Both
// products are those of `linear.h`: the keys, and then the values, are stripes without holes.
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
    uint32_t* panel;    // of queries, then of probabilities
    float* scores;      // (8, keys)
    T* probabilities;   // (8, keys)

    AttentionScratch(Carver& c, int64_t length, int64_t features) {
        const int64_t keys_padded = stripes_of(length) * KEYS;
        keys = c.take<uint32_t>(keys_padded * units<T>(features));
        values = c.take<uint32_t>(stripes_of(features) * KEYS * units<T>(length));
        panel = c.take<uint32_t>(PANEL * (keys_padded + features));
        scores = c.take<float>(PANEL * keys_padded);
        probabilities = c.take<T>(PANEL * keys_padded);
    }
};

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

// Rows of scores to e^(score - largest), and the inverse of their sums. Keys past the end get 0.
template <class T>
void softmax(float* scores, int64_t length, float scale, T* out, float (&inverse)[PANEL]) {
    const int64_t padded = stripes_of(length) * KEYS;
    for (int r = 0; r < PANEL; r++, scores += padded, out += padded) {
        for (int64_t i = length; i < padded; i++) scores[i] = -__builtin_inff();
        vec top = splat(-__builtin_inff()), total = {};
        for (int64_t i = 0; i < padded; i += LANES) top = max(load<vec>(scores + i), top);
        const float shift = largest(top) * scale;
        for (int64_t i = 0; i < padded; i += LANES) {
            vec e = exp(load<vec>(scores + i) * scale - shift);
            total += e;
            store_narrow(out + i, e);
        }
        inverse[r] = 1.0f / sum(total);
    }
}

// q, k, v, y: (length, features), rows `stride` and `y_stride` elements apart.
template <class T>
void attend(const T* q, const T* k, const T* v, int64_t stride, int64_t length, int64_t features,
            float scale, T* y, int64_t y_stride, AttentionScratch<T> s) {
    const int64_t key_units = units<T>(length), feature_units = units<T>(features);
    for (int64_t key = 0; key < stripes_of(length) * KEYS; key += PANEL) {
        const int64_t left = length - key;
        const int64_t rows = left < 0 ? 0 : left < PANEL ? left : PANEL;
        uint32_t* stripe = s.keys + key / KEYS * KEYS * feature_units;
        pack_panel(k + key * stride, stride, rows, features, stripe + key % KEYS, KEYS);
    }
    for (int64_t j = 0; j < features; j += KEYS)
        pack_values(v + j, stride, length, features - j, s.values + j * key_units);

    const int32_t start = 0, whole_keys = feature_units, whole_values = key_units;
    for (int64_t query = 0; query < length; query += PANEL) {
        const int64_t rows = length - query < PANEL ? length - query : PANEL;
        pack_panel(q + query * stride, stride, rows, features, s.panel);
        const int64_t padded = stripes_of(length) * KEYS;
        for (int64_t key = 0; key < length; key += KEYS)
            multiply<T>({s.keys + key * feature_units, &start, &whole_keys, 1, KEYS}, s.panel,
                        s.scores + key, padded);
        float inverse[PANEL];
        softmax(s.scores, length, scale, s.probabilities, inverse);
        pack_panel(s.probabilities, padded, PANEL, length, s.panel);
        for (int64_t j = 0; j < features; j += KEYS) {
            float sums[PANEL * KEYS];
            multiply<T>({s.values + j * key_units, &start, &whole_values, 1, KEYS}, s.panel, sums,
                        KEYS);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < KEYS && j + i < features; i += LANES)
                    store_first(y + (query + r) * y_stride + j + i,
                                load<vec>(sums + r * KEYS + i) * inverse[r], features - j - i);
        }
    }
}

}  // namespace
