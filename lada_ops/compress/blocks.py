"""Block pruning: which blocks of a weight to keep, and what to put in them."""

import torch
from torch import Tensor

from ..formats import Bsr, block_count, check_block, check_finite, split_blocks


@torch.no_grad()
def prune_blocks(
    weight: Tensor, block: tuple[int, int], density: float, gram: Tensor | None = None
) -> Bsr:
    """The share `density` of the blocks of ``weight (out, in)``, chosen by magnitude.

    Without `gram`, the kept blocks are the weight's own, those of largest Frobenius norm. With
    ``gram = X X^T`` (in, in) fp64, positive definite, each column counts by the norm of its input
    (Wanda, Sun et al., ICLR 2024, summed over blocks), and the kept blocks are refitted to
    minimise ``||(W - S) X||_F`` (see `refit`).
    """
    shape = weight.shape[0], weight.shape[1]
    check_block("prune_blocks", block, shape)
    check_finite("prune_blocks", weight)
    keep = largest_blocks(weight.double(), block, block_count(shape, block, density), gram)
    if gram is not None:
        weight = refit(weight.double() @ gram, block, keep, gram).to(weight.dtype)
    return Bsr.from_dense(weight, block, keep)


@torch.no_grad()
def block_gains(weight: Tensor, gram: Tensor, block: tuple[int, int]) -> list[float]:
    """The part of the score of ``weight (out, in)`` that each further block adds, best first.

    The scores are those by which `prune_blocks` chooses, given ``gram = X X^T``.
    """
    scores = block_scores(weight.double(), block, gram).flatten().sort(descending=True).values
    return (scores / scores.sum().clamp(min=1e-300)).tolist()


def block_scores(weight: Tensor, block: tuple[int, int], gram: Tensor | None = None) -> Tensor:
    """Squared Frobenius norms (block rows, block columns), of columns weighted by their inputs."""
    if gram is not None:
        weight = weight * gram.diagonal().sqrt()
    return split_blocks(weight, block).square().sum((-1, -2))


def largest_blocks(
    weight: Tensor, block: tuple[int, int], count: int, gram: Tensor | None = None
) -> Tensor:
    """A mask (block rows, block columns) of the `count` blocks of largest norm."""
    scores = block_scores(weight, block, gram)
    keep = torch.zeros(scores.numel(), dtype=torch.bool, device=weight.device)
    keep[scores.flatten().topk(count).indices] = True
    return keep.view_as(scores)


def refit(weight_gram: Tensor, block: tuple[int, int], keep: Tensor, gram: Tensor) -> Tensor:
    """The S (out, in) with only the blocks `keep` that minimises ``||(W - S) X||_F``.

    weight_gram: ``W gram`` (out, in). Each block row is a least-squares problem of its own: with C
    its kept columns, ``S[:, C] = (W gram)[:, C] gram[C, C]^-1``.
    """
    height, width = block
    fitted = torch.zeros_like(weight_gram)
    for row, kept in enumerate(keep):
        cols = kept.repeat_interleave(width).nonzero().squeeze(1)
        here = slice(row * height, (row + 1) * height)
        factor = torch.linalg.cholesky(gram[cols][:, cols])
        fitted[here, cols] = torch.cholesky_solve(weight_gram[here, cols].T, factor).T
    return fitted
