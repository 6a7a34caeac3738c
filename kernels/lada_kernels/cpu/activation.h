// Activations of fp32 vectors. NaN stays NaN.
#pragma once
#include "vec.h"

namespace {

enum Activation { NONE, RELU, GELU, GELU_TANH, SILU, TANH };

// c[0] + c[1] x + ... by Horner's rule.
template <int N> inline vec polynomial(const float (&c)[N], vec x) {
    vec p = splat(c[N - 1]);
#pragma GCC unroll 16
    for (int i = N - 2; i >= 0; i--) p = p * x + c[i];
    return p;
}

inline vec clamp(vec x, float low, float high) {
    x = x < low ? splat(low) : x;
    return x > high ? splat(high) : x;
}

// e^x = 2^n e^r with |r| <= ln(2) / 2, e^r by its Taylor series; error of at most 2 ulp.
inline vec exp(vec x) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    constexpr float TAYLOR[] = {1.0f, 1.0f, 1 / 2.0f, 1 / 6.0f, 1 / 24.0f, 1 / 120.0f, 1 / 720.0f};
    x = clamp(x, -87.0f, 88.0f);
    vec shifted = x * 1.44269504f + ROUND;
    vec n = shifted - ROUND;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln(2) in two parts
    // x * 0 restores a NaN, whose bits the shift may turn into a number
    return (vec)((ivec)polynomial(TAYLOR, r) + ((ivec)shifted << 23)) + x * 0.0f;
}

// erf(x / sqrt(2)) by an odd rational function, fitted so that the error of gelu is below 1e-6.
inline vec erf_sqrt_half(vec x) {
    constexpr float END = 5.3f;  // from here on erf rounds to 1
    constexpr float P[] = {0.79788423f,    0.067793541f,   0.0093754511f,
                           0.00034073426f, 1.2936340e-05f, 4.6774591e-08f};
    constexpr float Q[] = {1.0f,           0.25163144f,    0.028691588f,
                           0.0018924876f,  7.4699397e-05f, 1.2246446e-06f};
    vec s = x * x;
    vec inside = x * polynomial(P, s) / polynomial(Q, s);
    return x > END ? splat(1.0f) : x < -END ? splat(-1.0f) : inside;
}

// 0 where `exp` clamps, since its smallest value times a huge x would not vanish.
inline vec sigmoid(vec x) {
    return x < -88.0f ? vec{} : 1.0f / (1.0f + exp(-x));
}

inline vec tanh(vec x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

// Replaces n floats, a multiple of LANES, by f of them.
template <class F> inline void apply(float* x, int64_t n, F f) {
    for (int64_t i = 0; i < n; i += LANES) store(x + i, f(load<vec>(x + i)));
}

// Replaces n floats, a multiple of LANES, by their activations.
inline void activate(float* x, int64_t n, Activation activation) {
    switch (activation) {
    case RELU: return apply(x, n, [](vec v) { return v < 0.0f ? vec{} : v; });
    case GELU: return apply(x, n, [](vec v) { return 0.5f * v * (1.0f + erf_sqrt_half(v)); });
    case GELU_TANH:
        return apply(x, n, [](vec v) {
            return v * sigmoid(1.5957691f * (v + 0.044715f * v * v * v));
        });
    case SILU: return apply(x, n, [](vec v) { return v * sigmoid(v); });
    case TANH: return apply(x, n, [](vec v) { return tanh(v); });
    case NONE: return;
    }
}

}  // namespace
