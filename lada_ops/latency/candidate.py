"""What is timed, and what its output must equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A few times what a model shows against its fp32 reference, where sixteen-bit types round in every
# layer: six layers of MiniLM, compressed 5x, are off by 2e-6 (fp32), 7e-3 (fp16) and 2e-2 (bf16).
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 6e-2,
}


class WrongOutput(RuntimeError):
    """An output is not what its candidate promised, so no time is reported.

    candidate: its name. reason: what is wrong with its output. error: the largest error, in the
    unit of `tolerance`; NaN where shapes differ or the output is not finite.
    """

    def __init__(self, candidate: str, reason: str, error: float, tolerance: float) -> None:
        super().__init__(f"{candidate!r}: {reason}; no time is reported")
        self.candidate = candidate
        self.reason = reason
        self.error = error
        self.tolerance = tolerance


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to compute something, and the answer it must give.

    run: called without arguments; its result is checked, its duration timed. A sequence of
        callables over *copies* of one weight is rotated through, call by call: without it a small
        weight stays in the cache between calls, as it would not in a model, and looks too fast. Do
        so for a single layer at few tokens; whole models evict their own weights.
    expected: what run must return, or a callable that computes it. For a lossy compressed model
        this is not the dense model's output but that of its own slow reference.
    tolerance: bound on the relative error of the worst row (last dimension, a token's features):
        ``norm(output - expected) / norm(expected)``, where a row smaller than most counts as the
        root mean square of all; by default `TOLERANCES` of the output's dtype.
    size: what a row counts as at least: that of outputs such as these, where a few logits may all
        be near zero.
    read: picks the tensor to check out of what run returns (a model's output, unmasked positions);
        not timed.

    Raises ValueError or TypeError on an empty name or run, or a tolerance that is not positive.
    """

    name: str
    run: Callable[[], Any] | Sequence[Callable[[], Any]]
    expected: Tensor | Callable[[], Tensor]
    tolerance: float | None = None
    read: Callable[[Any], Tensor] = lambda output: output
    size: float = 0.0

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
        """The expected output in fp64; ValueError if it is empty or not finite."""
        expected = self.expected() if callable(self.expected) else self.expected
        self._check_tensor(expected, "expected")
        expected = expected.detach().to(torch.float64)
        if expected.numel() == 0 or not bool(expected.isfinite().all()):
            what = "empty" if expected.numel() == 0 else "not finite"
            raise ValueError(f"Candidate {self.name!r}: expected is {what}; nothing to hold it to")
        return expected

    def error(self, output: Any, expected: Tensor) -> float:
        """The largest error of what run returned, in the unit of `tolerance`.

        Raises WrongOutput where it exceeds the tolerance, is not finite or of another shape, and
        TypeError where `read` finds no floating-point tensor.
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
        scale = norms.clamp(min=max(self.size, float(norms.square().mean().sqrt())))
        # 0 / 0 is an exact zero, not an error
        error = float((difference / scale).nan_to_num(nan=0.0, posinf=math.inf).max())
        if error > tolerance:
            reason = f"output is off by {error:.2e}, tolerance {tolerance:.2e}"
            raise WrongOutput(self.name, reason, error, tolerance)
        return error

    def tensor(self, output: Any) -> Tensor:
        """The tensor that `read` finds in what run returned."""
        tensor = self.read(output)
        self._check_tensor(tensor, "output")
        return tensor

    def bound(self, tensor: Tensor) -> float:
        """The tolerance for an output such as `tensor`."""
        return TOLERANCES[tensor.dtype] if self.tolerance is None else self.tolerance

    def _check_tensor(self, tensor: Any, what: str) -> None:
        if not isinstance(tensor, Tensor) or tensor.dtype not in TOLERANCES:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"Candidate {self.name!r}: {what} is {got}; expected a floating-point tensor "
                "(pick it out of a larger output with read=)"
            )


def row_norms(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(torch.atleast_1d(tensor), dim=-1)
