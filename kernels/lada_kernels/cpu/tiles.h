// Products by the matrix unit (AMX): 16 rows of x times 16 units of 16 columns in one instruction.
// It takes units as `linear.h` stores them, x in rows and weights in columns.
#pragma once
#include <type_traits>

#include "vec.h"

namespace {

// Whether products of T are by the matrix unit; it has none of fp32.
#if defined(__AMX_TILE__)
template <class T> constexpr bool TILED = !std::is_same<T, float>::value;
#else
template <class T> constexpr bool TILED = false;
#endif

constexpr int DEPTH = 16;  // units that a tile is deep

#if defined(__AMX_TILE__)

constexpr int64_t TILE_BYTES = 64;  // of a tile's row

// What each tile is for: two of sums, and rows of x and two halves of a stripe's weights that meet,
// DEPTH units deep, or as many as there are left.
enum Tile { SUMS, SUMS_RIGHT, X, LEFT, RIGHT, X_REST, LEFT_REST, RIGHT_REST };

// The shapes of all tiles, as the instruction that sets them reads them.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    constexpr void set(Tile tile, int count, int bytes) {
        rows[tile] = count;
        row_bytes[tile] = bytes;
    }
};

// By the units of a rest.
struct AllTileShapes {
    TileShapes by_rest[DEPTH];

    constexpr AllTileShapes() : by_rest() {
        for (int rest = 0; rest < DEPTH; rest++) {
            for (Tile tile : {SUMS, SUMS_RIGHT, X, LEFT, RIGHT})
                by_rest[rest].set(tile, DEPTH, TILE_BYTES);
            if (rest == 0) continue;
            by_rest[rest].set(X_REST, DEPTH, 4 * rest);
            by_rest[rest].set(LEFT_REST, rest, TILE_BYTES);
            by_rest[rest].set(RIGHT_REST, rest, TILE_BYTES);
        }
    }
};

constexpr AllTileShapes TILE_SHAPES;

// What the tiles of this thread have for a rest; -1 while they have no shape.
thread_local int shaped_rest = -1;

// The compiler knows nothing of tiles: each of these instructions may touch any memory to it.

// To set shapes takes longer than many a product, so they stay until others are needed.
inline void shape_tiles(int rest) {
    if (shaped_rest >= 0 && (rest == 0 || rest == shaped_rest)) return;
    asm volatile("ldtilecfg %0" ::"m"(TILE_SHAPES.by_rest[rest]) : "memory");
    shaped_rest = rest;
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

// Rows of x times a stripe's weights, as deep as the tiles x, left and right are.
template <class T, bool WIDE, Tile x, Tile left, Tile right>
inline void multiply_add_tiles(const uint32_t* units, int64_t x_stride, const uint32_t* weights,
                               int64_t w_stride) {
    load_tile<x>(units, x_stride);
    load_tile<left>(weights, w_stride);
    multiply_add_tile<T, SUMS, x, left>();
    if constexpr (WIDE) {
        load_tile<right>(weights + LANES, w_stride);
        multiply_add_tile<T, SUMS_RIGHT, x, right>();
    }
}

#endif

// While there is one, a thread may use tiles. Without its end, the thread would go on saving them
// whenever it is interrupted.
struct TileUse {
    ~TileUse() {
#if defined(__AMX_TILE__)
        asm volatile("tilerelease" ::: "memory");
        shaped_rest = -1;
#endif
    }
};

}  // namespace
