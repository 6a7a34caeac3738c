"""Ragged traffic: what comparisons of many requests say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .result import Comparison

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Served:
    """One model's share of the traffic.

    percentiles: {50: seconds, ...}, over the requests, of a request's median latency. sentences and
    tokens: per second, one request after the other. speedup: the baseline's seconds for all
    requests over this model's.
    """

    name: str
    percentiles: dict[int, float]
    sentences: float
    tokens: float
    speedup: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **{f"p{p}_seconds": seconds for p, seconds in self.percentiles.items()},
            "sentences_per_second": self.sentences,
            "tokens_per_second": self.tokens,
            "speedup": self.speedup,
        }


def serve(comparisons: Sequence[Comparison], masks: Sequence[Tensor]) -> list[Served]:
    """What each model made of the same requests, each of which was a comparison.

    masks: their attention masks (batch, length): the tokens that are no padding count.

    Raises ValueError where there are none, or not as many of the ones as of the others.
    """
    if not comparisons or len(comparisons) != len(masks):
        raise ValueError(
            f"serve: {len(comparisons)} comparisons, {len(masks)} masks; expected one or more, and "
            "as many"
        )
    sentences, tokens = sum(len(m) for m in masks), sum(int(m.sum()) for m in masks)
    baseline = comparisons[0].baseline
    names = [timing.name for timing in comparisons[0].timings]
    seconds = {n: np.array([c[n].seconds.median for c in comparisons]) for n in names}
    return [
        Served(
            name,
            {p: float(np.percentile(times, p)) for p in PERCENTILES},
            sentences / float(times.sum()),
            tokens / float(times.sum()),
            float(seconds[baseline].sum() / times.sum()),
        )
        for name, times in seconds.items()
    ]
