"""``W = u v + S``: low rank plus block sparse, by alternation."""

import torch
from torch import Tensor

from ..formats.bsr import Bsr
from ..formats.checks import check_finite, check_rank
from ..formats.grid import block_count
from ..formats.low_rank import LowRank
from ..formats.sparse_low_rank import SparseLowRank
from .blocks import Selection, check_selection, largest_blocks, refit
from .svd import whitened_factors


@torch.no_grad()
def alternate(
    weight: Tensor,
    rank: int,
    block: tuple[int, int],
    density: float,
    gram: Tensor | None = None,
    steps: int = 8,
    selection: Selection = "wanda",
) -> SparseLowRank:
    """Weight ``u v + S`` near ``weight (out, in)``, of `rank` and with a share `density` of blocks.

    Alternates ``u v = SVD_rank(W - S)`` and ``S = largest blocks of (W - u v)`` `steps` times
    (OATS, Zhang and Papyan, ICLR 2025, with blocks for single weights). With ``gram = X X^T`` (in,
    in) fp64, positive definite, both steps minimise ``||(W - u v - S) X||_F``: the SVD is whitened
    and the blocks refitted (as HASSLE-free, Makni et al., 2025, and 3BASiL do for single weights).
    selection: criterion for blocks, as for `prune_blocks`. Returns the best of all steps in that
    norm (Frobenius without gram).

    Raises ValueError on a rank, block, density or selection out of range, or a weight that isn't
    finite.
    """
    shape = weight.shape[0], weight.shape[1]
    check_selection("alternate", selection)
    check_rank("alternate", rank, shape)
    count = block_count("alternate", shape, block, density)
    check_finite("alternate", weight)
    target = weight.double()
    whitener = None if gram is None else torch.linalg.cholesky(gram)
    target_gram = target if gram is None else target @ gram
    sparse, best = torch.zeros_like(target), None
    for _ in range(steps):
        u, v = whitened_factors(target - sparse, rank, whitener)
        rest = target - u @ v
        keep = largest_blocks(rest, block, count, gram, selection)
        if gram is None:
            rest_gram = rest
            sparse = Bsr.from_dense(rest, block, keep).to_dense()
        else:
            rest_gram = target_gram - u @ (v @ gram)
            sparse = refit(rest_gram, block, keep, gram)
        # ||(rest - S) X||^2: S is its own best fit, so what is left is orthogonal to it
        error = float(((rest - sparse) * rest_gram).sum())
        if best is None or error < best[0]:
            best = error, u, v, sparse, keep
    assert best is not None
    _, u, v, sparse, keep = best
    return SparseLowRank(
        LowRank(u.to(weight.dtype), v.to(weight.dtype)),
        Bsr.from_dense(sparse.to(weight.dtype), block, keep),
    )
