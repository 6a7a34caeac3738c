"""Knowledge distillation: a compressed student is pruned while it learns from its teacher.

The names of `__all__` are imported when they are first used: they load Hugging Face's Trainer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lada import LadaConfig
    from .lada_block import LadaBlockConfig
    from .losses import Losses
    from .run import distill
    from .trainer import DistillationTrainer

_MODULES = {
    "DistillationTrainer": "trainer",
    "LadaBlockConfig": "lada_block",
    "LadaConfig": "lada",
    "Losses": "losses",
    "distill": "run",
}
__all__ = ["DistillationTrainer", "LadaBlockConfig", "LadaConfig", "Losses", "distill"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
