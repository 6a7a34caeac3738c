"""Forward passes: dense, by plain products, by others' sparse kernels, and by ours."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lada_kernels.variants import Variant, VariantName
from lada_ops.tune.operands import Operands, finished, launcher

from .cases import SuiteCase
from .peers import torch_bsr, two_to_four
from .workload import Implementation, Implementations, Workload


def forward(case: SuiteCase, device: torch.device) -> Workload:
    """Implementations of the forward pass of `case`, "dense" first."""
    operands = Operands.draw(case, device)
    weights = [weight.to(operands.x.dtype) for weight in operands.dense_weights()]
    peers = _feed_forward_peers if case.parts.hidden else _linear_peers
    implementations = peers(case, operands, *weights)
    ours = operands.launcher_arguments
    for name in our_variants(case):
        launch = launcher(case, Variant(name))
        implementations[name] = partial(Implementation, launch, ours, operands.elements)
    spare = {} if case.parts.hidden else {"dense": weights[0]}
    dispatch = partial(Implementation, launcher(case), ours | spare, operands.elements)
    implementations["dispatch"] = dispatch
    output_bytes = case.tokens * case.n * operands.x.element_size()
    return Workload(case, operands.expected(), implementations, output_bytes)


def _linear_peers(case: SuiteCase, operands: Operands, weight: Tensor) -> Implementations:
    activation = operands.activation
    dense = {"x": operands.x, "weight": weight, **operands.biases, **operands.epilogue}
    peers: Implementations = {
        "dense": lambda: Implementation(partial(dense_linear, activation), dense, weight.numel())
    }
    if activation == "gelu":
        peers["dense, GELU in cuBLAS"] = lambda: Implementation(dense_gelu, dense, weight.numel())
    if case.stem == "low_rank_linear":
        call = partial(two_products, activation)
        if case.parts.groups > 1:
            call = partial(grouped_products, case.parts.groups)
        peers["two products"] = lambda: Implementation(
            call, operands.launcher_arguments, operands.elements
        )
    if case.stem == "block_sparse_linear":
        peers["torch BSR"] = lambda: torch_bsr(operands)
    if case.beside_2to4:
        peers["2:4 CUTLASS"] = lambda: two_to_four(operands, weight, "CUTLASS")
        peers["2:4 cuSPARSELt"] = lambda: two_to_four(operands, weight, "CUSPARSELT")
    return peers


def _feed_forward_peers(
    case: SuiteCase, operands: Operands, intermediate: Tensor, output: Tensor
) -> Implementations:
    weights = {"intermediate": intermediate, "output": output}
    dense = {"x": operands.x, **weights, **operands.biases, **operands.epilogue}
    elements = intermediate.numel() + output.numel()
    return {
        "dense": lambda: Implementation(dense_feed_forward, dense, elements),
        "dense, GELU in cuBLAS": lambda: Implementation(
            partial(dense_feed_forward, in_cublas=True), dense, elements
        ),
        "four products": lambda: Implementation(
            four_products, operands.launcher_arguments, operands.elements
        ),
    }


def our_variants(case: SuiteCase) -> list[str]:
    """Names of our variants that can compute `case`."""
    parts = case.parts
    if case.stem == "low_rank_ffn":
        fused = [VariantName.ONE_LAUNCH, VariantName.SPLIT_K] if parts.rank <= 128 else []
        return [*fused, VariantName.TWO_LAUNCHES]
    if case.stem == "low_rank_linear":
        return [VariantName.ONE_LAUNCH, VariantName.TWO_LAUNCHES]
    if case.stem == "block_sparse_linear" and case.tokens <= 64 and parts.rows >= 64:
        return [VariantName.ONE_LAUNCH, VariantName.SWAP_AB]
    return [VariantName.ONE_LAUNCH]


def dense_linear(activation: str, x: Tensor, weight: Tensor, bias: Tensor, **epilogue: Tensor):
    return finished(F.linear(x, weight, bias), activation, **epilogue)


def dense_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Dense linear with GELU (tanh) in cuBLAS's epilogue, the fastest dense implementation."""
    return torch.ops.aten._addmm_activation(bias, x, weight.t(), use_gelu=True)


def two_products(
    activation: str, x: Tensor, u: Tensor, v: Tensor, bias: Tensor, **epilogue: Tensor
):
    return finished(F.linear(F.linear(x, v), u, bias), activation, **epilogue)


def grouped_products(groups: int, x: Tensor, u: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """One product by all of v, then one per group, each into its columns of the output."""
    y = x.new_empty(x.shape[0], u.shape[0])
    parts = (t.chunk(groups, dim) for t, dim in ((y, 1), (F.linear(x, v), 1), (u, 0), (bias, 0)))
    for y_part, t_part, u_part, bias_part in zip(*parts, strict=True):
        torch.addmm(bias_part, t_part, u_part.t(), out=y_part)
    return y


def dense_feed_forward(
    x: Tensor,
    intermediate: Tensor,
    bias1: Tensor,
    output: Tensor,
    bias2: Tensor,
    in_cublas: bool = False,
    **epilogue: Tensor,
) -> Tensor:
    if in_cublas:
        hidden = dense_gelu(x, intermediate, bias1)
    else:
        hidden = F.gelu(F.linear(x, intermediate, bias1))
    return finished(F.linear(hidden, output, bias2), "none", **epilogue)


def four_products(
    x: Tensor,
    u1: Tensor,
    v1: Tensor,
    bias1: Tensor,
    u2: Tensor,
    v2: Tensor,
    bias2: Tensor,
    **epilogue: Tensor,
) -> Tensor:
    hidden = F.gelu(F.linear(F.linear(x, v1), u1, bias1))
    return finished(F.linear(F.linear(hidden, v2), u2, bias2), "none", **epilogue)
