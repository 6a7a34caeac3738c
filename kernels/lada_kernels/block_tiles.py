"""Tiles of the kernels on block-sparse weights: a tile of y, summed over packs of blocks.

Several narrow blocks are packed into one dot of depth BLOCK_K by gathering their columns of x.
"""

import triton
import triton.language as tl


@triton.jit
def first_column(
    order_ptr,  # (N / BSR_ROWS,)
    tile,
    BSR_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_ORDER: tl.constexpr,
):
    """First column of y of tile number `tile`, with the block rows in the given order."""
    if HAS_ORDER:
        TILES: tl.constexpr = BSR_ROWS // BLOCK_N
        tile = tl.load(order_ptr + tile // TILES) * TILES + tile % TILES
    return tile * BLOCK_N


@triton.jit
def zero_tile(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SWAP_AB: tl.constexpr):
    """Accumulator of zeros: (BLOCK_M, BLOCK_N) fp32, or its transpose."""
    if SWAP_AB:
        return tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    else:
        return tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)


@triton.jit
def add_product(
    acc,  # (BLOCK_M, BLOCK_N) fp32, or its transpose
    x_rows,  # (BLOCK_M,) pointers
    x_terms,  # (BLOCK_K,) offsets
    w_ptr,
    w_rows,  # (BLOCK_N,) offsets
    w_terms,  # (BLOCK_K,) offsets
    live,  # (BLOCK_K,) bool, the terms that count
    MASKED: tl.constexpr,
    SWAP_AB: tl.constexpr,
):
    """``acc + x @ w.T``; tiles are loaded as the dot takes them: a transpose would not pipeline."""
    X_AXIS: tl.constexpr = 1 - SWAP_AB  # of the terms
    W_AXIS: tl.constexpr = 1 - X_AXIS
    x_ptrs = tl.expand_dims(x_rows, X_AXIS) + tl.expand_dims(x_terms, W_AXIS)
    w_ptrs = w_ptr + (tl.expand_dims(w_rows, W_AXIS) + tl.expand_dims(w_terms, X_AXIS))
    if MASKED:
        x = tl.load(x_ptrs, mask=tl.expand_dims(live, W_AXIS), other=0.0)
        w = tl.load(w_ptrs, mask=tl.expand_dims(live, X_AXIS), other=0.0)
    else:
        x = tl.load(x_ptrs)
        w = tl.load(w_ptrs)
    if SWAP_AB:
        return tl.dot(w, x, acc, input_precision="ieee")
    else:
        return tl.dot(x, w, acc, input_precision="ieee")


@triton.jit
def add_blocks(
    acc,  # (BLOCK_M, BLOCK_N) fp32, or its transpose
    x_ptr,  # (M, K)
    crow_ptr,  # (N / BSR_ROWS + 1,)
    col_ptr,  # (nnz,)
    values_ptr,  # (nnz, BSR_ROWS, BSR_COLS)
    offs_m,
    first_n,
    M,
    stride_xm,
    stride_vb,
    stride_vr,
    stride_vc,
    BSR_ROWS: tl.constexpr,
    BSR_COLS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE_PACKS: tl.constexpr,
    SWAP_AB: tl.constexpr,
):
    """``acc + x[offs_m] @ S[first_n : first_n + BLOCK_N].T``; the rows lie in one block row."""
    tl.static_assert(BSR_ROWS % BLOCK_N == 0 and BLOCK_K % BSR_COLS == 0)
    PACK: tl.constexpr = BLOCK_K // BSR_COLS
    start = tl.load(crow_ptr + first_n // BSR_ROWS)
    end = tl.load(crow_ptr + first_n // BSR_ROWS + 1)

    lane = tl.arange(0, BLOCK_K) // BSR_COLS
    within = tl.arange(0, BLOCK_K) % BSR_COLS
    w_terms = lane * stride_vb + within * stride_vc
    # Triton 3.6 cannot derive this multiple, and without it loads the values one by one
    offs_r = tl.multiple_of(first_n % BSR_ROWS, BLOCK_N) + tl.arange(0, BLOCK_N)
    # rows past the end repeat the last one: cheaper than a mask in the loop, and never stored
    x_rows = x_ptr + tl.minimum(offs_m, M - 1) * stride_xm
    values_ptr += start.to(tl.int64) * stride_vb

    # the index is fetched one step ahead, so that no copy of x waits for it
    col = tl.load(col_ptr + start + lane, mask=lane < end - start, other=0)
    for p in range(start, end, PACK):
        x_terms = col * BSR_COLS + within
        if WHOLE_PACKS:
            col = tl.load(col_ptr + tl.minimum(p + PACK, end - PACK) + lane)
        else:
            col = tl.load(col_ptr + p + PACK + lane, mask=lane < end - p - PACK, other=0)
        acc = add_product(
            *(acc, x_rows, x_terms, values_ptr, offs_r * stride_vr, w_terms),
            *(lane < end - p, not WHOLE_PACKS, SWAP_AB),
        )
        values_ptr += PACK * stride_vb
    return acc
