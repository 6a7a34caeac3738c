"""Command line `lada`: compress, train, evaluate, time and inspect models, tune kernels.

A package of its own, not a part of lada_ops, whose import takes seconds: help is shown at once.
"""

from . import compress, measure, training, kernels  # noqa: I001  in the order of the help
from .app import app

__all__ = ["app", "compress", "kernels", "measure", "training"]
