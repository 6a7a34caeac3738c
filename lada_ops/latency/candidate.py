"""Candidates of a comparison: a callable to time, and the output it must give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A few times the error of a model against its fp32 reference, as sixteen-bit types round in every
# layer: six layers of MiniLM, compressed 5x, have 2e-6 (fp32), 7e-3 (fp16) and 2e-2 (bf16).
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 6e-2,
}


class WrongOutput(RuntimeError):
    """Output outside its candidate's tolerance; raised instead of reporting a time.

    candidate: name. reason: text for the user. error: largest relative error of a row, as
    `Candidate.tolerance` defines it; NaN where shapes differ or the output is not finite.
    """

    def __init__(self, candidate: str, reason: str, error: float, tolerance: float) -> None:
        super().__init__(f"{candidate!r}: {reason}; no time is reported")
        self.candidate = candidate
        self.reason = reason
        self.error = error
        self.tolerance = tolerance


@dataclass(frozen=True, eq=False)
class Candidate:
    """Callable to time, and the output it must give.

    run: callable without arguments, timed and checked. A sequence of callables on *copies* of a
        weight is rotated through, call by call: with one copy a small weight would stay in the
        cache between calls, which it does not in a model, and look too fast. Use it for a single
        layer at few tokens; whole models evict their own weights.
    expected: output that run must return, or a callable that computes it. For a lossy compressed
        model it is the output of that model's own slow reference, not of the dense model.
    tolerance: bound on the relative error of the worst row (last dimension, a token's features):
        ``norm(output - expected) / norm(expected)``, where the norm of a row counts as at least the
        root mean square of all rows' norms; None: `TOLERANCES` of the output's dtype.
    min_norm: least norm that a row counts as, for outputs whose rows may all be near zero, such as
        a few logits.
    read: function that picks the tensor to check from the return value of run (a model's output,
        unmasked positions); not timed.

    Raises ValueError or TypeError on an empty name or run, or a tolerance that is not positive.
    """

    name: str
    run: Callable[[], Any] | Sequence[Callable[[], Any]]
    expected: Tensor | Callable[[], Tensor]
    tolerance: float | None = None
    read: Callable[[Any], Tensor] = lambda output: output
    min_norm: float = 0.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("Candidate: name is empty; expected a name to report it by")
        if not self.calls or not all(callable(call) for call in self.calls):
            raise TypeError(
                f"Candidate {self.name!r}: run is {self.run!r}; "
                "expected a callable, or a non-empty sequence of callables"
            )
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise ValueError(
                f"Candidate {self.name!r}: tolerance {self.tolerance}; expected a positive number"
            )

    @property
    def calls(self) -> tuple[Callable[[], Any], ...]:
        """`run` as a sequence of one or more callables."""
        return (self.run,) if callable(self.run) else tuple(self.run)

    def expect(self) -> Tensor:
        """Expected output in fp64. Raises ValueError if it is empty or not finite."""
        expected = self.expected() if callable(self.expected) else self.expected
        self._check_tensor(expected, "expected")
        expected = expected.detach().to(torch.float64)
        if expected.numel() == 0 or not bool(expected.isfinite().all()):
            fault = "empty" if expected.numel() == 0 else "not finite"
            raise ValueError(f"Candidate {self.name!r}: expected is {fault}; nothing to hold it to")
        return expected

    def error(self, output: Any, expected: Tensor) -> float:
        """Largest relative error of a row of `output`, a return value of run.

        Raises WrongOutput where it exceeds the tolerance, or the output is not finite or has
        another shape; TypeError where `read` gives no floating-point tensor.
        """
        tensor = self.tensor(output)
        tolerance = self.bound(tensor)
        if tensor.shape != expected.shape:
            reason = f"output is {tuple(tensor.shape)}, expected {tuple(expected.shape)}"
            raise WrongOutput(self.name, reason, math.nan, tolerance)
        if not bool(tensor.isfinite().all()):
            raise WrongOutput(self.name, "output holds NaN or infinity", math.nan, tolerance)
        difference = row_norms(tensor.detach().to(expected) - expected)
        norms = row_norms(expected)
        scale = norms.clamp(min=max(self.min_norm, float(norms.square().mean().sqrt())))
        # 0 / 0: an expected zero that is exact
        error = float((difference / scale).nan_to_num(nan=0.0, posinf=math.inf).max())
        if error > tolerance:
            reason = f"output is off by {error:.2e}, tolerance {tolerance:.2e}"
            raise WrongOutput(self.name, reason, error, tolerance)
        return error

    def tensor(self, output: Any) -> Tensor:
        """Tensor to check in `output`, a return value of run."""
        tensor = self.read(output)
        self._check_tensor(tensor, "output")
        return tensor

    def bound(self, tensor: Tensor) -> float:
        """Tolerance of an output like `tensor`."""
        return TOLERANCES[tensor.dtype] if self.tolerance is None else self.tolerance

    def _check_tensor(self, tensor: Any, role: str) -> None:
        if not isinstance(tensor, Tensor) or tensor.dtype not in TOLERANCES:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"Candidate {self.name!r}: {role} is {got}; expected a floating-point tensor "
                "(pick it out of a larger output with read=)"
            )


def row_norms(tensor: Tensor) -> Tensor:
    """Euclidean norms over the last dimension."""
    return torch.linalg.vector_norm(torch.atleast_1d(tensor), dim=-1)
