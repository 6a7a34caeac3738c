"""The kernel of the experiment in `persistent_encoder`: phases, and the barrier between them."""

import triton
import triton.language as tl

from lada_kernels.activations import activate


@triton.jit
def _wait_for_all(barrier_ptr, count):
    # ends only if all programs are on the device at once
    tl.debug_barrier()
    tl.atomic_add(barrier_ptr, 1, sem="release", scope="gpu")
    while tl.atomic_add(barrier_ptr, 0, sem="acquire", scope="gpu") < count:
        pass
    tl.debug_barrier()


@triton.jit
def _fresh(ptrs, mask):
    # of what other programs wrote in this launch: L1 may hold what was there before
    return tl.load(ptrs, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)


@triton.jit
def _moments(x_ptr, rows, M, K, eps, BLOCK_K: tl.constexpr):
    total = tl.zeros(rows.shape, tl.float32)
    for k in range(0, K, BLOCK_K):
        cols = k + tl.arange(0, BLOCK_K)
        mask = (rows < M)[:, None] & (cols < K)[None, :]
        total += tl.sum(_fresh(x_ptr + rows[:, None] * K + cols[None, :], mask), 1)
    mean = total / K
    squares = tl.zeros(rows.shape, tl.float32)
    for k in range(0, K, BLOCK_K):
        cols = k + tl.arange(0, BLOCK_K)
        mask = (rows < M)[:, None] & (cols < K)[None, :]
        x = _fresh(x_ptr + rows[:, None] * K + cols[None, :], mask) - mean[:, None]
        squares += tl.sum(tl.where(mask, x * x, 0.0), 1)
    return mean, 1.0 / tl.sqrt(squares / K + eps)


@triton.jit
def _normed(x, cols, K, moments, weight_ptr, bias_ptr, plain):
    weight = tl.load(weight_ptr + cols, mask=cols < K, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + cols, mask=cols < K, other=0.0).to(tl.float32)
    normed = (x - moments[0][:, None]) * moments[1][:, None] * weight[None, :] + bias[None, :]
    return tl.where(plain, x, normed)


@triton.jit
def _linear(
    x_ptr,  # (M, K), normalised first if NORM_X
    w_ptr,  # (N, K)
    bias_ptr,  # (N,), if HAS_BIAS
    residual_ptr,  # (M, N), normalised first, if HAS_RESIDUAL
    y_ptr,  # (M, N)
    plain,  # whether that is not to be normalised after all
    M,
    N,
    K,
    norm_weight_ptr,  # of x or of the residual
    norm_bias_ptr,
    eps,
    pid,
    programs,
    NORM_X: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    dtype = y_ptr.dtype.element_ty
    tiles_n = tl.cdiv(N, BLOCK_N)
    for tile in range(pid, tl.cdiv(M, BLOCK_M) * tiles_n, programs):
        rows = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
        cols = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        if NORM_X:
            moments = _moments(x_ptr, rows, M, K, eps, BLOCK_K)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            at = k + tl.arange(0, BLOCK_K)
            x_mask = (rows < M)[:, None] & (at < K)[None, :]
            x = _fresh(x_ptr + rows[:, None] * K + at[None, :], x_mask)
            if NORM_X:
                x = _normed(x, at, K, moments, norm_weight_ptr, norm_bias_ptr, plain)
                x = tl.where(x_mask, x, 0.0)
            w_mask = (cols < N)[:, None] & (at < K)[None, :]
            w = tl.load(w_ptr + cols[:, None] * K + at[None, :], mask=w_mask, other=0.0)
            acc = tl.dot(x.to(dtype), tl.trans(w), acc)
        mask = (rows < M)[:, None] & (cols < N)[None, :]
        if HAS_BIAS:
            acc += tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
        acc = activate(acc, ACTIVATION)
        if HAS_RESIDUAL:
            moments = _moments(residual_ptr, rows, M, N, eps, BLOCK_K)
            x = _fresh(residual_ptr + rows[:, None] * N + cols[None, :], mask)
            acc += _normed(x, cols, N, moments, norm_weight_ptr, norm_bias_ptr, plain)
        tl.store(y_ptr + rows[:, None] * N + cols[None, :], acc.to(dtype), mask=mask)


@triton.jit
def _projected(
    t_ptr, u_ptr, bias_ptr, rows, first, M, features, RANK: tl.constexpr, RANK_PADDED: tl.constexpr,
    HEAD: tl.constexpr, part: tl.constexpr,
):  # fmt: skip
    # a head's queries, keys or values (part 0, 1, 2) of some rows, from t = x v^T
    at, out = tl.arange(0, RANK_PADDED), first + tl.arange(0, HEAD)
    t_mask = (rows < M)[:, None] & (at < RANK)[None, :]
    t = _fresh(t_ptr + rows[:, None] * (3 * RANK) + part * RANK + at[None, :], t_mask)
    out += part * features
    u = tl.load(u_ptr + out[:, None] * RANK + at[None, :], mask=(at < RANK)[None, :], other=0.0)
    y = tl.dot(t.to(u.dtype), tl.trans(u)) + tl.load(bias_ptr + out).to(tl.float32)[None, :]
    return y.to(u.dtype)


@triton.jit
def _attention(
    t_ptr,  # (M, 3 * RANK)
    u_ptr,  # (3 * features, RANK)
    bias_ptr,  # (3 * features,)
    y_ptr,  # (M, features)
    M,
    features,
    pid,
    programs,
    RANK: tl.constexpr,
    RANK_PADDED: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    for tile in range(pid, tiles_m * (features // HEAD), programs):
        first = tile // tiles_m * HEAD
        rows = tile % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
        q = _projected(t_ptr, u_ptr, bias_ptr, rows, first, M, features, RANK, RANK_PADDED, HEAD, 0)
        top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, HEAD), tl.float32)
        for s in range(0, M, BLOCK_S):
            keys = s + tl.arange(0, BLOCK_S)
            where = (t_ptr, u_ptr, bias_ptr, keys, first, M, features)
            k = _projected(*where, RANK, RANK_PADDED, HEAD, 1)
            v = _projected(*where, RANK, RANK_PADDED, HEAD, 2)
            scores = tl.dot(q, tl.trans(k)) * (1.44269504 / HEAD**0.5)
            scores = tl.where((keys < M)[None, :], scores, -float("inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            p, kept = tl.exp2(scores - higher[:, None]), tl.exp2(top - higher)
            total = total * kept + tl.sum(p, 1)
            acc = tl.dot(p.to(v.dtype), v, acc * kept[:, None])
            top = higher
        ptrs = y_ptr + rows[:, None] * features + first + tl.arange(0, HEAD)[None, :]
        y = (acc / total[:, None]).to(y_ptr.dtype.element_ty)
        tl.store(ptrs, y, mask=(rows < M)[:, None])


@triton.jit
def persistent_encoder_kernel(
    x_ptr,  # (M, D): the encoder's input, and its output
    a_ptr,  # (M, D): x + attention, before the norm
    c_ptr,  # (M, D): attention
    t_ptr,  # (M, 3 * R_QKV or the largest rank)
    h_ptr,  # (M, F)
    v_qkv, u_qkv, b_qkv, v_out, u_out, b_out, v_up, u_up, b_up, v_down, u_down, b_down,  # by layer
    w_attention, n_attention, w_output, n_output,  # weight and bias of the norms
    barrier_ptr,  # 0 at first
    begin,
    end,
    layers,
    M,
    D,
    F,
    eps,
    R_QKV: tl.constexpr,
    R_QKV_PADDED: tl.constexpr,
    R_OUT: tl.constexpr,
    R_UP: tl.constexpr,
    R_DOWN: tl.constexpr,
    HEAD: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    pid, programs = tl.program_id(0), tl.num_programs(0)
    for phase in range(begin, end):
        i = phase // 8
        kind = phase % 8
        own, before = i * D, tl.maximum(i - 1, 0) * D  # the input of a layer is not normalised yet
        x_norm = (w_output + before, n_output + before)
        a_norm = (w_attention + own, n_attention + own)
        who = (eps, pid, programs)
        if i == layers:
            for row in range(pid, M, programs):
                rows = tl.full((1,), row, tl.int32)
                moments = _moments(x_ptr, rows, M, D, eps, BLOCK_K)
                for k in range(0, D, BLOCK_K):
                    cols = k + tl.arange(0, BLOCK_K)
                    ptrs, mask = x_ptr + rows[:, None] * D + cols[None, :], (cols < D)[None, :]
                    y = _normed(_fresh(ptrs, mask), cols, D, moments, *x_norm, False)
                    tl.store(ptrs, y.to(x_ptr.dtype.element_ty), mask=mask)
        elif kind == 0:
            _linear(
                *(x_ptr, v_qkv + i * 3 * R_QKV * D, b_qkv, x_ptr, t_ptr, i == 0, M, 3 * R_QKV, D),
                *x_norm,
                *who,
                *(True, False, False, "none", BLOCK_M, BLOCK_N, BLOCK_K),
            )
        elif kind == 1:
            _attention(
                *(t_ptr, u_qkv + i * 3 * D * R_QKV, b_qkv + i * 3 * D, c_ptr, M, D, pid, programs),
                *(R_QKV, R_QKV_PADDED, HEAD, BLOCK_M, BLOCK_S),
            )
        elif kind == 2:
            _linear(
                *(c_ptr, v_out + i * R_OUT * D, b_out, c_ptr, t_ptr, False, M, R_OUT, D),
                *x_norm,
                *who,
                *(False, False, False, "none", BLOCK_M, BLOCK_N, BLOCK_K),
            )
        elif kind == 3:
            _linear(
                *(t_ptr, u_out + i * D * R_OUT, b_out + own, x_ptr, a_ptr, i == 0, M, D, R_OUT),
                *x_norm,
                *who,
                *(False, True, True, "none", BLOCK_M, BLOCK_N, BLOCK_K),
            )
        elif kind == 4:
            _linear(
                *(a_ptr, v_up + i * R_UP * D, b_up, a_ptr, t_ptr, False, M, R_UP, D),
                *a_norm,
                *who,
                *(True, False, False, "none", BLOCK_M, BLOCK_N, BLOCK_K),
            )
        elif kind == 5:
            _linear(
                *(t_ptr, u_up + i * F * R_UP, b_up + i * F, t_ptr, h_ptr, False, M, F, R_UP),
                *a_norm,
                *who,
                *(False, True, False, GELU, BLOCK_M, BLOCK_N, BLOCK_K),
            )
        elif kind == 6:
            _linear(
                *(h_ptr, v_down + i * R_DOWN * F, b_down, h_ptr, t_ptr, False, M, R_DOWN, F),
                *a_norm,
                *who,
                *(False, False, False, "none", BLOCK_M, BLOCK_N, BLOCK_K),
            )
        else:
            _linear(
                *(t_ptr, u_down + i * D * R_DOWN, b_down + own, a_ptr, x_ptr, False, M, D, R_DOWN),
                *a_norm,
                *who,
                *(False, True, True, "none", BLOCK_M, BLOCK_N, BLOCK_K),
            )
        if phase + 1 < end:
            _wait_for_all(barrier_ptr, (phase + 1 - begin) * programs)
