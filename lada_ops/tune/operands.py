"""Operands: random tensors of a case, its dense weights, and its output in fp64."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..approximation.blocks import prune_blocks
from ..formats.bsr import Bsr
from ..ops.reference import Norm, epilogue_ref
from .case import Case

if TYPE_CHECKING:
    from lada_kernels.variants import Variant

EPS = 1e-12  # of BERT's LayerNorm

Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Operands:
    """Random operands of a case, scaled so that the output has about the variance of x.

    x (tokens, k). weights, biases: by the launcher's parameter names, such as u, v, values, bias,
    or u1, v1, bias1, u2, v2, bias2 of a feed-forward. bsr: format of the sparse part, if any.
    epilogue: residual (tokens, n), norm_weight (n,) and norm_bias (n,), if any.
    """

    case: Case
    x: Tensor
    weights: Tensors
    biases: Tensors
    bsr: Bsr | None
    epilogue: Tensors

    @classmethod
    def draw(cls, case: Case, device: torch.device) -> Operands:
        dtype, parts = getattr(torch, case.dtype), case.parts

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, dtype=torch.float32, device=device) * scale).to(dtype)

        def factors(suffix: str, out: int, rank: int, cols: int) -> Tensors:
            return {
                f"u{suffix}": normal(out, rank, scale=rank**-0.5),
                f"v{suffix}": normal(parts.groups * rank, cols, scale=cols**-0.5),
            }

        bsr = None
        if parts.hidden:
            weights = factors("1", parts.hidden, parts.rank, case.k)
            weights |= factors("2", case.n, parts.rank2, parts.hidden)
            biases = {"bias1": normal(parts.hidden), "bias2": normal(case.n)}
        else:
            weights = factors("", case.n, parts.rank, case.k) if parts.rank else {}
            biases = {"bias": normal(case.n)}
        if parts.rows:
            density = parts.percent / 100
            dense = normal(case.n, case.k, scale=(density * case.k) ** -0.5)
            bsr = prune_blocks(dense, (parts.rows, parts.cols), density)
            weights |= {
                "crow_indices": bsr.crow_indices,
                "col_indices": bsr.col_indices,
                "values": bsr.values,
            }
        epilogue: Tensors = {}
        if case.epilogue == "norm" or (parts.hidden and case.epilogue == "fused"):
            epilogue["residual"] = normal(case.tokens, case.n)
        if case.epilogue == "norm":
            epilogue |= {"norm_weight": 1 + normal(case.n, scale=0.1), "norm_bias": normal(case.n)}
        return cls(case, normal(case.tokens, case.k), weights, biases, bsr, epilogue)

    @property
    def launcher_arguments(self) -> Tensors:
        """Tensors by the names of `launcher`'s parameters."""
        order = {}
        if self.bsr is not None and self.bsr.whole_packs:
            order = {"order": self.bsr.order}
        return {"x": self.x, **self.weights, **order, **self.biases, **self.epilogue}

    @property
    def elements(self) -> int:
        """Stored elements of the compressed weights."""
        return sum(t.numel() for t in self.weights.values() if t.is_floating_point())

    @property
    def activation(self) -> str:
        """Activation behind the last product; that of a feed-forward is between its products."""
        fused = self.case.epilogue == "fused" and not self.case.parts.hidden
        return "gelu" if fused else "none"

    def dense_weights(self) -> list[Tensor]:
        """Dense weights (out, in) in fp64, one for a linear and two for a feed-forward."""
        names = ["1", "2"] if self.case.parts.hidden else [""]
        return [self._dense_weight(name) for name in names]

    def expected(self, *weights: Tensor, rows: Tensor | None = None) -> Tensor:
        """Output (tokens, n) in fp64, or `rows` of it.

        weights: dense weights, by default `dense_weights`.
        """

        def exact(t: Tensor, has_rows: bool) -> Tensor:
            return (t[rows] if has_rows and rows is not None else t).double()

        *first, (weight, bias) = zip(
            weights or self.dense_weights(), self.biases.values(), strict=True
        )
        x = exact(self.x, True)
        for up, up_bias in first:
            x = F.gelu(F.linear(x, up.double(), up_bias.double()))
        z = F.linear(x, weight.double(), bias.double())
        tensors = {name: exact(t, name == "residual") for name, t in self.epilogue.items()}
        return finished(z, self.activation, **tensors)

    def _dense_weight(self, suffix: str) -> Tensor:
        dense = torch.zeros((), dtype=torch.float64, device=self.x.device)
        if self.case.parts.rank:
            groups = self.case.parts.groups
            u, v = (self.weights[f"{name}{suffix}"].double() for name in "uv")
            products = torch.bmm(u.unflatten(0, (groups, -1)), v.unflatten(0, (groups, -1)))
            dense = products.flatten(0, 1)
        return dense if self.bsr is None else dense + self.bsr.to_dense().double()


def finished(
    z: Tensor,
    activation: str,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
) -> Tensor:
    """Epilogue ``LN(activation(z) + residual)`` in plain torch."""
    norm = None if norm_weight is None or norm_bias is None else Norm(norm_weight, norm_bias, EPS)
    return epilogue_ref(z, activation, residual, norm)


def launcher(case: Case, variant: Variant | None = None) -> Callable[..., Tensor]:
    """Launcher of the case's kernels, to be called with `Operands.launcher_arguments`.

    variant: by default the launcher's own choice.
    """
    from lada_kernels.epilogue import Epilogue

    module = importlib.import_module(f"lada_kernels.{case.stem}")
    launch = getattr(module, f"{case.stem}_fwd")
    arguments: dict[str, Any] = {"variant": variant}
    if case.parts.groups > 1:
        arguments["groups"] = case.parts.groups
    activation = "gelu" if case.parts.hidden or case.epilogue == "fused" else "none"

    def call(
        residual: Tensor | None = None,
        norm_weight: Tensor | None = None,
        norm_bias: Tensor | None = None,
        bias: Tensor | None = None,
        bias1: Tensor | None = None,
        bias2: Tensor | None = None,
        **operands: Tensor,
    ) -> Tensor:
        norm = None if norm_weight is None or norm_bias is None else (norm_weight, norm_bias, EPS)
        if not case.parts.hidden:
            epilogue = Epilogue(bias, activation, residual, norm)
            return launch(**operands, **arguments, epilogue=epilogue)
        epilogues = {
            "epilogue1": Epilogue(bias1, activation),
            "epilogue2": Epilogue(bias2, "none", residual, norm),
        }
        return launch(**operands, **arguments, **epilogues)

    return call
