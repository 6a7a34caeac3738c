"""Latency percentiles and throughput over many requests of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .result import Comparison

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Throughput:
    """Latency and throughput of one model over all requests.

    percentiles: {50: seconds, ...} of the requests' median latencies. sentences, tokens: per
    second, with requests one after the other; padding does not count. speedup: the baseline's
    seconds for all requests over this model's.
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


def throughput(comparisons: Sequence[Comparison], masks: Sequence[Tensor]) -> list[Throughput]:
    """Throughput of each model over requests, each timed by one comparison of the same models.

    masks: attention masks (batch, length) of the requests.

    Raises ValueError where there are none, or another number of masks than of comparisons.
    """
    if not comparisons or len(comparisons) != len(masks):
        raise ValueError(
            f"throughput: {len(comparisons)} comparisons, {len(masks)} masks; expected "
            "one or more, and as many"
        )
    sentences, tokens = sum(len(m) for m in masks), sum(int(m.sum()) for m in masks)
    baseline = comparisons[0].baseline
    names = [timing.name for timing in comparisons[0].timings]
    seconds = {n: np.array([c[n].seconds.median for c in comparisons]) for n in names}
    return [
        Throughput(
            name,
            {p: float(np.percentile(times, p)) for p in PERCENTILES},
            sentences / float(times.sum()),
            tokens / float(times.sum()),
            float(seconds[baseline].sum() / times.sum()),
        )
        for name, times in seconds.items()
    ]
