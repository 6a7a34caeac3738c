"""What the presets have in common: stages, each with a model to start from and a pruner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from torch import nn

from ..compression.calibration import Batches
from .losses import Losses
from .pruner import Pruner

Probe: TypeAlias = Callable[[], float]
"""The loss of the student as it is now, on a few batches, for whoever has a choice to make."""


class Recipe(Protocol):
    """How a copy of the teacher becomes a student: built, trained while it is pruned, finished.

    stages: names of the runs of training that follow one another. A run that was cut off goes on
    from what `build` made, which is kept on disk: `pruner` must do with that.
    """

    @property
    def losses(self) -> Losses: ...

    @property
    def stages(self) -> tuple[str, ...]: ...

    def check(self, model: nn.Module) -> None:
        """Raise ValueError, before anything is done, where the recipe does not fit the teacher."""
        ...

    def build(self, stage: str, model: nn.Module, batches: Batches, quiet: bool) -> None:
        """Make of the model, in place, what the stage trains; batches are for calibration."""
        ...

    def pruner(self, stage: str, model: nn.Module, epochs: float, probe: Probe) -> Pruner | None:
        """What prunes in a stage of so many epochs, if anything."""
        ...

    def finish(self, model: nn.Module) -> None:
        """Leave out what training has set to zero, in place."""
        ...

    def to_dict(self) -> Mapping[str, Any]:
        """All that makes two recipes different, as JSON."""
        ...
