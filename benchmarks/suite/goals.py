"""Goals of the project, each compared with the rows that it applies to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .rows import Row

Rows = Mapping[str, Mapping[str, Row]]  # stem -> key -> row


@dataclass(frozen=True)
class Goal:
    """Least figure of every row that a goal applies to.

    about: True for the cases it applies to. figure: figure of a row, None where an implementation
    failed.
    """

    name: str
    stem: str
    about: Callable[[Mapping[str, Any]], bool]
    figure: Callable[[Row], float | None]
    target: float

    def outcome(self, rows: Rows) -> tuple[str, list[tuple[str, float | None]]]:
        """Outcome ``met``, ``missed`` or ``not measured``, and the figure of each row."""
        figures = [
            (key, self.figure(row))
            for key, row in rows.get(self.stem, {}).items()
            if self.about(row.get("case", {}))
        ]
        if not figures:
            return "not measured", figures
        met = all(value is not None and value >= self.target for _, value in figures)
        return "met" if met else "missed", figures


def _timing(row: Row, name: str) -> Mapping[str, Any] | None:
    return row.get("timings", {}).get(name)


def speedup(ours: str, peer: str, quantile: str = "median") -> Callable[..., Any]:
    """Figure of a row: the speed-up of `ours` over `peer`."""

    def figure(row: Row) -> float | None:
        theirs, own = _timing(row, peer), _timing(row, ours)
        if theirs is None or own is None:
            return None
        if peer == "dense":  # these ratios were taken within rounds
            return own[f"speedup_{quantile}"]
        return theirs["median_seconds"] / own["median_seconds"]

    return figure


def _fraction(row: Row) -> float | None:
    own = _timing(row, "one_launch")
    return None if own is None else own["roofline_fraction"]


def _large_gelu(case: Mapping[str, Any]) -> bool:
    epilogue = case.get("epilogue") == "gelu" and not case["backward"]
    return epilogue and case["tokens"] >= 8192 and case["rank"] <= 128


def _wide_blocks(case: Mapping[str, Any]) -> bool:
    forward = bool(case) and not case["backward"] and tuple(case["block"]) == (128, 16)
    return forward and case["density"] <= 0.4 and case["tokens"] >= 2048


def _forward(case: Mapping[str, Any]) -> bool:
    return bool(case) and not case["backward"]


def _feed_forward(case: Mapping[str, Any]) -> bool:
    return bool(case) and (case["rank"], case["tokens"]) == (64, 8192)


GOALS = (
    Goal(
        "low_rank_linear, GELU, M >= 8192, r <= 128: share of the roofline",
        *("low_rank_linear", _large_gelu, _fraction, 0.85),
    ),
    Goal(
        "the same: times as fast as two cuBLAS products and a GELU kernel",
        *("low_rank_linear", _large_gelu, speedup("one_launch", "two products"), 1.4),
    ),
    Goal(
        "block_sparse_linear, 128x16, density <= .4, M >= 2048: times as fast as dense",
        *("block_sparse_linear", _wide_blocks, speedup("one_launch", "dense"), 1.0),
    ),
    Goal(
        "block_sparse_linear, every shape: its dispatch is never below dense (upper quartile)",
        *("block_sparse_linear", _forward, speedup("dispatch", "dense", "q75"), 1.0),
    ),
    Goal(
        "block_sparse_linear, every shape: times as fast as torch's BSR, tuned",
        *("block_sparse_linear", _forward, speedup("dispatch", "torch BSR"), 1.5),
    ),
    Goal(
        "low_rank_linear, every shape: its dispatch is never below dense (upper quartile)",
        *("low_rank_linear", _forward, speedup("dispatch", "dense", "q75"), 1.0),
    ),
    Goal(
        "low_rank_ffn, r = 64, M = 8192: times as fast as dense feed-forward, residual, LayerNorm",
        *("low_rank_ffn", _feed_forward, speedup("dispatch", "dense"), 3.0),
    ),
)
