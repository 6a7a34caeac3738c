"""What is kept or dropped as a whole: rank slices of ``u v``, and blocks; and which to keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..formats.bsr import INDEX_DTYPE, block_row_indices, split_blocks
from ..formats.grid import check_block, group_of
from ..modules.block_sparse_linear import BsrLinear
from ..modules.low_rank_linear import LowRankLinear
from ..modules.sparse_low_rank_linear import SparseLowRankLinear


class Units(ABC):
    """The units of one linear, in a grid (rows, cells); some cells may hold none.

    present: the grid of those there are. group: how many of a row stay or go together. least: how
    many groups stay whatever they are worth. price: the stored bytes of a unit.
    """

    present: Tensor
    group: int
    least: int
    price: int

    @abstractmethod
    def slopes(self) -> Tensor:
        """``<dL/dw, w>`` (rows, cells) fp32 of each unit w: the loss's slope along a gate on it.

        Raises ValueError where there is no gradient.
        """

    @abstractmethod
    def zero(self, units: Tensor) -> None:
        """Set the chosen units (rows, cells) to zero."""


class Slices(Units):
    """The ranks of ``u v``: a column of u with its row of v. One row of the grid."""

    def __init__(self, module: LowRankLinear | SparseLowRankLinear, group: int) -> None:
        self.u, self.v = module.u, module.v
        if module.rank % group:
            raise ValueError(f"Slices: rank {module.rank}; expected a multiple of {group}")
        self.present = torch.ones(1, module.rank, dtype=torch.bool, device=self.u.device)
        self.group, self.least = group, 1
        self.price = (module.in_features + module.out_features) * self.u.element_size()

    def slopes(self) -> Tensor:
        return (_gradient(self.u) * self.u.detach()).float().sum(0, keepdim=True)

    @torch.no_grad()
    def zero(self, units: Tensor) -> None:
        self.u[:, units[0]] = 0
        self.v[units[0]] = 0


class StoredBlocks(Units):
    """The blocks that a block-sparse weight stores, in the grid of all its blocks."""

    def __init__(self, module: BsrLinear, least: int) -> None:
        self.values = module.values
        bsr = module.bsr
        self.rows = block_row_indices(module.crow_indices, bsr.nnz)
        self.cols = module.col_indices.long()
        self.present = torch.zeros(bsr.grid, dtype=torch.bool, device=self.values.device)
        self.present[self.rows, self.cols] = True
        self.group, self.least = group_of(bsr.shape, bsr.block), least
        self.price = _block_bytes(bsr.block, self.values)

    def slopes(self) -> Tensor:
        products = (_gradient(self.values) * self.values.detach()).float().sum((1, 2))
        grid = products.new_zeros(self.present.shape)
        return grid.index_put((self.rows, self.cols), products)

    @torch.no_grad()
    def zero(self, units: Tensor) -> None:
        self.values[units[self.rows, self.cols]] = 0


class DenseBlocks(Units):
    """The blocks of a dense weight."""

    def __init__(self, linear: nn.Linear, block: tuple[int, int]) -> None:
        self.weight, self.block = linear.weight, block
        shape = linear.out_features, linear.in_features
        check_block("DenseBlocks", block, shape)
        grid = shape[0] // block[0], shape[1] // block[1]
        self.present = torch.ones(grid, dtype=torch.bool, device=self.weight.device)
        self.group, self.least = group_of(shape, block), 1
        self.price = _block_bytes(block, self.weight)

    def slopes(self) -> Tensor:
        products = (_gradient(self.weight) * self.weight.detach()).float()
        return split_blocks(products, self.block).sum((2, 3))

    @torch.no_grad()
    def zero(self, units: Tensor) -> None:
        split_blocks(self.weight, self.block)[units] = 0


def units_of(
    modules: Mapping[str, nn.Module], block: tuple[int, int], multiple: int
) -> list[Units]:
    """The units of every module; `block` is for those that are dense, `multiple` for ranks."""
    found: list[Units] = []
    for module in modules.values():
        if isinstance(module, LowRankLinear | SparseLowRankLinear):
            found.append(Slices(module, multiple))
        if isinstance(module, BsrLinear):
            found.append(StoredBlocks(module, least=0 if hasattr(module, "u") else 1))
        if isinstance(module, nn.Linear):
            found.append(DenseBlocks(module, block))
    return found


def best(units: Sequence[Units], scores: Sequence[Tensor], budget: float) -> list[Tensor]:
    """Which units to keep, as grids of bool: those of highest score per byte, within `budget`.

    In whole groups: of each row the best units form the first group, the next best the second.
    scores: (rows, cells) per `Units`, -inf where there is none. The `least` of each stay even over
    the budget (bytes).
    """
    values, prices, orders = [], [], []
    for of, score in zip(units, scores, strict=True):
        ordered, order = score.sort(dim=1, descending=True, stable=True)
        sums = ordered.unflatten(1, (-1, of.group)).sum(2)
        orders.append(order)
        price = torch.full_like(sums, of.group * of.price)
        if of.least:
            sums.flatten()[sums.flatten().topk(of.least).indices] = torch.inf
        values.append((sums / price).flatten())
        prices.append(price.flatten().double())
    value, price = torch.cat(values), torch.cat(prices)
    ranking = value.argsort(descending=True, stable=True)
    kept = torch.zeros_like(value, dtype=torch.bool)
    kept[ranking] = price[ranking].cumsum(0) <= budget
    kept = (kept | (value == torch.inf)) & (value > -torch.inf)
    masks = []
    for of, order, chosen in zip(units, orders, kept.split([len(v) for v in values]), strict=True):
        chosen = chosen.view(order.shape[0], -1).repeat_interleave(of.group, 1)
        masks.append(torch.zeros_like(chosen).scatter(1, order, chosen))
    return masks


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise ValueError("a weight to prune has no gradient; expected one that requires it")
    return parameter.grad


def _block_bytes(block: tuple[int, int], values: Tensor) -> int:
    return block[0] * block[1] * values.element_size() + INDEX_DTYPE.itemsize
