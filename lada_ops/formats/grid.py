"""The grid of blocks that tiles a weight: its size, and how many blocks are kept together."""

PACK_WIDTH = 64
"""Columns of x that one step of a kernel multiplies."""


def check_block(owner: str, block: tuple[int, int], shape: tuple[int, int]) -> None:
    """Raise ValueError unless `block` tiles `shape`, naming blocks and paddings that would do."""
    if len(shape) != 2 or len(block) != 2 or min(*shape, *block) < 1:
        raise ValueError(f"{owner}: block {block}, shape {shape}; expected two positive pairs")
    if shape[0] % block[0] or shape[1] % block[1]:
        fitting = " x ".join("{" + ", ".join(map(str, _divisors(size))) + "}" for size in shape)
        padded = tuple(-(-size // b) * b for size, b in zip(shape, block, strict=True))
        raise ValueError(
            f"{owner}: block {tuple(block)} does not divide the weight {tuple(shape)} (out, in); "
            f"blocks that do: {fitting}; or pad the weight to {padded}"
        )


def _divisors(size: int) -> list[int]:
    """The usual block sizes that divide `size`, or else its four largest divisors up to 128."""
    usual = [b for b in (16, 32, 64, 128) if size % b == 0]
    return usual or [b for b in range(1, 129) if size % b == 0][-4:]


def grid_of(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Block rows and block columns of a weight of that shape (out, in), which `block` tiles."""
    return shape[0] // block[0], shape[1] // block[1]


def pack_of(block: tuple[int, int]) -> int:
    """Blocks of a block row that one step of a kernel multiplies; 1 if no kernel takes `block`."""
    return PACK_WIDTH // block[1] if block[1] in (16, 32) else 1


def group_of(shape: tuple[int, int], block: tuple[int, int]) -> int:
    """Blocks of a block row that are kept or dropped together.

    A pack, so that no step of a kernel is half empty; or 1 where the block columns of `shape` are
    no whole packs.
    """
    pack = pack_of(block)
    return 1 if grid_of(shape, block)[1] % pack else pack


def block_count(owner: str, shape: tuple[int, int], block: tuple[int, int], density: float) -> int:
    """Number of blocks, in whole groups, nearest to the share `density` of all blocks of `shape`.

    Raises ValueError, in the name of `owner`, unless `block` tiles `shape` and
    ``0 <= density <= 1``.
    """
    check_block(owner, block, shape)
    if not 0 <= density <= 1:
        raise ValueError(f"{owner}: density {density}; expected 0 to 1")
    group, (rows, cols) = group_of(shape, block), grid_of(shape, block)
    return group * round(density * rows * cols / group)
