"""Latency benchmarks: candidates timed side by side, with every output checked.

`compare` times any callables, `compare_models` a dense model beside its compressed versions. Both
check outputs before and after timing, and raise `WrongOutput` instead of reporting a time.
"""

from .candidate import TOLERANCES, Candidate, WrongOutput
from .clock import Clock, CpuClock, CudaClock
from .compare import compare
from .graphs import GraphClock, Rotation, copies_for
from .models import compare_models, compare_served
from .result import Comparison, Quartiles, Timing, collect

__all__ = [
    "TOLERANCES",
    "Candidate",
    "Clock",
    "Comparison",
    "CpuClock",
    "CudaClock",
    "GraphClock",
    "Quartiles",
    "Rotation",
    "Timing",
    "WrongOutput",
    "collect",
    "compare",
    "compare_models",
    "compare_served",
    "copies_for",
]
