"""`lada`: compress a model, train it, time it, look into it, or see it all on a real one."""

from . import compress, measure, training, kernels  # noqa: I001  in the order of the help
from .app import app

__all__ = ["app", "compress", "kernels", "measure", "training"]
