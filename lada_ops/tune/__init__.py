"""Tuner: times every variant of an op on this GPU and writes the tables that the kernels read."""

from .case import Case, cases_of
from .device import Bench, NoGpu
from .tuner import Summary, tune

__all__ = ["Bench", "Case", "NoGpu", "Summary", "cases_of", "tune"]
