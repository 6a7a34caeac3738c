"""`lada`: compress a model, train it, time it, look into it, or see it all on a real one.

It is no part of lada_ops, whose import takes seconds: the help is there at once.
"""

from . import compress, measure, training, kernels  # noqa: I001  in the order of the help
from .app import app

__all__ = ["app", "compress", "kernels", "measure", "training"]
