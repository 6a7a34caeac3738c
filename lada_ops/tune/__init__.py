"""The tuner: times every way to compute an op on this GPU and writes the tables of the kernels."""

from .case import Case, cases_of
from .device import Bench, NoGpu
from .tuner import Summary, tune

__all__ = ["Bench", "Case", "NoGpu", "Summary", "cases_of", "tune"]
