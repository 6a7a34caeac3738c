// Matrix products by AMX tiles: one instruction multiplies 16 rows of x by 16 columns of weights,
// 16 VNNI groups deep. Tiles are loaded from groups as `linear.h` stores them.
#pragma once
#include <type_traits>

#include "vec.h"

namespace {

// True if products of T use AMX, which has none of fp32.
#if defined(__AMX_TILE__)
template <class T> constexpr bool USES_AMX = !std::is_same<T, float>::value;
#else
template <class T> constexpr bool USES_AMX = false;
#endif

constexpr int TILE_DEPTH = 16;  // VNNI groups of a tile along K, and rows of a tile

#if defined(__AMX_TILE__)

constexpr int64_t TILE_BYTES = 64;  // of a tile's row: 16 groups, or 16 sums

// Tile registers: sums of the left and the right 16 columns of a panel; x and the panel's left and
// right columns, TILE_DEPTH groups deep; the same at the depth of the tail.
enum Tile { SUMS, SUMS_RIGHT, X, LEFT, RIGHT, X_TAIL, LEFT_TAIL, RIGHT_TAIL };

// Operand of ldtilecfg.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    constexpr void set(Tile tile, int count, int bytes) {
        rows[tile] = count;
        row_bytes[tile] = bytes;
    }
};

// Configuration for each depth of the tail.
struct TileConfigs {
    TileConfig by_tail[TILE_DEPTH];

    constexpr TileConfigs() : by_tail() {
        for (int tail = 0; tail < TILE_DEPTH; tail++) {
            for (Tile tile : {SUMS, SUMS_RIGHT, X, LEFT, RIGHT})
                by_tail[tail].set(tile, TILE_DEPTH, TILE_BYTES);
            if (tail == 0) continue;
            by_tail[tail].set(X_TAIL, TILE_DEPTH, 4 * tail);
            by_tail[tail].set(LEFT_TAIL, tail, TILE_BYTES);
            by_tail[tail].set(RIGHT_TAIL, tail, TILE_BYTES);
        }
    }
};

constexpr TileConfigs TILE_CONFIGS;

// Tail for which this thread's tiles are configured; -1 if they are not.
thread_local int configured_tail = -1;

// The compiler does not model tiles: the "memory" clobber keeps loads and stores around each
// instruction in order.

// Skips ldtilecfg where the configuration suffices: it takes longer than many a product.
inline void configure_tiles(int tail) {
    if (configured_tail >= 0 && (tail == 0 || tail == configured_tail)) return;
    asm volatile("ldtilecfg %0" ::"m"(TILE_CONFIGS.by_tail[tail]) : "memory");
    configured_tail = tail;
}

template <Tile tile> inline void clear_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile) : "memory");
}

template <Tile tile> inline void load_tile(const void* p, int64_t stride) {
    asm volatile("tileloadd (%0, %1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}

template <Tile tile> inline void store_tile(void* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0, %1)" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}

template <class T, Tile sums, Tile x, Tile weights> inline void multiply_add_tile() {
    if constexpr (std::is_same<T, bf16>::value)
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(x), "i"(weights)
                     : "memory");
    else
        asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(x), "i"(weights)
                     : "memory");
}

// Adds rows of x times a panel's weights to the sums, at the depth of the tiles x, left and right.
// Strides in bytes.
template <class T, bool WIDE, Tile x, Tile left, Tile right>
inline void multiply_add_tiles(const uint32_t* groups, int64_t x_stride, const uint32_t* weights,
                               int64_t w_stride) {
    load_tile<x>(groups, x_stride);
    load_tile<left>(weights, w_stride);
    multiply_add_tile<T, SUMS, x, left>();
    if constexpr (WIDE) {
        load_tile<right>(weights + LANES, w_stride);
        multiply_add_tile<T, SUMS_RIGHT, x, right>();
    }
}

#endif

// RAII guard: releases the AMX tile state, so that context switches stop saving it.
struct TileGuard {
    ~TileGuard() {
#if defined(__AMX_TILE__)
        asm volatile("tilerelease" ::: "memory");
        configured_tail = -1;
#endif
    }
};

}  // namespace
