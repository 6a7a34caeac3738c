"""Block pruning: the choice of the kept blocks of a weight, and the refit of their values."""

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..formats.bsr import Bsr, split_blocks
from ..formats.checks import check_finite
from ..formats.grid import block_count, group_of
from .second_order import removals

Selection: TypeAlias = Literal["wanda", "second_order"]


def check_selection(owner: str, selection: str) -> None:
    """Raise ValueError unless `selection` is one of Selection."""
    if selection not in get_args(Selection):
        raise ValueError(f"{owner}: selection {selection!r}; expected one of {get_args(Selection)}")


@torch.no_grad()
def prune_blocks(
    weight: Tensor,
    block: tuple[int, int],
    density: float,
    gram: Tensor | None = None,
    selection: Selection = "wanda",
) -> Bsr:
    """Block-sparse weight S that keeps the share `density` of the blocks of ``weight (out, in)``.

    Without `gram`, the blocks of largest Frobenius norm are kept, unchanged. With ``gram = X X^T``
    (in, in) fp64, positive definite, the kept blocks are refitted to minimise ``||(W - S) X||_F``
    (see `refit`), and each block row keeps as many as reduce that error most. A block row keeps its
    blocks in whole groups (`group_of`).

    selection: criterion within a block row, given `gram`. "wanda" keeps the blocks of largest norm,
    each column weighted by the norm of its input (Sun et al., ICLR 2024, summed over blocks).
    "second_order" removes blocks one by one, each time the block whose removal costs least after
    the others are refitted (see `removals`): slower, and a smaller error of the layer does not
    always make a better model.

    Raises ValueError on a density, block or selection out of range, or a weight that isn't finite.
    """
    check_selection("prune_blocks", selection)
    shape = weight.shape[0], weight.shape[1]
    count = block_count("prune_blocks", shape, block, density)
    check_finite("prune_blocks", weight)
    keep = largest_blocks(weight.double(), block, count, gram, selection)
    if gram is not None:
        weight = refit(weight.double() @ gram, block, keep, gram).to(weight.dtype)
    return Bsr.from_dense(weight, block, keep)


@torch.no_grad()
def block_gains(
    weight: Tensor, gram: Tensor, block: tuple[int, int], selection: Selection = "wanda"
) -> list[float]:
    """Gains in ``||S X||^2`` of each further group of refitted blocks, largest first.

    `prune_blocks` chooses the number of blocks of each block row of ``weight (out, in)`` by these,
    given ``gram = X X^T`` and `selection`.
    """
    check_selection("block_gains", selection)
    gains = group_gains(weight.double(), block, gram, selection)[0]
    return gains.flatten().sort(descending=True).values.tolist()


def largest_blocks(
    weight: Tensor,
    block: tuple[int, int],
    count: int,
    gram: Tensor | None = None,
    selection: Selection = "wanda",
) -> Tensor:
    """Mask (block rows, block columns) of `count` blocks, each row's best, in whole groups."""
    gains, cols = group_gains(weight, block, gram, selection)
    rows, groups, group = cols.shape
    chosen_rows = gains.flatten().topk(count // group).indices // groups
    counts = group * chosen_rows.bincount(minlength=rows)
    kept = torch.arange(groups * group, device=weight.device) < counts[:, None]
    return torch.zeros_like(kept).scatter(1, cols.flatten(1), kept)


def group_gains(
    weight: Tensor,
    block: tuple[int, int],
    gram: Tensor | None = None,
    selection: Selection = "wanda",
) -> tuple[Tensor, Tensor]:
    """Gains of each block row's groups of blocks, best first, and the groups' block columns.

    Returns gains (block rows, groups) in ``||S||^2``, with `gram` in ``||S X||^2``, and block
    columns (block rows, groups, blocks in a group).
    """
    if gram is None:
        scores, cols = _by_size(weight, block)
    elif selection == "second_order":
        cols, scores = removals(weight.unflatten(0, (-1, block[0])), block[1], gram)
    else:
        cols = _by_size(weight * gram.diagonal().sqrt(), block)[1]
        panels = (weight @ gram).split(block[0])
        pairs = zip(panels, cols, strict=True)
        scores = torch.stack([_refit_gains(p, columns_of(c, block[1]), gram) for p, c in pairs])
        scores = scores.unflatten(1, (-1, block[1])).sum(2)
    group = group_of((weight.shape[0], weight.shape[1]), block)
    return scores.unflatten(1, (-1, group)).sum(2), cols.unflatten(1, (-1, group))


def _by_size(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Squared norms (block rows, block columns), largest first, and their block columns."""
    squares = split_blocks(weight, block).square().sum((-1, -2))
    return squares.sort(1, descending=True)


def _refit_gains(weight_gram: Tensor, cols: Tensor, gram: Tensor) -> Tensor:
    """Gain in ``||S X||^2`` of each of `cols` (n,), when S is refitted to it and the ones before.

    weight_gram: ``W gram`` (rows, in). With C the columns so far and L L^T = gram[C, C], refitted S
    has ``||S X|| = ||L^-1 (gram W^T)[C]||``, and a longer C only adds rows to L.
    """
    factor = torch.linalg.cholesky(gram[cols][:, cols])
    solved = torch.linalg.solve_triangular(factor, weight_gram[:, cols].T, upper=False)
    return solved.square().sum(1)


def columns_of(block_cols: Tensor, width: int) -> Tensor:
    """Columns (n * width,) of the weight in the block columns (n,)."""
    within = torch.arange(width, device=block_cols.device)
    return (block_cols[:, None] * width + within).flatten()


def refit(weight_gram: Tensor, block: tuple[int, int], keep: Tensor, gram: Tensor) -> Tensor:
    """Weight S (out, in), zero outside the blocks `keep`, that minimises ``||(W - S) X||_F``.

    weight_gram: ``W gram`` (out, in). Each block row is a separate least-squares problem: with C
    its kept columns, ``S[:, C] = (W gram)[:, C] gram[C, C]^-1``.
    """
    height = block[0]
    fitted = torch.zeros_like(weight_gram)
    for row, kept in enumerate(keep):
        cols = columns_of(kept.nonzero().squeeze(1), block[1])
        here = slice(row * height, (row + 1) * height)
        factor = torch.linalg.cholesky(gram[cols][:, cols])
        fitted[here, cols] = torch.cholesky_solve(weight_gram[here, cols].T, factor).T
    return fitted
