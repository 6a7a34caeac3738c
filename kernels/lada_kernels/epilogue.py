"""Epilogue of a tile of products: ``LN(act(acc + bias) + residual)``, in fp32 on registers.

LayerNorm needs whole rows: a kernel sweeps the columns once for the moments, and once more,
computing each tile again, to normalise and store it.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .activations import activate, kernel_activation
from .variants import EpilogueKind


class Epilogue(NamedTuple):
    """Epilogue ``LN(act(z + bias) + residual)`` of a product z (M, N).

    bias: (N,) or None. activation: a name known to `activations.activate`. residual: (M, N), rows
    contiguous, any row stride, or None. norm: weight (N,), bias (N,) and eps of LayerNorm over all
    N, or None. exact_gelu: erf's GELU in 16-bit dtypes too, see `activations.kernel_activation`.
    """

    bias: torch.Tensor | None = None
    activation: str = "none"
    residual: torch.Tensor | None = None
    norm: tuple[torch.Tensor, torch.Tensor, float] | None = None
    exact_gelu: bool = False

    @property
    def kind(self) -> EpilogueKind:
        return EpilogueKind.of(self.activation, self.residual is not None, self.norm is not None)

    @property
    def after_bias(self) -> "Epilogue":
        """The steps after the bias, for a product whose bias torch adds."""
        return self._replace(bias=None)

    @property
    def norm_only(self) -> "Epilogue":
        """The last step, for an output whose kernel did the others tile by tile."""
        return Epilogue(norm=self.norm)

    def tile_arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of a kernel with output of `dtype`: bias, activation and residual."""
        return {
            "bias_ptr": self.bias,
            "residual_ptr": self.residual,
            "stride_rm": 0 if self.residual is None else self.residual.stride(0),
            "HAS_BIAS": self.bias is not None,
            "HAS_RESIDUAL": self.residual is not None,
            "ACTIVATION": kernel_activation(self.activation, dtype, self.exact_gelu),
        }

    def row_arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """`tile_arguments`, and LayerNorm's, of a kernel whose programs own whole rows."""
        weight, bias, eps = (None, None, 0.0) if self.norm is None else self.norm
        return self.tile_arguments(dtype) | {
            "norm_weight_ptr": weight,
            "norm_bias_ptr": bias,
            "eps": eps,
            "HAS_NORM": self.norm is not None,
        }


@triton.jit
def apply_epilogue(
    acc,  # (BLOCK_M, BLOCK_N) fp32
    bias_ptr,  # (N,)
    residual_ptr,  # (M, N)
    offs_m,
    offs_n,
    M,
    N,
    stride_rm,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """``act(acc + bias) + residual`` for rows offs_m (int64) and columns offs_n, in fp32."""
    mask_n = offs_n < N
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION)
    if HAS_RESIDUAL:
        residual_ptrs = residual_ptr + offs_m[:, None] * stride_rm + offs_n[None, :]
        mask = (offs_m < M)[:, None] & mask_n[None, :]
        acc += tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)
    return acc


@triton.jit
def store_tile(
    y,  # (BLOCK_M, BLOCK_N) fp32
    y_ptr,  # (M, N)
    offs_m,
    offs_n,
    M,
    N,
    stride_ym,
):
    """Write a tile to rows offs_m (int64) and columns offs_n of y, rounded to its dtype."""
    y_ptrs = y_ptr + offs_m[:, None] * stride_ym + offs_n[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def merge_moments(
    y,  # (BLOCK_M, BLOCK_N) fp32, columns first_n and on
    first_n,
    N,
    mean,  # (BLOCK_M,) fp32, of the first_n columns before
    m2,  # (BLOCK_M,) fp32, sum of their squared distances from it
):
    """Moments (mean, m2) of each row over the columns before and those of the tile below N.

    Merged pairwise (Chan, Golub and LeVeque, 1979): a sum of squares would lose the variance of
    rows whose mean is large.
    """
    BLOCK_N: tl.constexpr = y.shape[1]
    inside = (tl.arange(0, BLOCK_N) < N - first_n)[None, :]
    share = 1.0 / tl.minimum(N - first_n, BLOCK_N)
    tile_mean = tl.sum(tl.where(inside, y, 0.0), 1) * share
    distance = tl.where(inside, y - tile_mean[:, None], 0.0)
    shift = tile_mean - mean
    weight = 1.0 / (1.0 + first_n * share)  # share of the tile in all columns
    m2 += tl.sum(distance * distance, 1) + shift * shift * (first_n * weight)
    return mean + shift * weight, m2


@triton.jit
def normalize(
    y,  # (BLOCK_M, BLOCK_N) fp32
    mean,  # (BLOCK_M,) fp32
    rstd,  # (BLOCK_M,) fp32
    weight_ptr,  # (N,)
    bias_ptr,  # (N,)
    offs_n,
    N,
):
    """``(y - mean) * rstd * weight + bias``, LayerNorm's affine map."""
    mask_n = offs_n < N
    weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    return (y - mean[:, None]) * rstd[:, None] * weight[None, :] + bias[None, :]
