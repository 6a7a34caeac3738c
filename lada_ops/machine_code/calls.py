"""Calls of launchers on meta tensors: the kernels that they launch, and their work."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .launches import Launch, recorded
from .roofline import Work

if TYPE_CHECKING:
    from lada_kernels.table import Key
    from lada_kernels.variants import Variant


@dataclass(frozen=True)
class LauncherCall:
    """One call of a launcher; x (tokens, k), y (tokens, n)."""

    stem: str
    tokens: int
    k: int
    n: int
    weight: str
    """Name as in tuned tables: "r128", "128x16-d20", "r64+128x16-d05", "r64-3072-r64"."""
    epilogue: str
    """ "none", "gelu", "gelu+residual", or "norm" (residual and LayerNorm)."""
    dtype: torch.dtype = torch.bfloat16
    variant: Variant | None = None
    """None for the launcher's own choice."""
    whole_packs: bool = True
    """True if block rows are sorted by load and hold whole packs; ignored by low rank."""
    gradient: str | None = None
    """Gradient of "x", the low-rank "factors" or the stored "values"; None for the forward pass."""

    @classmethod
    def of_entry(cls, key: Key, tokens: int, variant: Variant) -> LauncherCall:
        """Call that computes an entry of a tuned table by `variant`."""
        from lada_kernels.weight_names import WeightName

        stem, dtype = WeightName.parse(key.weight).stem, getattr(torch, key.dtype)
        epilogue = {"plain": "none", "fused": "gelu", "norm": "norm"}[key.epilogue]
        return cls(stem, tokens, key.k, key.n, key.weight, epilogue, dtype, variant)

    def __str__(self) -> str:
        shape = f"{self.tokens}x{self.k}x{self.n}"
        dtype = str(self.dtype).removeprefix("torch.")
        variant = "" if self.variant is None else f" {self.variant.name}"
        packs = "" if self.whole_packs else " unsorted"
        task = self.epilogue if self.gradient is None else f"gradient of {self.gradient}"
        return f"{self.stem} {shape} {self.weight}{packs} {task} {dtype}{variant}"

    def launches(self) -> list[Launch]:
        """Launches of our kernels, in order; empty where torch computes everything."""
        with recorded() as launches:
            self._forward() if self.gradient is None else self._backward()
        return launches

    def _forward(self) -> None:
        from lada_kernels.epilogue import Epilogue

        module = importlib.import_module(f"lada_kernels.{self.stem}")
        meta = self._meta
        weights: dict[str, Any] = {**self._weights()}
        if self.whole_packs and "crow_indices" in weights:
            rows = weights["crow_indices"].numel() - 1
            weights["order"] = meta(rows, dtype=torch.int32)
        if self.variant is not None and self.variant.name == "dense":
            weights["dense"] = self._dense
        activation, _, residual = self.epilogue.partition("+")
        norm = (meta(self.n), meta(self.n), 1e-12) if self.epilogue == "norm" else None
        if norm:
            activation, residual = "none", "residual"
        last = {"residual": meta(self.tokens, self.n) if residual else None, "norm": norm}
        if self.stem == "low_rank_ffn":
            weights["epilogue1"] = Epilogue(weights.pop("bias1"), "gelu")
            weights["epilogue2"] = Epilogue(weights.pop("bias2"), **last)
        else:
            weights["epilogue"] = Epilogue(weights.pop("bias"), activation, **last)
        launcher = getattr(module, f"{self.stem}_fwd")
        launcher(meta(self.tokens, self.k), **weights, **self._groups, variant=self.variant)

    def _backward(self) -> None:
        module = importlib.import_module(f"lada_kernels.{self.stem}_bwd")
        weights = self._weights()
        dy, x = self._meta(self.tokens, self.n), self._meta(self.tokens, self.k)
        if self.stem == "low_rank_linear":
            if self.gradient == "x":
                factors = weights["u"], weights["v"]
                module.low_rank_linear_dx(dy, *factors, **self._groups, variant=self.variant)
            else:
                t = self._meta(self.tokens, len(weights["v"]))
                module.low_rank_linear_dfactors(dy, x, t, t, **self._groups)
            return
        indices, values = (weights["crow_indices"], weights["col_indices"]), weights["values"]
        if self.gradient == "x":
            module.block_sparse_linear_dx(dy, *indices, values, self.k)
        else:
            module.block_sparse_linear_dvalues(dy, x, *indices, *values.shape[1:])

    @property
    def work(self) -> Work:
        """Work of two FLOPs per stored weight element and token, each operand moved once."""
        size = self.dtype.itemsize
        weights = [w for w in self._weights().values() if w.dtype == self.dtype and w.ndim > 1]
        parameters = sum(w.numel() for w in weights)
        has_residual = self.epilogue in ("gelu+residual", "norm")
        activations = self.tokens * (self.k + self.n * (1 + has_residual))
        return Work(2 * self.tokens * parameters, size * (parameters + activations))

    @property
    def _meta(self) -> Callable[..., torch.Tensor]:
        return partial(torch.empty, dtype=self.dtype, device="meta")

    def _weights(self) -> dict[str, torch.Tensor]:
        """Weights and biases by the names of the launcher's parameters."""
        from lada_kernels.weight_names import WeightName

        meta, k, n, parts = self._meta, self.k, self.n, WeightName.parse(self.weight)
        if parts.hidden:
            hidden, rank1, rank2 = parts.hidden, parts.rank, parts.rank2
            up = {"u1": meta(hidden, rank1), "v1": meta(rank1, k), "bias1": meta(hidden)}
            return up | {"u2": meta(n, rank2), "v2": meta(rank2, hidden), "bias2": meta(n)}
        weights = {"bias": meta(n)}
        if parts.rank:
            weights |= {"u": meta(n, parts.rank), "v": meta(parts.groups * parts.rank, k)}
        if parts.rows:
            grid = n // parts.rows, k // parts.cols
            blocks = max(1, grid[0] * grid[1] * parts.percent // 100)
            weights |= {
                "crow_indices": meta(grid[0] + 1, dtype=torch.int32),
                "col_indices": meta(blocks, dtype=torch.int32),
                "values": meta(blocks, parts.cols, parts.rows).transpose(1, 2),
            }
        return weights

    @property
    def _dense(self) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Dense weight, or both weights of a feed-forward."""
        from lada_kernels.weight_names import WeightName

        meta, k, n, hidden = self._meta, self.k, self.n, WeightName.parse(self.weight).hidden
        return (meta(hidden, k), meta(n, hidden)) if hidden else meta(n, k)

    @property
    def _groups(self) -> dict[str, int]:
        """The argument `groups`, where the weight is several pairs of factors."""
        from lada_kernels.weight_names import WeightName

        groups = WeightName.parse(self.weight).groups
        return {"groups": groups} if groups > 1 else {}
