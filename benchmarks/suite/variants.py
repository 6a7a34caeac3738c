"""The ways to compute each kernel's forward pass: dense, by plain products, and by our kernels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lada_kernels.epilogue import Epilogue
from lada_kernels.variants import Variant

from .cases import Case
from .peers import torch_bsr, two_to_four
from .problem import EPS, Entry, Operands, Problem, finished

Ways = dict[str, Callable[[], Entry]]


def forward(case: Case, device: torch.device, dtype: torch.dtype) -> Problem:
    """The ways to compute `case`, "dense" first."""
    operands = Operands.draw(case, device, dtype)
    ways = _feed_forward(operands) if case.hidden else _linear(operands)
    output_bytes = case.tokens * case.out_features * dtype.itemsize
    return Problem(case, operands.expected(), ways, output_bytes)


def launcher(stem: str) -> Callable[..., Tensor]:
    return getattr(importlib.import_module(f"lada_kernels.{stem}"), f"{stem}_fwd")


def launched(
    launch: Callable[..., Tensor],
    activation: str,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    bias: Tensor | None = None,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    **operands: Any,
) -> Tensor:
    norm = None if norm_weight is None or norm_bias is None else (norm_weight, norm_bias, EPS)
    if bias is not None:
        return launch(**operands, epilogue=Epilogue(bias, activation, residual, norm))
    first, last = Epilogue(bias1, activation), Epilogue(bias2, "none", residual, norm)
    return launch(**operands, epilogue1=first, epilogue2=last)


def _linear(operands: Operands) -> Ways:
    case, x, bias = operands.case, operands.x, operands.bias
    activation, finish = operands.activation, operands.finish
    weight = operands.weight().to(x.dtype)
    dense = {"x": x, "weight": weight, "bias": bias, **finish}
    elements = weight.numel()
    ways: Ways = {
        "dense": lambda: Entry(partial(dense_linear, activation), dense, elements),
    }
    if activation == "gelu":
        ways["dense, GELU in cuBLAS"] = lambda: Entry(dense_gelu, dense, elements)

    compressed, macs = dict(operands.factors), 0
    if case.rank:
        macs += sum(t.numel() for t in operands.factors.values())
    if operands.bsr is not None:
        bsr = operands.bsr
        macs += bsr.values.numel()
        compressed |= {
            "crow_indices": bsr.crow_indices,
            "col_indices": bsr.col_indices,
            "values": bsr.values,
        }
        if bsr.whole_packs:
            compressed["order"] = bsr.order
    if case.stem == "low_rank_linear":
        products = {"x": x, **operands.factors, "bias": bias, **finish}
        call = partial(two_products, activation)
        if case.groups > 1:
            call = partial(grouped_products, case.groups)
        ways["two products"] = lambda: Entry(call, products, macs)
    if case.stem == "block_sparse_linear":
        ways["torch BSR"] = lambda: torch_bsr(operands)
    if case.beside_2to4:
        ways["2:4 CUTLASS"] = lambda: two_to_four(operands, weight, "CUTLASS")
        ways["2:4 cuSPARSELt"] = lambda: two_to_four(operands, weight, "CUSPARSELT")

    ours = {"x": x, **compressed, "bias": bias, **finish}
    given = {"groups": case.groups} if case.groups > 1 else {}
    launch = partial(launched, partial(launcher(case.stem), **given), activation)
    for name in our_ways(case):
        ways[name] = partial(Entry, partial(launch, variant=Variant(name)), ours, macs)
    ways["dispatch"] = lambda: Entry(launch, {**ours, "dense": weight}, macs)
    return ways


def _feed_forward(operands: Operands) -> Ways:
    case, x, bias = operands.case, operands.x, operands.bias
    finish, factors = operands.finish, operands.factors
    up, down = (operands.weight(second).to(x.dtype) for second in (False, True))
    dense = {"x": x, "up": up, "bias": bias, "down": down, "bias2": factors["bias2"], **finish}
    macs = sum(t.numel() for t in factors.values() if t.ndim == 2)
    both = up.numel() + down.numel()
    ways: Ways = {
        "dense": lambda: Entry(dense_feed_forward, dense, both),
        "dense, GELU in cuBLAS": lambda: Entry(
            partial(dense_feed_forward, in_cublas=True), dense, both
        ),
        "four products": lambda: Entry(
            four_products, {"x": x, **factors, "bias": bias, **finish}, macs
        ),
    }
    ours = {
        **{"x": x, "u1": factors["u"], "v1": factors["v"], "bias1": bias},
        **{"u2": factors["u2"], "v2": factors["v2"], "bias2": factors["bias2"]},
        **finish,
    }
    launch = partial(launched, launcher(case.stem), "gelu")
    for name in our_ways(case):
        ways[name] = partial(Entry, partial(launch, variant=Variant(name)), ours, macs)
    ways["dispatch"] = lambda: Entry(launch, ours, macs)
    return ways


def our_ways(case: Case) -> list[str]:
    """The names of the ways of ours that can compute `case`."""
    if case.stem == "low_rank_ffn":
        return [*(["one_launch", "split"] if case.rank <= 128 else []), "two_launches"]
    if case.stem == "low_rank_linear":
        return ["one_launch", "two_launches"]
    if case.stem == "block_sparse_linear" and case.tokens <= 64 and case.block[0] >= 64:
        return ["one_launch", "weights_left"]
    return ["one_launch"]


def dense_linear(activation: str, x: Tensor, weight: Tensor, bias: Tensor, **finish: Tensor):
    return finished(F.linear(x, weight, bias), activation, **finish)


def dense_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU (by tanh) in the epilogue of cuBLAS: the fastest that dense can be."""
    return torch.ops.aten._addmm_activation(bias, x, weight.t(), use_gelu=True)


def two_products(activation: str, x: Tensor, u: Tensor, v: Tensor, bias: Tensor, **finish: Tensor):
    return finished(F.linear(F.linear(x, v), u, bias), activation, **finish)


def grouped_products(groups: int, x: Tensor, u: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """One product by all of v, then one per group, each into its columns of the output."""
    y = x.new_empty(x.shape[0], u.shape[0])
    parts = (t.chunk(groups, dim) for t, dim in ((y, 1), (F.linear(x, v), 1), (u, 0), (bias, 0)))
    for y_part, t_part, u_part, bias_part in zip(*parts, strict=True):
        torch.addmm(bias_part, t_part, u_part.t(), out=y_part)
    return y


def dense_feed_forward(
    x: Tensor,
    up: Tensor,
    bias: Tensor,
    down: Tensor,
    bias2: Tensor,
    in_cublas: bool = False,
    **finish: Tensor,
) -> Tensor:
    hidden = dense_gelu(x, up, bias) if in_cublas else F.gelu(F.linear(x, up, bias))
    return finished(F.linear(hidden, down, bias2), "none", **finish)


def four_products(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    bias: Tensor,
    u2: Tensor,
    v2: Tensor,
    bias2: Tensor,
    **finish: Tensor,
) -> Tensor:
    hidden = F.gelu(F.linear(F.linear(x, v), u, bias))
    return finished(F.linear(F.linear(hidden, v2), u2, bias2), "none", **finish)
