"""Second-order pruning: an order of removal of the blocks of a weight, the rest refitted."""

import torch
from torch import Tensor


def removals(weight: Tensor, width: int, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Block columns of each block row, the last removed first, and the loss of each removal.

    weight (block rows, rows, in) fp64, its blocks `width` columns wide; ``gram = X X^T`` (in, in)
    fp64, positive definite. Each step removes the block that raises ``||(W - S) X||^2`` least and
    refits the remaining ones (Optimal BERT Surgeon, Kurtic et al., EMNLP 2022, with a layer's least
    squares for the Hessian, as in SparseGPT, Frantar and Alistarh, ICML 2023). Returns columns and
    losses, both (block rows, in / width).
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    cols, losses = zip(*(_removals(rows, width, inverse) for rows in weight), strict=True)
    return torch.stack(cols), torch.stack(losses)


def _removals(weight: Tensor, width: int, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """`removals` for one block row ``weight (rows, in)``, given ``inverse = gram^-1``.

    Removal of a block C of columns costs ``tr(w_C [H^-1]_CC^-1 w_C^T)``; w then becomes
    ``w - w_C [H^-1]_CC^-1 [H^-1]_C``, and H^-1 its Schur complement. Only the diagonal blocks of
    that are updated: a row of it follows from `factor` when its block is removed.
    """
    count = weight.shape[1] // width
    index = torch.arange(count, device=weight.device)
    diagonal = inverse.unflatten(0, (count, width)).unflatten(2, (count, width))[index, :, index]
    left = weight.T.clone().unflatten(0, (count, width))  # (blocks, width, rows)
    factor = torch.empty_like(inverse)
    removed = torch.zeros(count, dtype=torch.bool, device=weight.device)
    identity = torch.eye(width, dtype=weight.dtype, device=weight.device)
    order, losses = [], []
    for start in range(0, weight.shape[1], width):
        lower = torch.linalg.cholesky(diagonal)
        solved = torch.linalg.solve_triangular(lower, left, upper=False)
        scores = solved.square().sum((1, 2)).masked_fill(removed, torch.inf)
        worst = scores.argmin()
        order.append(worst)
        losses.append(scores[worst])
        removed[worst] = True

        here = worst * width + index.new_tensor(range(width))
        row = inverse[here] - factor[:start, here].T @ factor[:start]
        row = torch.linalg.solve_triangular(lower[worst], row, upper=False)
        row = row.masked_fill(removed.repeat_interleave(width), 0)  # 0 but for rounding
        factor[start : start + width] = row
        left -= (row.T @ solved[worst]).view_as(left)
        blocks = row.unflatten(1, (count, width)).transpose(0, 1)
        diagonal -= blocks.mT @ blocks
        diagonal[worst] = identity  # removed: any matrix with a Cholesky factor
    return torch.stack(order).flip(0), torch.stack(losses).flip(0)
