"""Units of structured pruning, rank slices of ``u v`` and blocks, and the selection of units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..formats.bsr import Bsr, split_blocks
from ..formats.grid import grid_of, group_of
from ..formats.low_rank import LowRank
from ..modules.block_sparse_linear import BsrLinear
from ..modules.low_rank_linear import LowRankLinear
from ..modules.sparse_low_rank_linear import SparseLowRankLinear


class UnitGrid(ABC):
    """Prunable units of one linear, in a grid (rows, columns) whose cells may be empty.

    present: bool (rows, columns), the cells that hold a unit. group_size: units of a row that are
    kept or dropped together. min_groups: groups that are kept whatever their scores. unit_bytes:
    stored bytes of a unit.
    """

    present: Tensor
    group_size: int
    min_groups: int
    unit_bytes: int

    @abstractmethod
    def gate_gradients(self) -> Tensor:
        """Gradient ``<dL/dw, w>`` of the loss by a gate on each unit w: (rows, columns) fp32.

        Raises ValueError where a weight has no gradient.
        """

    @abstractmethod
    def zero(self, units: Tensor) -> None:
        """Set the units of a bool mask (rows, columns) to zero."""


class RankSlices(UnitGrid):
    """Rank slices of ``u v``: each a column of u with its row of v; a grid of one row."""

    def __init__(self, module: LowRankLinear | SparseLowRankLinear, group_size: int) -> None:
        self.u, self.v = module.u, module.v
        if module.rank % group_size:
            raise ValueError(f"RankSlices: rank {module.rank}; expected a multiple of {group_size}")
        self.present = torch.ones(1, module.rank, dtype=torch.bool, device=self.u.device)
        self.group_size, self.min_groups = group_size, 1
        shape = module.out_features, module.in_features
        self.unit_bytes = LowRank.rank_bytes(shape, self.u.dtype)

    def gate_gradients(self) -> Tensor:
        return (_gradient(self.u) * self.u.detach()).float().sum(0, keepdim=True)

    @torch.no_grad()
    def zero(self, units: Tensor) -> None:
        self.u[:, units[0]] = 0
        self.v[units[0]] = 0


class StoredBlocks(UnitGrid):
    """Stored blocks of a block-sparse weight, in the grid of all its blocks."""

    def __init__(self, module: BsrLinear, min_groups: int) -> None:
        self.values = module.values
        bsr = module.bsr
        self.rows, self.cols = bsr.row_indices, bsr.col_indices.long()
        self.present = bsr.mask
        self.group_size, self.min_groups = group_of(bsr.shape, bsr.block), min_groups
        self.unit_bytes = Bsr.block_bytes(bsr.block, self.values.dtype)

    def gate_gradients(self) -> Tensor:
        products = (_gradient(self.values) * self.values.detach()).float().sum((1, 2))
        grid = products.new_zeros(self.present.shape)
        return grid.index_put((self.rows, self.cols), products)

    @torch.no_grad()
    def zero(self, units: Tensor) -> None:
        self.values[units[self.rows, self.cols]] = 0


class DenseBlocks(UnitGrid):
    """Blocks of a dense weight."""

    def __init__(self, linear: nn.Linear, block: tuple[int, int]) -> None:
        self.weight, self.block = linear.weight, block
        shape = linear.out_features, linear.in_features
        grid = grid_of(shape, block)
        self.present = torch.ones(grid, dtype=torch.bool, device=self.weight.device)
        self.group_size, self.min_groups = group_of(shape, block), 1
        self.unit_bytes = Bsr.block_bytes(block, self.weight.dtype)

    def gate_gradients(self) -> Tensor:
        products = (_gradient(self.weight) * self.weight.detach()).float()
        return split_blocks(products, self.block).sum((2, 3))

    @torch.no_grad()
    def zero(self, units: Tensor) -> None:
        split_blocks(self.weight, self.block)[units] = 0


def unit_grids(
    modules: Mapping[str, nn.Module], block: tuple[int, int], rank_multiple: int
) -> list[UnitGrid]:
    """Unit grids of the modules, two for one in `sparse_low_rank`.

    block: (out, in) of the blocks of dense linears. rank_multiple: group size of rank slices.
    """
    grids: list[UnitGrid] = []
    for module in modules.values():
        if isinstance(module, LowRankLinear | SparseLowRankLinear):
            grids.append(RankSlices(module, rank_multiple))
        if isinstance(module, BsrLinear):
            grids.append(StoredBlocks(module, min_groups=0 if hasattr(module, "u") else 1))
        if isinstance(module, nn.Linear):
            grids.append(DenseBlocks(module, block))
    return grids


def select_units(
    grids: Sequence[UnitGrid], scores: Sequence[Tensor], budget: float
) -> list[Tensor]:
    """Masks (rows, columns) of the units to keep: the highest score per byte within `budget` bytes.

    scores: (rows, columns) of each grid, -inf at empty cells. Units are kept in groups: the best of
    a row form its first group, the next best its second. The best `min_groups` of each grid are
    kept even beyond the budget.
    """
    values, prices, orders = [], [], []
    for grid, score in zip(grids, scores, strict=True):
        ordered, order = score.sort(dim=1, descending=True, stable=True)
        sums = ordered.unflatten(1, (-1, grid.group_size)).sum(2)
        orders.append(order)
        price = torch.full_like(sums, grid.group_size * grid.unit_bytes)
        if grid.min_groups:
            sums.flatten()[sums.flatten().topk(grid.min_groups).indices] = torch.inf
        values.append((sums / price).flatten())
        prices.append(price.flatten().double())
    value, price = torch.cat(values), torch.cat(prices)
    ranking = value.argsort(descending=True, stable=True)
    kept = torch.zeros_like(value, dtype=torch.bool)
    kept[ranking] = price[ranking].cumsum(0) <= budget
    kept = (kept | (value == torch.inf)) & (value > -torch.inf)
    masks = []
    chosen_groups = kept.split([len(group_values) for group_values in values])
    for grid, order, chosen in zip(grids, orders, chosen_groups, strict=True):
        chosen = chosen.view(order.shape[0], -1).repeat_interleave(grid.group_size, 1)
        masks.append(torch.zeros_like(chosen).scatter(1, order, chosen))
    return masks


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise ValueError("a weight to prune has no gradient; expected one that requires it")
    return parameter.grad
