// Attention of one head of one sequence: softmax(q k^T * scale + bias) v, a row tile of queries at
// a time, over all keys or a sliding window. Both products are those of `linear.h`: the keys, and
// then the values, are dense panels of MAX_NR columns.
#pragma once
#include "linear.h"
#include "memory.h"

namespace {

inline int64_t panel_count(int64_t columns) { return (columns + MAX_NR - 1) / MAX_NR; }

// Memory for one head of a sequence of `length` tokens.
template <class T> struct AttentionScratch {
    uint32_t* keys;    // (panels of keys, groups of features, MAX_NR)
    uint32_t* values;  // (panels of features, groups of keys, MAX_NR)
    T* queries;        // (TILE_ROWS, features in whole groups)
    float* scores;     // (TILE_ROWS, keys in whole panels)
    T* probabilities;  // (TILE_ROWS, keys in whole panels)

    AttentionScratch(BumpAllocator& a, int64_t length, int64_t features) {
        const int64_t padded_keys = panel_count(length) * MAX_NR;
        keys = a.allocate<uint32_t>(padded_keys * group_count<T>(features));
        values = a.allocate<uint32_t>(panel_count(features) * MAX_NR * group_count<T>(length));
        queries = a.allocate<T>(TILE_ROWS<T> * group_count<T>(features) * Group<T>::SIZE);
        scores = a.allocate<float>(TILE_ROWS<T> * padded_keys);
        probabilities = a.allocate<T>(TILE_ROWS<T> * padded_keys);
    }
};

constexpr int OCTET = 8;  // side of a transposed block: 8 registers of 8 groups

typedef uint32_t octet __attribute__((vector_size(4 * OCTET)));

// Transposes 8 x 8 by three perfect shuffles of rows (i, i + 4).
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

// Packs up to 8 rows of k as columns of a panel, group by group; missing rows are 0.
template <class T>
void pack_keys(const T* k, int64_t stride, int64_t rows, int64_t features, uint32_t* panel) {
    constexpr int SIZE = Group<T>::SIZE;
    const int64_t whole = features / SIZE;
    int64_t group = 0;
    for (; group + OCTET <= whole; group += OCTET) {
        octet r[OCTET] = {};
        for (int64_t i = 0; i < rows; i++) r[i] = load<octet>(k + i * stride + group * SIZE);
        transpose(r);
        for (int i = 0; i < OCTET; i++) store(panel + (group + i) * MAX_NR, r[i]);
    }
    for (; group < group_count<T>(features); group++) {
        const int64_t bytes = (group < whole ? SIZE : features - whole * SIZE) * sizeof(T);
        for (int64_t i = 0; i < OCTET; i++) {
            uint32_t value = 0;
            if (i < rows) memcpy(&value, k + i * stride + group * SIZE, bytes);
            panel[group * MAX_NR + i] = value;
        }
    }
}

// Packs up to MAX_NR columns of v as a panel; groups are along the keys.
template <class T>
void pack_values(const T* v, int64_t stride, int64_t length, int64_t columns, uint32_t* panel) {
    for (int64_t key = 0; key < length; key += Group<T>::SIZE, panel += MAX_NR) {
        for (int64_t j = 0; j < MAX_NR; j += LANES) {
            const T* row = v + key * stride + j;
            const int64_t next_columns = key + 1 < length ? columns - j : 0;
            store(panel + j, Group<T>::interleave(load_first(row, columns - j),
                                                  load_first(row + stride, next_columns)));
        }
    }
}

// Rotary position embedding of queries or keys: the first half of a row's features are the real
// parts of complex numbers, the second the imaginary ones ("RoFormer", eq. 34).
// cos_sin: (positions, features), cosines, then sines.
template <class T>
void rotate(T* x, int64_t stride, int64_t length, int64_t features, const float* cos_sin) {
    const int64_t half = features / 2;
    for (int64_t row = 0; row < length; row++, x += stride, cos_sin += features) {
        for (int64_t i = 0; i < half; i += LANES) {
            const int64_t left = half - i;
            const vec real = load_first(x + i, left), imaginary = load_first(x + half + i, left);
            const vec cosine = load_first(cos_sin + i, left);
            const vec sine = load_first(cos_sin + half + i, left);
            store_first(x + i, real * cosine - imaginary * sine, left);
            store_first(x + half + i, imaginary * cosine + real * sine, left);
        }
    }
}

// e^(score - max) of the first `rows` rows of a tile, and the inverse of each row's sum.
// The first row attends to keys `begin` to `end` of `length`, each next row to keys one later;
// other keys get 0. bias: null, or that of the first row, added to the scaled scores; each next
// row's is shifted to one key later.
template <class T>
void softmax(float* scores, int64_t rows, int64_t length, int64_t begin, int64_t end, float scale,
             const float* bias, T* out, float (&inverse_sums)[TILE_ROWS<T>]) {
    const int64_t padded = panel_count(length) * MAX_NR;
    for (int r = 0; r < rows; r++, begin++, end++, scores += padded, out += padded) {
        if (bias)
            for (int64_t i = 0; i < padded; i += LANES)
                store(scores + i, load<vec>(scores + i) * scale + load<vec>(bias + i - r));
        for (int64_t i = 0; i < std::min(begin, padded); i++) scores[i] = -__builtin_inff();
        for (int64_t i = std::min(length, end); i < padded; i++) scores[i] = -__builtin_inff();
        vec top = splat(-__builtin_inff()), total = {};
        for (int64_t i = 0; i < padded; i += LANES) top = max(load<vec>(scores + i), top);
        const float factor = bias ? 1 : scale, shift = horizontal_max(top) * factor;
        for (int64_t i = 0; i < padded; i += LANES) {
            vec e = exp(load<vec>(scores + i) * factor - shift);
            total += e;
            store_narrow(out + i, e);
        }
        inverse_sums[r] = 1.0f / horizontal_sum(total);
    }
}

// Panel with one segment, of `groups` VNNI groups.
inline Panel dense_panel(const uint32_t* values, const int32_t* groups) {
    static constexpr int32_t START = 0;
    return {values, &START, groups, 1, MAX_NR, *groups % TILE_DEPTH};
}

// q, k, v, y: (length, features), rows `stride` and `y_stride` elements apart.
// bias: relative position bias, null or at distance 0: bias[key - query], read in whole panels.
// window: largest distance between a query and a key that it attends to.
template <class T, class Y>
void attend(const T* q, const T* k, const T* v, int64_t stride, int64_t length, int64_t features,
            float scale, const float* bias, int64_t window, Y* y, int64_t y_stride,
            AttentionScratch<T> s) {
    const int64_t key_groups = group_count<T>(length);
    const int32_t feature_groups = group_count<T>(features);
    const int64_t padded = panel_count(length) * MAX_NR;
    for (int64_t key = 0; key < padded; key += OCTET) {
        const int64_t rows = std::clamp<int64_t>(length - key, 0, OCTET);
        uint32_t* panel = s.keys + key / MAX_NR * MAX_NR * feature_groups;
        pack_keys(k + key * stride, stride, rows, features, panel + key % MAX_NR);
    }
    for (int64_t j = 0; j < features; j += MAX_NR)
        pack_values(v + j, stride, length, features - j, s.values + j * key_groups);

    for (int64_t query = 0; query < length; query += TILE_ROWS<T>) {
        const int64_t rows = std::min<int64_t>(length - query, TILE_ROWS<T>);
        // whole panels of keys, from the first row's first key to the last row's last
        const int64_t first = std::max<int64_t>(0, query - window) / MAX_NR * MAX_NR;
        const int64_t visible = std::min(length, query + rows + window) - first;
        const int64_t padded_visible = panel_count(visible) * MAX_NR;
        const Rows<T> queries{(uint32_t*)s.queries, feature_groups};
        const Rows<T> probabilities{(uint32_t*)s.probabilities, padded_visible / Group<T>::SIZE};
        copy_rows(q + query * stride, stride, rows, features, s.queries,
                  feature_groups * Group<T>::SIZE);
        for (int64_t key = 0; key < visible; key += MAX_NR) {
            const uint32_t* keys = s.keys + (first + key) * feature_groups;
            multiply<T>(dense_panel(keys, &feature_groups), queries, s.scores + key,
                        padded_visible);
        }
        float inverse_sums[TILE_ROWS<T>];
        softmax(s.scores, rows, visible, query - window - first, query + window + 1 - first, scale,
                bias ? bias + first - query : nullptr, s.probabilities, inverse_sums);
        const int32_t visible_groups = group_count<T>(visible);
        for (int64_t j = 0; j < features; j += MAX_NR) {
            alignas(64) float sums[TILE_ROWS<T> * MAX_NR];
            const uint32_t* values = s.values + j * key_groups + first / Group<T>::SIZE * MAX_NR;
            multiply<T>(dense_panel(values, &visible_groups), probabilities, sums, MAX_NR);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < MAX_NR && j + i < features; i += LANES)
                    store_first(y + (query + r) * y_stride + j + i,
                                load<vec>(sums + r * MAX_NR + i) * inverse_sums[r],
                                features - j - i);
        }
    }
}

}  // namespace
