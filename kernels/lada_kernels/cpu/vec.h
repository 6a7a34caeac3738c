// SIMD vectors of the target's width, by GCC's vector extensions: the same source becomes AVX-512,
// AVX2 or whatever else the target has. Everything has internal linkage, since one library per
// instruction set is built from it.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;  // fp32 elements of a vector
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

struct bf16 {
    uint16_t bits;
};

// fp32 in memory, int8 in matrix products (quantized.h).
struct quantized {
    float value;
};

template <class V> inline V load(const void* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

template <class V> inline void store(void* p, V v) { memcpy(p, &v, sizeof v); }

inline vec splat(float f) { return f - vec{}; }

inline vec max(vec a, vec b) { return a > b ? a : b; }

// Butterfly shuffles: they swap lanes that are 1, 2, 4 and 8 apart.
struct Butterfly {
    int32_t lanes[4][LANES];
    constexpr Butterfly() : lanes() {
        for (int i = 0; i < 4; i++)
            for (int lane = 0; lane < LANES; lane++) lanes[i][lane] = lane ^ 1 << i;
    }
};

constexpr Butterfly BUTTERFLY;

// Horizontal reduction of all lanes by a commutative, associative `op`.
template <class V, class Op> inline auto horizontal_reduce(V v, Op op) {
    for (int i = 0; 1 << i < LANES; i++)
        v = op(v, __builtin_shuffle(v, load<ivec>(BUTTERFLY.lanes[i])));
    return v[0];
}

inline float horizontal_sum(vec v) {
    return horizontal_reduce(v, [](vec a, vec b) { return a + b; });
}

inline float horizontal_max(vec v) { return horizontal_reduce(v, max); }

// Conversions between elements in memory and fp32; to bf16, rounded to nearest even.

inline float widen(float f) { return f; }

inline float widen(bf16 h) {
    uint32_t bits = (uint32_t)h.bits << 16;
    return load<float>(&bits);
}

inline float widen(quantized q) { return q.value; }

inline void narrow(float f, float* p) { *p = f; }

inline void narrow(float f, quantized* p) { p->value = f; }

inline void narrow(float f, bf16* p) {
    uint32_t bits = load<uint32_t>(&f);
    bool nan = f != f;  // rounding up could carry into the exponent and make it infinite
    p->bits = nan ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline vec load_wide(const float* p) { return load<vec>(p); }

inline vec load_wide(const quantized* p) { return load<vec>(p); }

inline vec load_wide(const bf16* p) {
    return (vec)(__builtin_convertvector(load<hvec>(p), uvec) << 16);
}

inline void store_narrow(float* p, vec v) { store(p, v); }

inline void store_narrow(quantized* p, vec v) { store(p, v); }

inline void store_narrow(bf16* p, vec v) {
#if defined(__AVX512BF16__)
    store(p, _mm512_cvtneps_pbh((__m512)v));
#else
    uvec bits = (uvec)v;
    uvec rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    uvec nan = (uvec)(v != v);
    store(p, __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), hvec));
#endif
}

// Loads the first n elements of a vector; the others are 0.
template <class T> inline vec load_first(const T* p, int64_t n) {
    if (n >= LANES) return load_wide(p);
    vec v = {};
    for (int i = 0; i < n; i++) v[i] = widen(p[i]);
    return v;
}

// Stores the first n elements of a vector.
template <class T> inline void store_first(T* p, vec v, int64_t n) {
    if (n >= LANES) return store_narrow(p, v);
    for (int i = 0; i < n; i++) narrow(v[i], p + i);
}

// VNNI group: 32 bits of SIZE elements that are consecutive along K, which one instruction
// multiplies and adds to a 32-bit sum: one fp32, two bf16 or four int8.
template <class T> struct Group;

template <> struct Group<float> {
    typedef vec Sum;
    static constexpr int SIZE = 1;
    static vec multiply_add(uint32_t x, uvec w, vec acc) {
        return acc + splat(load<float>(&x)) * (vec)w;
    }
    // Interleaves a row with the next one into groups; an fp32 group holds one row alone.
    static uvec interleave(vec row, vec) { return (uvec)row; }
};

template <> struct Group<bf16> {
    typedef vec Sum;
    static constexpr int SIZE = 2;
    static vec multiply_add(uint32_t x, uvec w, vec acc) {
#if defined(__AVX512BF16__)
        return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(x), (__m512bh)w);
#else
        uint32_t low = x << 16, high = x & 0xffff0000;
        acc += splat(load<float>(&low)) * (vec)(w << 16);
        return acc + splat(load<float>(&high)) * (vec)(w & 0xffff0000);
#endif
    }
    static uvec interleave(vec row, vec next) { return (uvec)row >> 16 | (uvec)next; }
};

template <> struct Group<quantized> {
    typedef ivec Sum;
    static constexpr int SIZE = 4;
    // x unsigned, w signed, as VNNI wants them.
    static ivec multiply_add(uint32_t x, uvec w, ivec acc) {
#if defined(__AVX512VNNI__)
        return (ivec)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(x), (__m512i)w);
#else
        for (int byte = 0; byte < 4; byte++)
            acc += (int32_t)(x >> 8 * byte & 255) * ((ivec)(w << (24 - 8 * byte)) >> 24);
        return acc;
#endif
    }
};

// Groups that hold k elements.
template <class T> constexpr int64_t group_count(int64_t k) {
    return (k + Group<T>::SIZE - 1) / Group<T>::SIZE;
}

}  // namespace
