"""Low-rank factors of a weight, in Frobenius norm or in a norm of inputs and outputs."""

import torch
from torch import Tensor

from ..formats.checks import check_finite, check_rank
from ..formats.low_rank import LowRank


@torch.no_grad()
def truncated_svd(
    weight: Tensor, rank: int, gram: Tensor | None = None, outputs: Tensor | None = None
) -> LowRank:
    """Factors that minimise ``||R (W - u v) X||_F``, computed in fp64.

    weight (out, in); ``gram = X X^T`` (in, in) and ``outputs = R^T R`` (out, out): fp64, positive
    definite (see `damped`), or None for the identity.
    Without both it is the truncated SVD (Eckart-Young), the singular values split evenly between
    the factors. With ``L L^T = gram`` the optimum is ``R^-1`` times the truncated SVD of ``R W L``
    times ``L^-1`` (with L alone SVD-LLM, Wang et al., ICLR 2025, and the closed form of DRONE, Chen
    et al., NeurIPS 2021; with a diagonal R alone FWSVD, Hsu et al., ICLR 2022). The factors have
    the weight's dtype and device.

    Raises ValueError on a rank out of range or a weight that isn't finite.
    """
    check_rank("truncated_svd", rank, (weight.shape[0], weight.shape[1]))
    check_finite("truncated_svd", weight)
    whitener = None if gram is None else torch.linalg.cholesky(gram)
    target, root = weight.double(), None
    if outputs is not None:
        root = torch.linalg.cholesky(outputs).T
        target = root @ target
    u, v = whitened_factors(target, rank, whitener)
    if root is not None:
        u = torch.linalg.solve_triangular(root, u, upper=True)
    return LowRank(u.to(weight.dtype), v.to(weight.dtype))


def leading_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Truncated SVD of a fp64 weight as ``u sqrt(s)`` and ``sqrt(s) v^T``.

    Computed from the eigenvectors Q of the smaller of ``W W^T`` and ``W^T W``: several times faster
    than an SVD. ``Q Q^T W`` is the best approximation whatever the rounding of small singular
    values.
    """
    if weight.shape[0] > weight.shape[1]:
        v, u = leading_factors(weight.T, rank)
        return u.T, v.T
    squares, vectors = torch.linalg.eigh(weight @ weight.T)
    vectors = vectors[:, -rank:].flip(1)
    squares = squares[-rank:].flip(0)
    root = squares.clamp(min=1e-24 * squares[0]).clamp(min=1e-300).pow(0.25)
    return vectors * root, (vectors / root).T @ weight


@torch.no_grad()
def rank_gains(weight: Tensor, gram: Tensor, outputs: Tensor, multiple: int) -> list[float]:
    """Gains in ``||R u v X||_F^2`` of each further `multiple` ranks of the best u v.

    weight (out, in), gram (in, in) and ``outputs = R^T R`` (out, out) fp64, as for `truncated_svd`;
    one number per `multiple` whole ranks: sums of squared singular values.
    """
    rows = torch.linalg.cholesky(outputs).T @ weight.double()
    squares = torch.linalg.eigvalsh(rows @ gram @ rows.T).flip(0).clamp(min=0)
    count = min(weight.shape) // multiple
    return squares[: count * multiple].view(count, multiple).sum(1).tolist()


def whitened_factors(weight: Tensor, rank: int, whitener: Tensor | None) -> tuple[Tensor, Tensor]:
    """Factors u, v of a fp64 weight that minimise ``||(W - u v) whitener||_F``."""
    if whitener is None:
        return leading_factors(weight, rank)
    u, v = leading_factors(weight @ whitener, rank)
    return u, torch.linalg.solve_triangular(whitener, v, upper=False, left=False)


def damped(gram: Tensor, damping: float = 0.01) -> Tensor:
    """Positive definite ``gram``: `damping` times its mean diagonal is added to the diagonal.

    Directions absent from the calibration text count a little instead of not at all. A gram of
    zeros (a layer whose inputs were all zero) becomes the identity.
    """
    scale = gram.diagonal().mean()
    if scale == 0:
        return torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    return gram + damping * scale * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
