"""Coordinate descent over tile configurations, from the default one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lada_kernels.variants import TileConfig

# changed in one step, since either alone often leaves a thread too much or too little work
_TOGETHER = (("BLOCK_M", "num_warps"), ("BLOCK_N", "num_warps"))
_MAX_ELEMENTS = 128  # accumulator elements per thread, of 255 registers


@dataclass(frozen=True)
class Space:
    """Search space: the tiles to start from, and the values of each field, ascending.

    Fields without an axis keep their value. widest: columns of the widest accumulator beside that
    of BLOCK_N; accumulators larger than the registers are skipped, since ptxas takes minutes.
    """

    start: TileConfig
    axes: Mapping[str, tuple[int, ...]]
    widest: int = 0

    def neighbours(self, tiles: TileConfig) -> Iterator[TileConfig]:
        """Tiles one step away: one field, or a pair, at the next smaller or larger value."""
        fields = [*((name,) for name in self.axes), *_TOGETHER]
        for names, step in itertools.product(fields, (1, -1)):
            values = {name: self._next(name, getattr(tiles, name), step) for name in names}
            if None not in values.values():
                neighbour = replace(tiles, **values)
                if self._fits(neighbour):
                    yield neighbour

    def _fits(self, tiles: TileConfig) -> bool:
        elements = tiles.BLOCK_M * max(tiles.BLOCK_N, self.widest)
        return elements <= _MAX_ELEMENTS * 32 * tiles.num_warps

    def _next(self, name: str, value: int, step: int) -> int | None:
        further = [v for v in self.axes.get(name, ()) if (v - value) * step > 0]
        return min(further, key=lambda v: abs(v - value), default=None)


def descend(space: Space, seconds: Callable[[TileConfig], float]) -> TileConfig | None:
    """Local minimum of `seconds`, or None where no tiles run.

    seconds: time of a call with these tiles, infinite where it fails; evaluated once per tiles.
    """
    known = {space.start: seconds(space.start)}
    best = space.start
    while True:
        neighbours = list(space.neighbours(best))
        for tiles in neighbours:
            if tiles not in known:
                known[tiles] = seconds(tiles)
        fastest = min(neighbours, key=known.__getitem__, default=best)
        if known[fastest] >= known[best]:
            return best if known[best] < math.inf else None
        best = fastest
