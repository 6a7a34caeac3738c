"""Block pruning: which blocks of a weight to keep, and what to put in them."""

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..formats.bsr import Bsr, split_blocks
from ..formats.checks import check_finite
from ..formats.grid import block_count, check_block, group_of
from .second_order import removals

Selection: TypeAlias = Literal["wanda", "second_order"]


def check_selection(owner: str, selection: str) -> None:
    """Raise ValueError unless blocks can be chosen so."""
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
    """The share `density` of the blocks of ``weight (out, in)``, those that matter most.

    Without `gram`, the kept blocks are the weight's own, those of largest Frobenius norm. With
    ``gram = X X^T`` (in, in) fp64, positive definite, they are refitted to minimise
    ``||(W - S) X||_F`` (see `refit`), and how many a block row keeps is chosen by what they are
    worth so. A block row keeps its blocks in whole groups (`group_of`).

    selection: how a block row chooses given `gram`. "wanda" takes the blocks of largest norm, each
    column counted by the norm of its input (Sun et al., ICLR 2024, summed over blocks).
    "second_order" gives blocks up one by one, each that whose loss the others make up for best (see
    `removals`): slower, and a smaller error of the layer does not always make a better model.

    Raises ValueError on a density, block or selection out of range, or a weight that isn't finite.
    """
    check_selection("prune_blocks", selection)
    shape = weight.shape[0], weight.shape[1]
    check_block("prune_blocks", block, shape)
    check_finite("prune_blocks", weight)
    count = block_count(shape, block, density)
    keep = largest_blocks(weight.double(), block, count, gram, selection)
    if gram is not None:
        weight = refit(weight.double() @ gram, block, keep, gram).to(weight.dtype)
    return Bsr.from_dense(weight, block, keep)


@torch.no_grad()
def block_gains(
    weight: Tensor, gram: Tensor, block: tuple[int, int], selection: Selection = "wanda"
) -> list[float]:
    """How much of ``||W X||^2`` each further group of blocks adds when refitted, best first.

    By these `prune_blocks` chooses how many blocks each row of ``weight (out, in)`` keeps, given
    ``gram = X X^T`` and `selection`.
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
    """A mask (block rows, block columns) of `count` blocks, each row's best, in whole groups."""
    gains, cols = group_gains(weight, block, gram, selection)
    rows, groups, group = cols.shape
    chosen = gains.flatten().topk(count // group).indices // groups
    taken = group * chosen.bincount(minlength=rows)
    kept = torch.arange(groups * group, device=weight.device) < taken[:, None]
    return torch.zeros_like(kept).scatter(1, cols.flatten(1), kept)


def group_gains(
    weight: Tensor,
    block: tuple[int, int],
    gram: Tensor | None = None,
    selection: Selection = "wanda",
) -> tuple[Tensor, Tensor]:
    """What each row's best blocks add, its next best, and so on, and which they are.

    Returns gains (block rows, groups) of ``||W||^2``, with `gram` of ``||W X||^2``, and the block
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
    """The squared norms (block rows, block columns), largest first, and their block columns."""
    squares = split_blocks(weight, block).square().sum((-1, -2))
    return squares.sort(1, descending=True)


def _refit_gains(weight_gram: Tensor, cols: Tensor, gram: Tensor) -> Tensor:
    """What each of `cols` (n,) adds to ``||S X||^2`` if S has it and those before, refitted.

    weight_gram: ``W gram`` (rows, in). With C the columns so far and L L^T = gram[C, C], refitted S
    has ``||S X|| = ||L^-1 (gram W^T)[C]||``, and a longer C only adds rows to L.
    """
    factor = torch.linalg.cholesky(gram[cols][:, cols])
    solved = torch.linalg.solve_triangular(factor, weight_gram[:, cols].T, upper=False)
    return solved.square().sum(1)


def columns_of(block_cols: Tensor, width: int) -> Tensor:
    """The columns (n * width,) of the weight that are in the block columns (n,)."""
    within = torch.arange(width, device=block_cols.device)
    return (block_cols[:, None] * width + within).flatten()


def refit(weight_gram: Tensor, block: tuple[int, int], keep: Tensor, gram: Tensor) -> Tensor:
    """The S (out, in) with only the blocks `keep` that minimises ``||(W - S) X||_F``.

    weight_gram: ``W gram`` (out, in). Each block row is a least-squares problem of its own: with C
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
