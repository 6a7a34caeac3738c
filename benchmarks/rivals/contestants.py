"""Contestants: a runtime, a precision, and dense or compressed weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from lada_ops.compression.plan import METHODS, Method

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS = get_args(Precision)
RATIOS = (2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Contestant:
    """A runtime on one set of weights.

    runtime: name in tables. build: ``"module:function"`` called with a
    `benchmarks.rivals.setup.Setup` in the contestant's own process. method, ratio: of the
    compressed weights, None for dense ones.
    """

    runtime: str
    build: str
    precision: Precision = "fp32"
    method: Method | None = None
    ratio: float | None = None

    @property
    def name(self) -> str:
        return self.runtime if self.method is None else f"{self.runtime} {self.variant}"

    @property
    def variant(self) -> str:
        """Name of the weights: ``"dense"`` or ``"low_rank 5x"``."""
        return "dense" if self.method is None else f"{self.method} {self.ratio:g}x"

    @property
    def ours(self) -> bool:
        return self.runtime.startswith("lada")


_TORCH, _EXPORTED = "benchmarks.rivals.torch_runtimes:", "benchmarks.rivals.exported_runtimes:"
EAGER = Contestant("eager", f"{_TORCH}eager")
_DENSE_ONLY = (
    Contestant("eager bf16", f"{_TORCH}eager", "bf16"),
    Contestant("torch.compile", f"{_TORCH}compiled"),
    Contestant("torch.compile bf16", f"{_TORCH}compiled", "bf16"),
    Contestant("packed dense", f"{_TORCH}packed"),
    Contestant("torch int8 dynamic", f"{_TORCH}int8_dynamic", "int8"),
)
_Runtime = tuple[str, str, Precision]
_MODULES: _Runtime = ("lada modules", f"{_TORCH}eager", "fp32")
_EXPORTED_ONES: tuple[_Runtime, ...] = (
    ("onnxruntime fp32", f"{_EXPORTED}onnxruntime", "fp32"),
    ("onnxruntime int8", f"{_EXPORTED}onnxruntime", "int8"),
    ("openvino fp32", f"{_EXPORTED}openvino", "fp32"),
    ("openvino bf16", f"{_EXPORTED}openvino", "bf16"),
)
_ENGINES: tuple[_Runtime, ...] = (
    ("lada engine fp32", f"{_TORCH}lada_engine", "fp32"),
    ("lada engine bf16", f"{_TORCH}lada_engine", "bf16"),
    ("lada engine int8", f"{_TORCH}lada_engine", "int8"),
)
CONTESTANTS = (
    EAGER,
    *_DENSE_ONLY,
    *(Contestant(*one) for one in (*_EXPORTED_ONES, *_ENGINES)),
    *(Contestant(*one, "low_rank", ratio) for one in _EXPORTED_ONES for ratio in RATIOS),
    *(
        Contestant(*one, method, ratio)
        for one in (_MODULES, *_ENGINES)
        for method in METHODS
        for ratio in RATIOS
    ),
)


def chosen(patterns: Sequence[str]) -> list[Contestant]:
    """Contestants whose name matches a pattern such as ``"lada engine*"``; eager always first.

    Raises ValueError on a pattern that no name matches.
    """
    for pattern in patterns:
        if not any(fnmatchcase(contestant.name, pattern) for contestant in CONTESTANTS):
            names = ", ".join(contestant.name for contestant in CONTESTANTS)
            raise ValueError(f"no contestant matches {pattern!r}; expected some of: {names}")
    return [
        contestant
        for contestant in CONTESTANTS
        if contestant is EAGER or any(fnmatchcase(contestant.name, p) for p in patterns)
    ]
