"""The ways to compute an op and the tile sizes its launcher passes to the kernel."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TileConfig:
    """Tile of one program: BLOCK_M rows of x, BLOCK_N columns of y, BLOCK_K terms per step."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

    def kwargs(self) -> dict[str, Any]:
        """The fields as keyword arguments of a kernel launch."""
        return asdict(self)


@dataclass(frozen=True)
class Way:
    """One way to compute an op: its name, and the tiles of its kernel.

    ``tiles`` is None for the kernel's default tiles, and where no kernel of ours runs.
    """

    name: str
    tiles: TileConfig | None = None
