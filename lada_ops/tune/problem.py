"""A case made concrete: operands, the answer in fp64, and each way to get it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..approximation.blocks import prune_blocks
from ..latency import Candidate, Rotation, copies_for
from ..ops.add_norm import add_norm
from ..ops.reference import Norm
from .case import Case

if TYPE_CHECKING:
    from lada_kernels.variants import Variant

EPS = 1e-12  # of BERT's LayerNorm
CHECKED_ROWS = 4096

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """Random operands of a case, such that the output keeps about the variance of x.

    ours, dense: the operands of our launcher and of the dense product, by name. rows: those of the
    output that are checked, spread over all; expected: what they must be, in fp64.
    """

    case: Case
    ours: Tensors
    dense: Tensors
    rows: Tensor
    expected: Tensor

    @classmethod
    def draw(cls, case: Case, device: torch.device) -> Problem:
        dtype = getattr(torch, case.dtype)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype) * scale

        both = {"x": normal(case.tokens, case.k)}
        if case.epilogue == "norm" or (case.stem == "low_rank_ffn" and case.epilogue == "fused"):
            both["residual"] = normal(case.tokens, case.n)
        if case.epilogue == "norm":
            both |= {"norm_weight": 1 + normal(case.n, scale=0.1), "norm_bias": normal(case.n)}
        ours, weights = (_ffn if case.parts.hidden else _linear)(case, normal)
        count, like = min(case.tokens, CHECKED_ROWS), {"device": device, "dtype": torch.float32}
        rows = torch.linspace(0, case.tokens - 1, count, **like).round().long()
        exact = {
            name: (t[rows] if name in ("x", "residual") else t).double()
            for name, t in (both | weights).items()
        }
        dense = both | {name: t.to(dtype) for name, t in weights.items()}
        return cls(case, both | ours, dense, rows, _dense(case, **exact))

    def candidate(self, way: Variant, l2_bytes: int) -> Candidate:
        """`way` over so many copies of its operands that none is found in an L2 this large."""
        run, tensors = partial(_launch, self.case, way), self.ours
        if way.name == "dense":
            run, tensors = partial(_dense, self.case), self.dense
        bytes_per_call = sum(t.numel() * t.element_size() for t in tensors.values())
        copies = copies_for(bytes_per_call + self.output_bytes, l2_bytes)
        sets = [tensors]
        sets += [{name: t.clone() for name, t in tensors.items()} for _ in range(copies - 1)]
        calls: list[Callable[[], Tensor]] = [partial(run, **copy) for copy in sets]
        return Candidate(way.name, Rotation(calls), self.expected, read=lambda y: y[self.rows])

    @property
    def output_bytes(self) -> int:
        return self.case.tokens * self.case.n * self.ours["x"].element_size()

    def poison(self) -> None:
        """Leave NaN in the memory where the next output will lie, so that gaps in it are seen."""
        self.ours["x"].new_full((self.case.tokens, self.case.n), float("nan"))


Normal = Callable[..., Tensor]


def _linear(case: Case, normal: Normal) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The launcher's own operands, and the dense weight in fp64."""
    k, n, parts = case.k, case.n, case.parts
    bias = normal(n)
    ours: dict[str, Any] = {"bias": bias}
    weight = torch.zeros(n, k, dtype=torch.float64, device=bias.device)
    if parts.rank:
        rank, groups = parts.rank, parts.groups
        u = normal(n, rank, scale=rank**-0.5)
        v = normal(groups * rank, k, scale=k**-0.5)
        ours |= {"u": u, "v": v}
        products = u.double().view(groups, -1, rank) @ v.double().view(groups, rank, k)
        weight += products.view(n, k)
    if parts.rows:
        density = parts.percent / 100
        bsr = prune_blocks(
            normal(n, k, scale=(density * k) ** -0.5), (parts.rows, parts.cols), density
        )
        ours |= {
            "crow_indices": bsr.crow_indices,
            "col_indices": bsr.col_indices,
            "values": bsr.values,
        }
        if bsr.whole_packs:
            ours["order"] = bsr.order
        weight += bsr.to_dense().double()
    return ours, {"weight": weight, "bias": bias}


def _ffn(case: Case, normal: Normal) -> tuple[dict[str, Any], dict[str, Tensor]]:
    parts, hidden = case.parts, case.parts.hidden
    ours = {}
    for i, out, rank, cols in ((1, hidden, parts.rank, case.k), (2, case.n, parts.rank2, hidden)):
        ours[f"u{i}"] = normal(out, rank, scale=rank**-0.5)
        ours[f"v{i}"] = normal(rank, cols, scale=cols**-0.5)
        ours[f"bias{i}"] = normal(out)
    first, second = (ours[f"u{i}"].double() @ ours[f"v{i}"].double() for i in (1, 2))
    dense = {"first": first, "bias1": ours["bias1"], "weight": second, "bias": ours["bias2"]}
    return ours, dense


def _activation(case: Case) -> str:
    """Of the launcher's argument: a feed-forward has its own between the two products."""
    return "gelu" if case.parts.hidden or case.epilogue == "fused" else "none"


def _launch(
    case: Case,
    way: Variant,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    **operands: Tensor,
) -> Tensor:
    from lada_kernels.epilogue import Epilogue

    launcher = getattr(importlib.import_module(f"lada_kernels.{case.stem}"), f"{case.stem}_fwd")
    norm = None if norm_weight is None or norm_bias is None else (norm_weight, norm_bias, EPS)
    last = {"residual": residual, "norm": norm}
    if case.parts.hidden:
        epilogues = {
            "epilogue1": Epilogue(operands.pop("bias1"), _activation(case)),
            "epilogue2": Epilogue(operands.pop("bias2"), **last),
        }
    else:
        epilogues = {"epilogue": Epilogue(operands.pop("bias"), _activation(case), **last)}
    groups = {"groups": case.parts.groups} if case.parts.groups > 1 else {}
    return launcher(**operands, **epilogues, **groups, variant=way)


def _dense(
    case: Case,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    first: Tensor | None = None,
    bias1: Tensor | None = None,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
) -> Tensor:
    """The dense product, or for a feed-forward both, and what follows, as fused layers have it."""
    activation = _activation(case)
    if first is not None:
        x, activation = add_norm(F.linear(x, first, bias1), activation=activation), "none"
    norm = None if norm_weight is None or norm_bias is None else Norm(norm_weight, norm_bias, EPS)
    return add_norm(F.linear(x, weight, bias), activation=activation, residual=residual, norm=norm)
