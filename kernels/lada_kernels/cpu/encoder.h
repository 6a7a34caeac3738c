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
    typedef float Type;
};

// Intermediate results, of which a thread that works alone has the rows from its own first one on.
template <class T> struct EncoderScratch {
    T* qkv;       // (tokens, 3 * features)
    T* attended;  // (tokens, features)
    T* between;   // (rows, features): after attention
    T* hidden;    // (rows, hidden)
    int64_t features, hidden_features;
    char* attention;  // for each thread
    int64_t attention_bytes;
    Scratch linear;

    EncoderScratch(Carver& c, const Encoder& e, int64_t tokens, int64_t longest, int threads)
        : features(e.features), hidden_features(0), linear(make_linear(c, e, tokens, threads)) {
        const int64_t rows = scratch_rows(tokens, threads);
        for (int i = 0; i < e.count; i++)
            if (e.layers[i].up.out_features > hidden_features)
                hidden_features = e.layers[i].up.out_features;
        qkv = c.take<T>(tokens * 3 * features);
        attended = c.take<T>(tokens * features);
        between = c.take<T>(rows * features);
        hidden = c.take<T>(rows * hidden_features);
        Carver counter{nullptr};
        AttentionScratch<typename Attended<T>::Type>(counter, longest, features / e.heads);
        attention_bytes = counter.bytes;
        attention = c.take<char>(threads * attention_bytes);
    }

  private:
    static Scratch make_linear(Carver& c, const Encoder& e, int64_t tokens, int threads) {
        int64_t panel = 0;
        for (int i = 0; i < e.count; i++)
            for (const Linear* l : {&e.layers[i].qkv, &e.layers[i].out, &e.layers[i].up,
                                    &e.layers[i].down})
                if (panel_units<T>(*l) > panel) panel = panel_units<T>(*l);
        return Scratch(c, scratch_rows(tokens, threads), panel, e.features);
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
        typedef typename Attended<T>::Type A;
        const A* q = (const A*)s.qkv + first * stride + column;
        attend(q, q + e.features, q + 2 * e.features, stride, length, width, e.scale,
               (A*)s.attended + first * e.features + column, e.features,
               AttentionScratch<A>(c, length, width));
    }
}

template <class T> Step<T> qkv_step(const Layer& layer, T* x, const EncoderScratch<T>& s) {
    return {layer.qkv, x, s.features, s.qkv, 3 * s.features};
}

// What follows attention, for the rows of x and `attended`, by `run`.
template <class T, class Run>
void after_attention(const Layer& layer, T* x, const T* attended, T* between, T* hidden,
                     const EncoderScratch<T>& s, Run run) {
    const int64_t f = s.features, h = s.hidden_features;
    run(Step<T>{layer.out, attended, f, between, f, x, f, &layer.attention_norm});
    run(Step<T>{layer.up, between, f, hidden, h});
    run(Step<T>{layer.down, hidden, h, x, f, between, f, &layer.output_norm});
}

// x (tokens, features) becomes the last layer's output. Of sequence i are rows starts[i] and on.
template <class T>
void encode(const Encoder& e, const int64_t* starts, int64_t sequences, T* x, int threads,
            const EncoderScratch<T>& s) {
    const int64_t tokens = starts[sequences], f = e.features;
    const bool apart = alone(tokens, threads);
#pragma omp parallel num_threads(threads)
    if (apart) {
        const int64_t own = omp_get_thread_num() * BLOCK;
        const Scratch scratch = s.linear.from(own);
        for (int i = -1; i < e.count; i++) {
            if (i >= 0) attend_all(e, starts, sequences, s);
#pragma omp for schedule(dynamic)
            for (int64_t first = 0; first < tokens; first += BLOCK) {
                const int64_t rows = tokens - first < BLOCK ? tokens - first : BLOCK;
                const auto run = [&](const Step<T>& step) { run_alone(step, rows, scratch); };
                if (i >= 0)
                    after_attention(e.layers[i], x + first * f, s.attended + first * f,
                                    s.between + own * f, s.hidden + own * s.hidden_features, s, run);
                if (i + 1 < e.count)
                    run(from_row(qkv_step(e.layers[i + 1], x, s), first));
            }
        }
    } else {
        const auto run = [&](const Step<T>& step) { run_together(step, tokens, s.linear); };
        for (int i = 0; i < e.count; i++) {
            run(qkv_step(e.layers[i], x, s));
            attend_all(e, starts, sequences, s);
            after_attention(e.layers[i], x, s.attended, s.between, s.hidden, s, run);
        }
    }
}

}  // namespace
