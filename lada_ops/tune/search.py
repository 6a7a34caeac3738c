"""The search for the fastest tiles: downhill from the default ones, a step at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lada_kernels.variants import TileConfig

# one alone often makes a program too big or too small
_TOGETHER = (("BLOCK_M", "num_warps"), ("BLOCK_N", "num_warps"))
_MAX_ELEMENTS = 128  # of an accumulator, per thread, which has 255 registers


@dataclass(frozen=True)
class Space:
    """Where to look: the tiles to start from, and the values a field may take, ascending.

    A field without values keeps that of the start. widest: columns of the widest accumulator that
    a program holds beside one of BLOCK_N; ptxas spends a minute on what registers cannot hold.
    """

    start: TileConfig
    axes: Mapping[str, tuple[int, ...]]
    widest: int = 0

    def neighbours(self, tiles: TileConfig) -> Iterator[TileConfig]:
        """What is one step away: a field at its next smaller or larger value, or two of them."""
        fields = [*((name,) for name in self.axes), *_TOGETHER]
        for names, step in itertools.product(fields, (1, -1)):
            values = {name: self._next(name, getattr(tiles, name), step) for name in names}
            if None not in values.values():
                found = replace(tiles, **values)
                if self._fits(found):
                    yield found

    def _fits(self, tiles: TileConfig) -> bool:
        elements = tiles.BLOCK_M * max(tiles.BLOCK_N, self.widest)
        return elements <= _MAX_ELEMENTS * 32 * tiles.num_warps

    def _next(self, name: str, value: int, step: int) -> int | None:
        further = [v for v in self.axes.get(name, ()) if (v - value) * step > 0]
        return min(further, key=lambda v: abs(v - value), default=None)


def descend(space: Space, seconds: Callable[[TileConfig], float]) -> TileConfig | None:
    """The fastest tiles that are found, or None where none runs.

    seconds: how long a call takes with such tiles, infinity where it doesn't run; asked once each.
    """
    known = {space.start: seconds(space.start)}
    best = space.start
    while True:
        around = list(space.neighbours(best))
        for tiles in around:
            if tiles not in known:
                known[tiles] = seconds(tiles)
        nearest = min(around, key=known.__getitem__, default=best)
        if known[nearest] >= known[best]:
            return best if known[best] < math.inf else None
        best = nearest
