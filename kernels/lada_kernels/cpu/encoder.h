// A whole BERT encoder: x = LN(x + attention(x)); x = LN(x + W2 gelu(W1 x)), layer by layer; or,
// where norms come first, x = x + attention(LN(x)); x = x + W2 gelu(W1 LN(x)). Its sequences are
// packed one behind the other, without padding.
#pragma once
#include <numeric>

#include "attention.h"
#include "schedule.h"

extern "C" {

struct Layer {
    Linear qkv, out, up, down;  // qkv: the columns of q, then those of k and v
    // Of x before attention, where norms come first; between attention and `up`; after `down`.
    Norm input_norm, attention_norm, output_norm;
    const float* angles;  // null, or what queries and keys are turned by: see `rotate`
    int64_t window;       // how far from a query the keys are that it sees
    int32_t gate;         // the activation of the first half of `up`, times the second; or none
};

struct Encoder {
    const Layer* layers;
    int32_t count;
    int32_t heads;
    int32_t norms_first;
    int64_t features;   // of x; a head has features / heads of them
    float scale;        // of the scores
    const float* bias;  // null, or (heads, 2 * reach), added to them, that of distance 0 at `reach`
    int64_t reach;      // no less than the longest sequence and a stripe of keys
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

constexpr int64_t GROUP = 64;  // tokens of short sequences that a thread attends to at a time

// What a thread needs for one head of a group of sequences.
template <class A> struct HeadScratch {
    int64_t part_stride, stride;
    A* qkv;  // (tokens, stride): queries, keys and values in whole stripes, part_stride apart
    AttentionScratch<A> attention;

    HeadScratch(Carver& c, int64_t longest, int64_t features)
        // a head begins in a stripe at a multiple of what features and stripes have in common
        : part_stride(padded(features + MAX_WIDTH - std::gcd(features, MAX_WIDTH), MAX_WIDTH)),
          stride(3 * part_stride),
          qkv(c.take<A>(tiles_of<A>(std::max(longest, GROUP)) * TILE<A> * stride)),
          attention(c, longest, features) {}
};

// Intermediate results, of which a thread that works alone has the rows from its own first one on.
template <class T> struct EncoderScratch {
    typedef typename Attended<T>::Type A;

    int64_t longest, head_features, stride, hidden_stride, head_bytes;
    int64_t* groups;  // the first sequence of each group, and of one beyond the last
    T* state;         // (tokens, stride): x between layers, or LN(x) where norms come first
    T* stream;        // (tokens, stride): x where norms come first
    T* attended;      // (tokens, stride)
    T* between;       // (rows, stride): after attention
    T* hidden;        // (rows, hidden_stride)
    char* heads;      // (threads, head_bytes)
    Scratch<T> qkv, linear;

    EncoderScratch(Carver& c, const Encoder& e, const Most& most, const int64_t* starts,
                   int64_t sequences, int64_t longest, int threads)
        : longest(longest), head_features(e.features / e.heads),
          stride(row_stride<T>(e.features, most.ranks)),
          hidden_stride(row_stride<T>(most.hidden_features, most.ranks)),
          groups(c.take<int64_t>(sequences + 1)),
          qkv(c, starts[sequences] + TILE<T>, e.features, most.ranks, 0),
          linear(c, scratch_rows<T>(starts[sequences], threads),
                 std::max(e.features, most.hidden_features), most.ranks, e.features) {
        const int64_t tokens = starts[sequences], rows = scratch_rows<T>(tokens, threads);
        state = c.take<T>((tokens + TILE<T>) * stride);  // a tile begins at any of them
        stream = c.take<T>(e.norms_first ? tokens * stride : 0);
        attended = c.take<T>((tokens + TILE<T>) * stride);
        between = c.take<T>(rows * stride);
        hidden = c.take<T>(rows * hidden_stride);
        Carver counter{nullptr};
        of_head(counter);
        head_bytes = counter.bytes;
        heads = c.take<char>(threads * head_bytes);
    }

    HeadScratch<A> of_head(Carver& c) const { return {c, longest, head_features}; }
};

// Whole sequences, one behind the other: one alone, or more that are short. Returns how many groups
// there are.
inline int64_t group(const int64_t* starts, int64_t sequences, int64_t* groups) {
    int64_t count = 0;
    for (int64_t i = 0; i < sequences; i++)
        if (!count || starts[i + 1] - starts[groups[count - 1]] > GROUP) groups[count++] = i;
    groups[count] = sequences;
    return count;
}

// The whole stripes of an output that hold columns `first` to `end`; returns where `first` is in y.
template <class T, class Y>
Y* expand_columns(const Step<T, Y>& step, int64_t first, int64_t end, int64_t rows,
                  const Scratch<T>& s) {
    const int64_t width = step.linear.up.width;
    Y* y = step.y;
    for (int stripe = first / width; stripe * width < end; stripe++, y += width)
        for (int64_t i = 0; i < tiles_of<T>(rows); i++)
            expand(step.linear, stripe, tile_of(step, i, s), rows_in<T>(i, rows),
                   Output<T, Y>{y + i * TILE<T> * step.y_stride, step.y_stride, nullptr, 0});
    return step.y + first % width;
}

// Attention of all sequences; `state`, reduced, becomes `attended`. Queries, keys and values are
// computed head by head, so that what a thread writes of them is in its cache when it reads it.
template <class T>
void attend_all(const Encoder& e, const Layer& layer, const int64_t* starts, int64_t groups,
                const EncoderScratch<T>& s) {
    typedef typename Attended<T>::Type A;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < groups * e.heads; task++) {
        const int64_t head = task % e.heads, *sequences = s.groups + task / e.heads;
        const int64_t first = starts[sequences[0]], rows = starts[sequences[1]] - first;
        Carver c{s.heads + omp_get_thread_num() * s.head_bytes};
        const HeadScratch<A> own = s.of_head(c);
        A* parts[3];
        for (int i = 0; i < 3; i++) {
            const int64_t column = i * e.features + head * s.head_features;
            const Step<T, A> step{layer.qkv, s.state + first * s.stride, s.stride,
                                  own.qkv + i * own.part_stride, own.stride};
            parts[i] = expand_columns(step, column, column + s.head_features, rows,
                                      s.qkv.from(first));
        }
        for (int64_t i = sequences[0]; i < sequences[1]; i++) {
            const int64_t at = (starts[i] - first) * own.stride, length = starts[i + 1] - starts[i];
            for (int part = 0; layer.angles && part < 2; part++)
                rotate(parts[part] + at, own.stride, length, s.head_features, layer.angles);
            attend(parts[0] + at, parts[1] + at, parts[2] + at, own.stride, length,
                   s.head_features, e.scale, e.bias ? e.bias + (2 * head + 1) * e.reach : nullptr,
                   layer.window, s.attended + starts[i] * s.stride + head * s.head_features,
                   s.stride, own.attention);
        }
    }
}

// What follows attention, by `run`, for the rows from `first` on; `between` and `hidden` hold them
// alone. The last layer's output goes to x, that of others to `state`.
template <class T, class Run>
void after_attention(const Encoder& e, int i, int64_t first, T* between, T* hidden, T* x,
                     const EncoderScratch<T>& s, Run run) {
    const Layer& layer = e.layers[i];
    const bool last = i + 1 == e.count;
    const int64_t stride = s.stride, f = e.features, at = first * stride;
    T *state = s.state + at, *stream = e.norms_first ? s.stream + at : nullptr;
    T *y = last ? x + first * f : state;
    const Norm* output_norm = &layer.output_norm;
    if (e.norms_first) output_norm = last ? nullptr : &e.layers[i + 1].input_norm;

    run(Step<T>{layer.out, s.attended + at, stride, between, stride, stream ? stream : state,
                stride, &layer.attention_norm, stream});
    Linear up = layer.up;  // whole units: what lies beyond meets no weight, but must be finite
    up.out_features = units<T>(up.out_features) * Unit<T>::TERMS;
    run(Step<T>{up, between, stride, hidden, s.hidden_stride, nullptr, 0, nullptr, nullptr,
                (Activation)layer.gate});
    run(Step<T>{layer.down, hidden, s.hidden_stride, y, last ? f : stride,
                stream ? stream : between, stride, output_norm, stream});
}

// A row of x to where the first layer finds it.
template <class T> void enter(const Encoder& e, const T* x, T* state, T* stream) {
    copy_rows(x, e.features, 1, e.features, state, 0);
    if (!e.norms_first) return;
    convert(x, e.features, stream);
    normalize(x, e.features, e.layers[0].input_norm, state);
}

// x (tokens, features) becomes the last layer's output. Of sequence i are rows starts[i] and on.
template <class T>
void encode(const Encoder& e, const int64_t* starts, int64_t sequences, T* x, int threads,
            const EncoderScratch<T>& s) {
    const int64_t tokens = starts[sequences], f = e.features, stride = s.stride;
    const int64_t groups = group(starts, sequences, s.groups);
    const auto qkv_step = [&](int i, int64_t row) {
        return Step<T>{e.layers[i].qkv, s.state + row * stride, stride};
    };
    const int64_t block = block_of<T>(tokens, threads);
    const bool apart = alone<T>(tokens, threads);
#pragma omp parallel num_threads(threads)
    if (const TileUse tiles; apart) {
        const int64_t own = omp_get_thread_num() * block;
        const Scratch<T> scratch = s.linear.from(own);
        for (int i = -1; i < e.count; i++) {
            if (i >= 0) attend_all(e, e.layers[i], starts, groups, s);
#pragma omp for schedule(dynamic)
            for (int64_t first = 0; first < tokens; first += block) {
                const int64_t rows = std::min(tokens - first, block);
                const auto run = [&](const auto& step) { run_alone(step, rows, scratch); };
                if (i < 0)
                    for (int64_t row = first; row < first + rows; row++)
                        enter(e, x + row * f, s.state + row * stride, s.stream + row * stride);
                else
                    after_attention(e, i, first, s.between + own * stride,
                                    s.hidden + own * s.hidden_stride, x, s, run);
                if (i + 1 < e.count) reduce_alone(qkv_step(i + 1, first), rows, s.qkv.from(first));
            }
        }
    } else {
        const auto run = [&](const auto& step) { run_together(step, tokens, s.linear); };
#pragma omp for
        for (int64_t row = 0; row < tokens; row++)
            enter(e, x + row * f, s.state + row * stride, s.stream + row * stride);
        for (int i = 0; i < e.count; i++) {
            reduce_together(qkv_step(i, 0), tokens, s.qkv);
            attend_all(e, e.layers[i], starts, groups, s);
            after_attention(e, i, 0, s.between, s.hidden, x, s, run);
        }
    }
}

}  // namespace
