// Transformer encoder. Each layer, with ffn(x) = output(act(intermediate(x))):
//   post-norm: x = LN(x + attention(x)); x = LN(x + ffn(x))
//   pre-norm: x = x + attention(LN(x)); x = x + ffn(LN(x))
// Sequences are packed one behind the other, without padding.
#pragma once
#include <numeric>

#include "attention.h"
#include "schedule.h"

extern "C" {

struct Layer {
    // qkv: columns of queries, then keys, then values. The others are named as in BERT.
    Linear qkv, attention_output, intermediate, output;
    // Before attention (pre-norm only); between attention and feed-forward; after the feed-forward.
    LayerNorm input_norm, attention_norm, output_norm;
    const float* cos_sin;  // null, or rotary position embedding: see `rotate`
    int64_t window;        // largest distance between a query and a key that it attends to
    int32_t gate;          // activation of the gated linear unit after `intermediate`, or NONE
};

struct Encoder {
    const Layer* layers;
    int32_t layer_count;
    int32_t heads;
    int32_t pre_norm;
    int64_t features;            // of x; each head has features / heads
    float scale;                 // of the scores
    const float* position_bias;  // null, or (heads, 2 * reach): column reach + key - query
    int64_t reach;               // at least the longest sequence plus a panel of keys
};

}  // extern "C"

namespace {

// Element type of attention: its operands change from call to call, so int8 would not pay.
template <class T> struct AttentionType {
    typedef T Type;
};

template <> struct AttentionType<quantized> {
#if defined(__AVX512BF16__)
    typedef bf16 Type;
#else
    typedef float Type;
#endif
};

// Largest sizes among an encoder's linears.
struct MaxSizes {
    int64_t rank = 0, intermediate_features = 0;

    explicit MaxSizes(const Encoder& e) {
        for (int i = 0; i < e.layer_count; i++) {
            const Layer& layer = e.layers[i];
            intermediate_features =
                std::max(intermediate_features, layer.intermediate.out_features);
            for (const Linear* l :
                 {&layer.qkv, &layer.attention_output, &layer.intermediate, &layer.output})
                rank = std::max(rank, padded_rank(*l));
        }
    }
};

// Tokens of a batch of short sequences: several row tiles, so that few of their rows are padding.
constexpr int64_t BATCH_TOKENS = 64;

// Scratch memory of a thread for one head of a batch of sequences.
template <class A> struct HeadScratch {
    int64_t part_stride, stride;
    A* qkv;  // (tokens, stride): queries, keys and values, part_stride apart
    AttentionScratch<A> attention;

    HeadScratch(BumpAllocator& a, int64_t longest, int64_t features)
        // whole panels, and the columns before a head, which may start within a panel
        : part_stride(round_up(features + MAX_NR - std::gcd(features, MAX_NR), MAX_NR)),
          stride(3 * part_stride),
          qkv(a.allocate<A>(tile_count<A>(std::max(longest, BATCH_TOKENS)) * TILE_ROWS<A> *
                            stride)),
          attention(a, longest, features) {}
};

// Intermediate results. `rows` are all tokens, or a block for each thread if row-parallel.
template <class T> struct EncoderScratch {
    typedef typename AttentionType<T>::Type A;

    int64_t longest, head_features, stride, intermediate_stride, head_bytes;
    int64_t* batches;   // (batches + 1,): first sequence of each batch
    T* layer_input;     // (tokens, stride): x, or LN(x) if pre-norm
    T* residual;        // (tokens, stride): x, if pre-norm
    T* context;         // (tokens, stride): output of the heads
    T* attention;       // (rows, stride): output of attention, after residual and norm
    T* intermediate;    // (rows, intermediate_stride)
    char* heads;        // (threads, head_bytes)
    Scratch<T> qkv, linear;

    EncoderScratch(BumpAllocator& a, const Encoder& e, const MaxSizes& sizes,
                   const int64_t* starts, int64_t sequences, int64_t longest, int threads)
        : longest(longest), head_features(e.features / e.heads),
          stride(row_stride<T>(e.features, sizes.rank)),
          intermediate_stride(row_stride<T>(sizes.intermediate_features, sizes.rank)),
          batches(a.allocate<int64_t>(sequences + 1)),
          qkv(a, starts[sequences] + TILE_ROWS<T>, e.features, sizes.rank, 0),
          linear(a, scratch_rows<T>(starts[sequences], threads),
                 std::max(e.features, sizes.intermediate_features), sizes.rank, e.features) {
        const int64_t tokens = starts[sequences], rows = scratch_rows<T>(tokens, threads);
        // a row tile may start at any token, and ends beyond the last
        layer_input = a.allocate<T>((tokens + TILE_ROWS<T>) * stride);
        residual = a.allocate<T>(e.pre_norm ? tokens * stride : 0);
        context = a.allocate<T>((tokens + TILE_ROWS<T>) * stride);
        attention = a.allocate<T>(rows * stride);
        intermediate = a.allocate<T>(rows * intermediate_stride);
        BumpAllocator counter{nullptr};
        head_scratch(counter);
        head_bytes = counter.bytes;
        heads = a.allocate<char>(threads * head_bytes);
    }

    HeadScratch<A> head_scratch(BumpAllocator& a) const { return {a, longest, head_features}; }
};

// Splits consecutive sequences into batches: a long one alone, short ones together. Returns the
// number of batches.
inline int64_t batch(const int64_t* starts, int64_t sequences, int64_t* batches) {
    int64_t count = 0;
    for (int64_t i = 0; i < sequences; i++)
        if (!count || starts[i + 1] - starts[batches[count - 1]] > BATCH_TOKENS)
            batches[count++] = i;
    batches[count] = sequences;
    return count;
}

// Output of the panels that hold columns `begin` to `end`; returns where column `begin` is in y.
template <class T, class Y>
Y* output_columns(const Step<T, Y>& step, int64_t begin, int64_t end, int64_t rows,
                  const Scratch<T>& s) {
    const int64_t nr = step.linear.sparse_u.nr;
    Y* y = step.y;
    for (int panel = begin / nr; panel * nr < end; panel++, y += nr)
        for (int64_t i = 0; i < tile_count<T>(rows); i++)
            output_panel(step.linear, panel, tile_of(step, i, s), rows_in<T>(i, rows),
                         Output<T, Y>{y + i * TILE_ROWS<T> * step.y_stride, step.y_stride, nullptr,
                                      0});
    return step.y + begin % nr;
}

// Attention of all sequences, from `layer_input`, behind whose rows x v^T is stored, to `context`.
// Queries, keys and values are computed head by head, so that they stay in the thread's cache.
template <class T>
void attend_all(const Encoder& e, const Layer& layer, const int64_t* starts, int64_t batches,
                const EncoderScratch<T>& s) {
    typedef typename AttentionType<T>::Type A;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < batches * e.heads; task++) {
        const int64_t head = task % e.heads, *sequences = s.batches + task / e.heads;
        const int64_t first = starts[sequences[0]], rows = starts[sequences[1]] - first;
        BumpAllocator a{s.heads + omp_get_thread_num() * s.head_bytes};
        const HeadScratch<A> own = s.head_scratch(a);
        A* parts[3];  // queries, keys and values
        for (int i = 0; i < 3; i++) {
            const int64_t column = i * e.features + head * s.head_features;
            const Step<T, A> step{layer.qkv, s.layer_input + first * s.stride, s.stride,
                                  own.qkv + i * own.part_stride, own.stride};
            parts[i] = output_columns(step, column, column + s.head_features, rows,
                                      s.qkv.from(first));
        }
        for (int64_t i = sequences[0]; i < sequences[1]; i++) {
            const int64_t at = (starts[i] - first) * own.stride, length = starts[i + 1] - starts[i];
            for (int part = 0; layer.cos_sin && part < 2; part++)
                rotate(parts[part] + at, own.stride, length, s.head_features, layer.cos_sin);
            attend(parts[0] + at, parts[1] + at, parts[2] + at, own.stride, length,
                   s.head_features, e.scale,
                   e.position_bias ? e.position_bias + (2 * head + 1) * e.reach : nullptr,
                   layer.window, s.context + starts[i] * s.stride + head * s.head_features,
                   s.stride, own.attention);
        }
    }
}

// Rest of layer i after the heads, for the rows from `first` on, each linear by `run`. `attention`
// and `intermediate` hold these rows alone. The last layer writes x, others `layer_input`.
template <class T, class Run>
void after_attention(const Encoder& e, int i, int64_t first, T* attention, T* intermediate, T* x,
                     const EncoderScratch<T>& s, Run run) {
    const Layer& layer = e.layers[i];
    const bool last = i + 1 == e.layer_count;
    const int64_t stride = s.stride, f = e.features, at = first * stride;
    T *layer_input = s.layer_input + at, *residual = e.pre_norm ? s.residual + at : nullptr;
    T *y = last ? x + first * f : layer_input;
    const LayerNorm* output_norm = &layer.output_norm;
    if (e.pre_norm) output_norm = last ? nullptr : &e.layers[i + 1].input_norm;

    run(Step<T>{layer.attention_output, s.context + at, stride, attention, stride,
                residual ? residual : layer_input, stride, &layer.attention_norm, residual});
    // whole VNNI groups: the padding multiplies no weight, but must be finite
    Linear padded = layer.intermediate;
    padded.out_features = group_count<T>(padded.out_features) * Group<T>::SIZE;
    run(Step<T>{padded, attention, stride, intermediate, s.intermediate_stride, nullptr, 0,
                nullptr, nullptr, (Activation)layer.gate});
    run(Step<T>{layer.output, intermediate, s.intermediate_stride, y, last ? f : stride,
                residual ? residual : attention, stride, output_norm, residual});
}

// Copies a row of x to the input of the first layer; pre-norm: to `residual`, and LN of it.
template <class T> void copy_input(const Encoder& e, const T* x, T* layer_input, T* residual) {
    copy_rows(x, e.features, 1, e.features, layer_input, 0);
    if (!e.pre_norm) return;
    convert(x, e.features, residual);
    normalize(x, e.features, e.layers[0].input_norm, layer_input);
}

// Replaces x (tokens, features) by the last layer's output. Sequence i begins at row starts[i].
template <class T>
void encode(const Encoder& e, const int64_t* starts, int64_t sequences, T* x, int threads,
            const EncoderScratch<T>& s) {
    const int64_t tokens = starts[sequences], f = e.features, stride = s.stride;
    const int64_t batches = batch(starts, sequences, s.batches);
    const auto qkv_step = [&](int i, int64_t row) {
        return Step<T>{e.layers[i].qkv, s.layer_input + row * stride, stride};
    };
    const int64_t block = block_rows<T>(tokens, threads);
    const bool split = row_parallel<T>(tokens, threads);
#pragma omp parallel num_threads(threads)
    if (const TileGuard guard; split) {
        const int64_t own = omp_get_thread_num() * block;
        const Scratch<T> scratch = s.linear.from(own);
        for (int i = -1; i < e.layer_count; i++) {  // -1: x v^T of the first layer
            if (i >= 0) attend_all(e, e.layers[i], starts, batches, s);
#pragma omp for schedule(dynamic)
            for (int64_t first = 0; first < tokens; first += block) {
                const int64_t rows = std::min(tokens - first, block);
                const auto run = [&](const auto& step) { run_serial(step, rows, scratch); };
                if (i < 0)
                    for (int64_t row = first; row < first + rows; row++)
                        copy_input(e, x + row * f, s.layer_input + row * stride,
                                   s.residual + row * stride);
                else
                    after_attention(e, i, first, s.attention + own * stride,
                                    s.intermediate + own * s.intermediate_stride, x, s, run);
                if (i + 1 < e.layer_count)
                    multiply_v_serial(qkv_step(i + 1, first), rows, s.qkv.from(first));
            }
        }
    } else {
        const auto run = [&](const auto& step) { run_parallel(step, tokens, s.linear); };
#pragma omp for
        for (int64_t row = 0; row < tokens; row++)
            copy_input(e, x + row * f, s.layer_input + row * stride, s.residual + row * stride);
        for (int i = 0; i < e.layer_count; i++) {
            multiply_v_parallel(qkv_step(i, 0), tokens, s.qkv);
            attend_all(e, e.layers[i], starts, batches, s);
            after_attention(e, i, 0, s.attention, s.intermediate, x, s, run);
        }
    }
}

}  // namespace
