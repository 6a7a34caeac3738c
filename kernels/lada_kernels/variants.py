"""Variants of an op: their names, tiles and kinds of epilogue; needs no Triton."""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class VariantName(str, Enum):
    """Name of a variant of an op; the value is its spelling in files."""

    ONE_LAUNCH = "one_launch"
    TWO_LAUNCHES = "two_launches"
    SWAP_AB = "weights_left"
    """The weights are the left operand of the product, for few tokens."""
    SPLIT_K = "split"
    """The terms of the last product are split over programs, and partial sums added up."""
    DENSE = "dense"
    """The dense product, for a caller that keeps the dense weight."""

    __str__ = str.__str__


class EpilogueKind(str, Enum):
    """Kind of epilogue that tuned tables tell apart; the value is its spelling in files."""

    PLAIN = "plain"
    """Bias alone, which cuBLAS adds."""
    FUSED = "fused"
    """An activation, a residual, or both, applied tile by tile."""
    NORM = "norm"
    """LayerNorm too, which needs whole rows."""

    __str__ = str.__str__

    @classmethod
    def of(cls, activation: str, residual: bool, norm: bool) -> "EpilogueKind":
        """Kind of the epilogue with this activation, and with or without residual and norm."""
        if norm:
            return cls.NORM
        return cls.PLAIN if activation == "none" and not residual else cls.FUSED


VARIANTS = tuple(name.value for name in VariantName)
EPILOGUES = tuple(kind.value for kind in EpilogueKind)


@dataclass(frozen=True)
class TileConfig:
    """Tile of one program: BLOCK_M rows of x, BLOCK_N columns of y, BLOCK_K terms per step.

    Powers of two; a sparse weight asks for more, see `check_block_tiles`.
    pdl: whether launches are programmatic dependent ones, which sm_90 and newer can.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    pdl: bool = False

    def kwargs(self) -> dict[str, Any]:
        """The fields as keyword arguments of a kernel launch."""
        fields = asdict(self)
        return pdl_kwargs(fields.pop("pdl")) | fields


def check_block_tiles(owner: str, tiles: TileConfig, block_rows: int, block_cols: int) -> None:
    """Raise ValueError unless a tile lies in one block row, and a step takes whole blocks."""
    for name, size, right, expected in (
        ("BLOCK_N", tiles.BLOCK_N, block_rows % tiles.BLOCK_N == 0, f"a divisor of {block_rows}"),
        ("BLOCK_K", tiles.BLOCK_K, tiles.BLOCK_K % block_cols == 0, f"a multiple of {block_cols}"),
    ):
        if not right:
            raise ValueError(
                f"{owner}: {name} is {size} for blocks of {block_rows}x{block_cols}; "
                f"expected {expected}"
            )


def pdl_kwargs(pdl: bool) -> dict[str, Any]:
    """Keyword arguments of a launch: whether the kernel is to wait, and that it may start early.

    The second is an option that backends without it refuse.
    """
    return {"PDL": pdl} | ({"launch_pdl": True} if pdl else {})


@dataclass(frozen=True)
class Variant:
    """Variant of an op: a `VariantName`, and the tiles of its kernel.

    ``tiles`` is None for the kernel's default tiles, and where no kernel of ours runs.
    """

    name: str
    tiles: TileConfig | None = None

    @property
    def pdl(self) -> bool:
        """True if its kernels are launched as programmatic dependent ones."""
        return self.tiles is not None and self.tiles.pdl
