"""Interface of the distillation presets: training stages, each with a start model and a pruner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from torch import nn

from ..compression.batches import Batches
from .losses import Losses
from .pruner import Pruner

Probe: TypeAlias = Callable[[], float]
"""Loss of the student in its present state, on a few batches."""


class Recipe(Protocol):
    """Recipe that makes a student of a copy of the teacher: build, train with pruning, finish.

    stages: names of the training runs, in order. The model that `build` makes is saved; a run that
    was interrupted resumes from it, so `pruner` may depend on that model alone.
    """

    @property
    def losses(self) -> Losses: ...

    @property
    def stages(self) -> tuple[str, ...]: ...

    def check(self, model: nn.Module) -> None:
        """Raise ValueError unless the recipe fits the teacher; called before any work."""
        ...

    def build(self, stage: str, model: nn.Module, batches: Batches, quiet: bool) -> None:
        """Turn the model, in place, into the start model of a stage; `batches` calibrate it."""
        ...

    def pruner(self, stage: str, model: nn.Module, epochs: float, probe: Probe) -> Pruner | None:
        """Pruner of a stage of `epochs` epochs, or None."""
        ...

    def finish(self, model: nn.Module) -> None:
        """Remove the ranks and blocks that training has set to zero, in place."""
        ...

    def to_dict(self) -> Mapping[str, Any]:
        """Settings of the recipe as JSON: equal for equal recipes, and for no others."""
        ...
