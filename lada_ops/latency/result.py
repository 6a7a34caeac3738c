"""Results of a comparison, to print and to save as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

COLUMNS = "ms: median, quartiles; speed-up: median, quartiles"


class Quartiles(NamedTuple):
    """Quartiles: the 25th, 50th and 75th percentile."""

    q25: float
    median: float
    q75: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Quartiles:
        return cls(*(float(q) for q in np.quantile(list(samples), (0.25, 0.5, 0.75))))

    def to_dict(self, prefix: str, suffix: str = "") -> dict[str, float]:
        return {f"{prefix}{name}{suffix}": value for name, value in self._asdict().items()}


@dataclass(frozen=True)
class Timing:
    """Timing of one candidate in a comparison.

    seconds: per call. min_seconds: the fastest sample. speedup: the baseline's seconds over this
    candidate's *in the same round*, so that a slowdown of the machine cancels out.
    samples: one per round, each the mean of `calls_per_sample` calls rotating through `copies`.
    error, tolerance: of the checked outputs; see `Candidate.tolerance`. dtype: of the output;
    compare at equal precision.
    """

    name: str
    seconds: Quartiles
    min_seconds: float
    speedup: Quartiles
    samples: int
    calls_per_sample: int
    copies: int
    dtype: str
    error: float
    tolerance: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.seconds.to_dict("", "_seconds"),
            "min_seconds": self.min_seconds,
            **self.speedup.to_dict("speedup_"),
            "samples": self.samples,
            "calls_per_sample": self.calls_per_sample,
            "copies": self.copies,
            "dtype": self.dtype,
            "error": self.error,
            "tolerance": self.tolerance,
        }


@dataclass(frozen=True)
class Comparison:
    """Candidates timed in one run; ``comparison[name]`` is the `Timing` of one.

    settings: rounds, warmup, threads, order, seed, clock and shortest sample in seconds, to
    reproduce the run. environment: see `lada_ops.host.environment.environment`.
    missing: name -> reason why it could not be timed.
    """

    label: str
    baseline: str
    timings: tuple[Timing, ...]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    missing: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Timing:
        for timing in self.timings:
            if timing.name == name:
                return timing
        raise KeyError(f"{name!r}; expected one of {[timing.name for timing in self.timings]}")

    def __str__(self) -> str:
        width = max(len(timing.name) for timing in self.timings)
        lines = [f"{self.label} ({COLUMNS})" if self.label else COLUMNS]
        for t in self.timings:
            cells = [f"{1e3 * s:10.3f}" for s in (t.seconds.median, t.seconds.q25, t.seconds.q75)]
            ratios = f"{t.speedup.median:7.2f}x  [{t.speedup.q25:.2f}, {t.speedup.q75:.2f}]"
            lines.append(f"  {t.name:{width}}{''.join(cells)}  {ratios}")
        lines += [f"  {name}: missing, {reason}" for name, reason in self.missing.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the unit of a time is in its key."""
        return {
            "label": self.label,
            "baseline": self.baseline,
            "settings": dict(self.settings),
            "environment": dict(self.environment),
            "timings": [timing.to_dict() for timing in self.timings],
            "missing": dict(self.missing),
        }


def collect(comparisons: Iterable[Comparison]) -> dict[str, Any]:
    """Comparisons as one dict, with their common environment once.

    Raises ValueError if there is none, or their environments differ.
    """
    dicts = [comparison.to_dict() for comparison in comparisons]
    environments = [d.pop("environment") for d in dicts]
    if not dicts or any(environment != environments[0] for environment in environments):
        raise ValueError(
            f"collect: {len(dicts)} comparisons; expected one or more of a single environment"
        )
    return {"environment": environments[0], "comparisons": dicts}
