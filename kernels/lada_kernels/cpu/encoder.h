// A whole BERT encoder: x = LN(x + attention(x)); x = LN(x + W2 gelu(W1 x)), layer by layer. Its
// sequences are packed one behind the other, without padding.
#pragma once
#include "attention.h"
#include "schedule.h"

extern "C" {

struct Layer {
    Linear qkv, out, up, down;  // qkv: the columns of q, then those of k and v
    Norm attention_norm, output_norm;
};

struct Encoder {
    const Layer* layers;
    int32_t count;
    int32_t heads;
    int64_t features;  // of x; a head has features / heads of them
    float scale;       // of the scores
};

}  // extern "C"

namespace {

// What attention computes in: its operands change from call to call, and are not quantized.
template <class T> struct Attended {
    typedef T Type;
};

template <> struct Attended<quantized> {
#if defined(__AVX512BF16__)
    typedef bf16 Type;
#else
    typedef float Type;
#endif
};

// Sizes of the largest of an encoder's linears.
struct Most {
    int64_t ranks = 0, hidden_features = 0;

    explicit Most(const Encoder& e) {
        for (int i = 0; i < e.count; i++) {
            const Layer& layer = e.layers[i];
            hidden_features = std::max(hidden_features, layer.up.out_features);
            for (const Linear* l : {&layer.qkv, &layer.out, &layer.up, &layer.down})
                ranks = std::max(ranks, ::ranks(*l));
        }
    }
};

// Intermediate results, of which a thread that works alone has the rows from its own first one on.
template <class T> struct EncoderScratch {
    typedef typename Attended<T>::Type A;

    int64_t features, stride, hidden_stride;
    T* state;     // (tokens, stride): x between layers
    A* qkv;       // (tokens, 3 * features)
    T* attended;  // (tokens, stride)
    T* between;   // (rows, stride): after attention
    T* hidden;    // (rows, hidden_stride)
    char* attention;  // for each thread
    int64_t attention_bytes;
    Scratch<T> linear;

    EncoderScratch(Carver& c, const Encoder& e, const Most& most, int64_t tokens, int64_t longest,
                   int threads)
        : features(e.features), stride(row_stride<T>(features, most.ranks)),
          hidden_stride(row_stride<T>(most.hidden_features, most.ranks)),
          linear(c, scratch_rows(tokens, threads), std::max(features, most.hidden_features),
                 most.ranks, features) {
        const int64_t rows = scratch_rows(tokens, threads), whole = tiles_of(tokens) * TILE;
        state = c.take<T>(whole * stride);
        qkv = c.take<A>(tokens * 3 * features);
        attended = c.take<T>(whole * stride);
        between = c.take<T>(rows * stride);
        hidden = c.take<T>(rows * hidden_stride);
        Carver counter{nullptr};
        AttentionScratch<A>(counter, longest, features / e.heads);
        attention_bytes = counter.bytes;
        attention = c.take<char>(threads * attention_bytes);
    }
};

template <class T>
void attend_all(const Encoder& e, const int64_t* starts, int64_t sequences,
                const EncoderScratch<T>& s) {
    const int64_t width = e.features / e.heads, stride = 3 * e.features;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < sequences * e.heads; task++) {
        const int64_t first = starts[task / e.heads], column = task % e.heads * width;
        const int64_t length = starts[task / e.heads + 1] - first;
        Carver c{s.attention + omp_get_thread_num() * s.attention_bytes};
        const auto* q = s.qkv + first * stride + column;
        attend(q, q + e.features, q + 2 * e.features, stride, length, width, e.scale,
               s.attended + first * s.stride + column, s.stride,
               AttentionScratch<typename Attended<T>::Type>(c, length, width));
    }
}

// What follows attention, by `run`, for rows of x and `attended`; y may be x.
template <class T, class Run>
void after_attention(const Layer& layer, const T* x, T* attended, T* between, T* hidden, T* y,
                     int64_t y_stride, const EncoderScratch<T>& s, Run run) {
    run(Step<T>{layer.out, attended, s.stride, between, s.stride, x, s.stride,
                &layer.attention_norm});
    Linear up = layer.up;  // whole units: what lies beyond meets no weight, but must be finite
    up.out_features = units<T>(up.out_features) * Unit<T>::TERMS;
    run(Step<T>{up, between, s.stride, hidden, s.hidden_stride});
    run(Step<T>{layer.down, hidden, s.hidden_stride, y, y_stride, between, s.stride,
                &layer.output_norm});
}

// x (tokens, features) becomes the last layer's output. Of sequence i are rows starts[i] and on.
template <class T>
void encode(const Encoder& e, const int64_t* starts, int64_t sequences, T* x, int threads,
            const EncoderScratch<T>& s) {
    const int64_t tokens = starts[sequences], f = e.features, stride = s.stride;
    const auto qkv_step = [&](int i, int64_t row) {
        return Step<T, typename Attended<T>::Type>{e.layers[i].qkv, s.state + row * stride, stride,
                                                   s.qkv + row * 3 * f, 3 * f};
    };
    const bool apart = alone(tokens, threads);
#pragma omp parallel num_threads(threads)
    if (apart) {
        const int64_t own = omp_get_thread_num() * BLOCK;
        const Scratch<T> scratch = s.linear.from(own);
        for (int i = -1; i < e.count; i++) {
            if (i >= 0) attend_all(e, starts, sequences, s);
#pragma omp for schedule(dynamic)
            for (int64_t first = 0; first < tokens; first += BLOCK) {
                const int64_t rows = tokens - first < BLOCK ? tokens - first : BLOCK;
                const auto run = [&](const auto& step) { run_alone(step, rows, scratch); };
                const bool last = i + 1 == e.count;
                T* state = s.state + first * stride;
                if (i < 0)
                    copy_rows(x + first * f, f, rows, f, state, stride);
                else
                    after_attention(e.layers[i], state, s.attended + first * stride,
                                    s.between + own * stride, s.hidden + own * s.hidden_stride,
                                    last ? x + first * f : state, last ? f : stride, s, run);
                if (!last) run(qkv_step(i + 1, first));
            }
        }
    } else {
        const auto run = [&](const auto& step) { run_together(step, tokens, s.linear); };
#pragma omp for
        for (int64_t row = 0; row < tokens; row++)
            copy_rows(x + row * f, f, 1, f, s.state + row * stride, stride);
        for (int i = 0; i < e.count; i++) {
            const bool last = i + 1 == e.count;
            run(qkv_step(i, 0));
            attend_all(e, starts, sequences, s);
            after_attention(e.layers[i], s.state, s.attended, s.between, s.hidden,
                            last ? x : s.state, last ? f : stride, s, run);
        }
    }
}

}  // namespace
