"""The project's goals, each held against the rows it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .rows import Row

Rows = Mapping[str, Mapping[str, Row]]  # stem -> key -> row


@dataclass(frozen=True)
class Goal:
    """A figure that each row of a kind should reach.

    figure: of a row, None where it is not there to be had (its way failed).
    """

    name: str
    stem: str
    about: Callable[[Mapping[str, Any]], bool]
    figure: Callable[[Row], float | None]
    target: float

    def outcome(self, rows: Rows) -> tuple[str, list[tuple[str, float | None]]]:
        """``met``, ``missed`` or ``not measured``, and the figure of each row."""
        figures = [
            (key, self.figure(row))
            for key, row in rows.get(self.stem, {}).items()
            if self.about(row.get("case", {}))
        ]
        if not figures:
            return "not measured", figures
        met = all(value is not None and value >= self.target for _, value in figures)
        return "met" if met else "missed", figures


def _timing(row: Row, *ways: str) -> Mapping[str, Any] | None:
    """The fastest of `ways` that was timed."""
    there = [row["timings"][way] for way in ways if way in row.get("timings", {})]
    return min(there, key=lambda timing: timing["median_seconds"], default=None)


def over(way: str | Iterable[str], ours: str, quantile: str = "median") -> Callable[..., Any]:
    """How many times as fast as `way` (the fastest of several) `ours` is in a row."""
    names = [way] if isinstance(way, str) else list(way)

    def figure(row: Row) -> float | None:
        theirs, own = _timing(row, *names), _timing(row, ours)
        if theirs is None or own is None:
            return None
        if theirs["name"] == "dense":  # its ratios were taken within rounds
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
        *("low_rank_linear", _large_gelu, over("two products", "one_launch"), 1.4),
    ),
    Goal(
        "block_sparse_linear, 128x16, density <= .4, M >= 2048: times as fast as dense",
        *("block_sparse_linear", _wide_blocks, over("dense", "one_launch"), 1.0),
    ),
    Goal(
        "block_sparse_linear, every shape: its dispatch is never below dense (upper quartile)",
        *("block_sparse_linear", _forward, over("dense", "dispatch", "q75"), 1.0),
    ),
    Goal(
        "block_sparse_linear, every shape: times as fast as torch's BSR, tuned",
        *("block_sparse_linear", _forward, over("torch BSR", "dispatch"), 1.5),
    ),
    Goal(
        "low_rank_linear, every shape: its dispatch is never below dense (upper quartile)",
        *("low_rank_linear", _forward, over("dense", "dispatch", "q75"), 1.0),
    ),
    Goal(
        "low_rank_ffn, r = 64, M = 8192: times as fast as dense feed-forward, residual, LayerNorm",
        *("low_rank_ffn", _feed_forward, over("dense", "dispatch"), 3.0),
    ),
)
