"""Which way is fastest here: the look-up in the tuned tables.

A table is read once per process and GPU. Times of different tables are compared as shares of the
dense product's time in the same entry, so that a GPU that is slower today does not matter.
"""

import functools
import logging
import math
import os
from pathlib import Path

import torch
import triton

from .devices import gpu_slug
from .table import EPILOGUES, WAYS, Key, Table, TableError, TileConfig, Way
from .weight_names import token_bucket

__all__ = [
    "TileConfig",
    "Way",
    "add_folder",
    "dense_is_ever_fastest",
    "fastest",
    "unsupported",
]

SHIPPED = Path(__file__).parent / "configs"
TRITON = ".".join(triton.__version__.split(".")[:2])

_MIN_CAPABILITY = (8, 0)
_logger = logging.getLogger("lada_kernels")
_folders = [SHIPPED]


def add_folder(folder: str | os.PathLike[str]) -> None:
    """Search `folder` too, and before the others: `folder`/<stem>/<device>-triton<minor>.json.

    To be called before the first launch, since launchers remember what they were told.
    """
    if Path(folder) not in _folders:
        _folders.insert(0, Path(folder))
        fastest.cache_clear()
        dense_is_ever_fastest.cache_clear()


@functools.lru_cache(maxsize=4096)
def fastest(
    stem: str,
    dtype: torch.dtype | str,
    k: int,
    n: int,
    weight: str,
    epilogue: str,
    m: int,
    device_index: int,
    allowed: tuple[str, ...],
) -> Way | None:
    """The fastest of the `allowed` ways by the tables, or None where they do not know.

    An entry for the next power of two of M counts, or else the one nearest to it by its logarithm.

    Args:
        stem: the op, such as "low_rank_linear".
        dtype: of x; k, n: x is (M, k), y is (M, n).
        weight: as `lada_kernels.weight_names` names it.
        epilogue: as `epilogue.epilogue_kind` names it.
        m: tokens, 1 or more.
        device_index: of x's GPU, ``x.get_device()``; -1 is the CPU, for which there is no table.
        allowed: names of ways; "dense" only where the caller keeps a dense weight.
    """
    if device_index < 0:
        return None
    key = Key(str(dtype).removeprefix("torch."), k, n, weight, epilogue)
    tables = [_table(folder, stem, gpu_slug(device_index)) for folder in _folders]
    found = [t.entries[key] for t in tables if t is not None and key in t.entries]
    wanted = math.log2(token_bucket(m))
    # of two that are equally near, the larger
    tokens = min(
        {tokens for entries in found for tokens in entries},
        key=lambda tokens: (abs(math.log2(tokens) - wanted), -tokens),
        default=None,
    )
    best, lowest = None, math.inf
    for ways in (entries[tokens].ways for entries in found if tokens in entries):
        for name in sorted(ways.keys() & set(allowed)):
            share = ways[name].us / ways["dense"].us
            if share < lowest:
                best, lowest = Way(name, ways[name].tiles), share
    return best


@functools.lru_cache(maxsize=4096)
def dense_is_ever_fastest(
    stem: str, weight: str, dtype: torch.dtype | str, k: int, n: int, device_index: int
) -> bool:
    """Whether the tables have measured a number of tokens at which the dense product is fastest.

    Arguments as those of `fastest`.
    """
    ways = (
        fastest(stem, dtype, k, n, weight, epilogue, 2**power, device_index, WAYS)
        for epilogue in EPILOGUES
        for power in range(17)
    )
    return any(way is not None and way.name == "dense" for way in ways)


@functools.cache
def unsupported(device_index: int) -> str | None:
    """Why the kernels cannot run on this GPU and what they need, or None where they can."""
    if torch.version.hip is not None:
        return None
    capability = torch.cuda.get_device_capability(device_index)
    if capability >= _MIN_CAPABILITY:
        return None
    return (
        f"{torch.cuda.get_device_name(device_index)} has compute capability "
        f"{capability[0]}.{capability[1]}; expected 8.0 or newer (A100, L4, H100, ...), "
        "for bf16 on tensor cores and asynchronous copies"
    )


@functools.cache
def _table(folder: Path, stem: str, device: str) -> Table | None:
    """The table that fits, or None, having said once what is there and cannot be used."""
    path = folder / stem / Table.name(device, TRITON)
    try:
        return Table.read(path, stem, device, TRITON)
    except FileNotFoundError:
        others = sorted(p.name for p in path.parent.glob(Table.name(device, "*")))
        if others:
            _logger.warning(
                "%s: tuned tables for another Triton are ignored: %s; this is Triton %s",
                path.parent,
                ", ".join(others),
                TRITON,
            )
    except (TableError, OSError) as error:
        _logger.warning("ignored, the defaults are used: %s", error)
    return None
