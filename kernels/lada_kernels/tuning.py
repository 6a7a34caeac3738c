"""Look-up of the fastest variant in the tuned tables.

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
from .table import Key, Table, TableError
from .variants import EPILOGUES, VARIANTS, Variant, VariantName
from .weight_names import token_bucket

SHIPPED = Path(__file__).parent / "configs"
TRITON = ".".join(triton.__version__.split(".")[:2])

_MIN_CAPABILITY = (8, 0)
_logger = logging.getLogger("lada_kernels")
_folders = [SHIPPED]


def add_folder(folder: str | os.PathLike[str]) -> None:
    """Search `folder` too, and before the others: `folder`/<stem>/<device>-triton<minor>.json.

    To be called before the first launch: launchers cache their choice.
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
) -> Variant | None:
    """The fastest of the `allowed` variants by the tables, or None where no table has the case.

    The entry taken is that for M's next power of two, or else the nearest by its logarithm.

    Args:
        stem: the op, such as "low_rank_linear".
        dtype: of x (M, k); y is (M, n).
        weight: name of the weight, see `lada_kernels.weight_names`.
        epilogue: an `EpilogueKind`.
        m: tokens, 1 or more.
        device_index: ``x.get_device()``; -1 is the CPU, which has no table.
        allowed: names of variants; "dense" only for a caller that keeps the dense weight.
    """
    if device_index < 0:
        return None
    key = Key(str(dtype).removeprefix("torch."), k, n, weight, epilogue)
    tables = [_table(folder, stem, gpu_slug(device_index)) for folder in _folders]
    entries = [t.entries[key] for t in tables if t is not None and key in t.entries]
    wanted = math.log2(token_bucket(m))
    # of two that are equally near, the larger
    nearest = min(
        {tokens for by_tokens in entries for tokens in by_tokens},
        key=lambda tokens: (abs(math.log2(tokens) - wanted), -tokens),
        default=None,
    )
    best, lowest = None, math.inf
    for measured in (e[nearest].variants for e in entries if nearest in e):
        for name in sorted(measured.keys() & set(allowed)):
            share = measured[name].us / measured[VariantName.DENSE].us
            if share < lowest:
                best, lowest = Variant(name, measured[name].tiles), share
    return best


@functools.lru_cache(maxsize=4096)
def dense_is_ever_fastest(
    stem: str, weight: str, dtype: torch.dtype | str, k: int, n: int, device_index: int
) -> bool:
    """True if a table has an entry, for any epilogue and tokens, in which dense is fastest.

    Arguments as in `fastest`.
    """
    variants = (
        fastest(stem, dtype, k, n, weight, epilogue, 2**power, device_index, VARIANTS)
        for epilogue in EPILOGUES
        for power in range(17)
    )
    return any(v is not None and v.name == VariantName.DENSE for v in variants)


@functools.cache
def unsupported(device_index: int) -> str | None:
    """Reason why the kernels cannot run on this GPU, or None where they can."""
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
    """Table of the op and device in `folder`, or None, with a warning if one cannot be used."""
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
