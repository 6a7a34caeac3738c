"""What is shipped: the launches that the kernels' launchers make, and what each is held to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from .cases import Case
from .gate import Limits
from .launches import Launch, check_triton
from .regimes import ADD_NORM, DFACTORS, DVALUES, FFN, REGIMES, Regime

_EPILOGUES = {"plain": "none", "fused": "gelu", "norm": "norm"}  # of the tuned tables


@dataclass(frozen=True)
class Shipped:
    """A launch, a case that makes it, and what its machine code is held to."""

    case: Case
    launch: Launch
    limits: Limits


def shipped(stem: str | None = None) -> list[Shipped]:
    """What launchers launch in every regime, of one stem or of all.

    Raises:
        ValueError: there is no such stem.
        ImportError: Triton is missing, or it interprets.
    """
    stems = list(dict.fromkeys(regime.stem for regime in REGIMES))
    if stem not in (None, *stems):
        raise ValueError(f"op {stem!r}; expected one of {', '.join(stems)}")
    return launches_of(regime for regime in REGIMES if stem in (None, regime.stem))


def launches_of(regimes: Iterable[Regime]) -> list[Shipped]:
    """The launches of all regimes; where two make the same, the first one's figures hold.

    Raises:
        RuntimeError: a regime's launcher does not launch its kernel.
        ImportError: Triton is missing, or it interprets.
    """
    check_triton()
    found: dict[Launch, Shipped] = {}
    for regime in regimes:
        for case, occupancy, issue, instructions in regime.cases():
            launches = [x for x in case.launches() if x.name == regime.kernel]
            if not launches:
                raise RuntimeError(f"{case}: expected a launch of {regime.kernel}")
            for launch in launches:
                limits = dataclasses.replace(
                    design(launch),
                    occupancy=occupancy,
                    issue_per_tensor=issue,
                    instructions_per_element=instructions,
                )
                found.setdefault(launch, Shipped(case, launch, limits))
    return list(found.values())


def tabled(folder: Path | None = None) -> list[Shipped]:
    """The launches of every way in every tuned table of `folder`, by default the shipped ones.

    Raises:
        TableError: a file that is no tuned table.
        ImportError: Triton is missing, or it interprets.
    """
    check_triton()
    from lada_kernels.table import Table
    from lada_kernels.tuning import SHIPPED
    from lada_kernels.variants import Variant

    found: dict[Launch, Shipped] = {}
    for path in sorted((folder or SHIPPED).glob("*/*.json")):
        stem, (device, _, version) = path.parent.name, path.stem.rpartition("-triton")
        for key, by_tokens in Table.read(path, stem, device, version).entries.items():
            size, dtype = (key.k, key.n, key.weight), getattr(torch, key.dtype)
            for tokens, entry in by_tokens.items():
                for name, measured in entry.variants.items():
                    way = Variant(name, measured.tiles)
                    case = Case(stem, tokens, *size, _EPILOGUES[key.epilogue], dtype, way)
                    for launch in case.launches():
                        found.setdefault(launch, Shipped(case, launch, design(launch)))
    return list(found.values())


def design(launch: Launch) -> Limits:
    """What a launch of our kernels is held to by its design, whatever its tiles."""
    if launch.name == ADD_NORM:
        return Limits(tensor_cores=False)
    tile = dict(launch.constants)
    rows = tile["BLOCK_M"]  # of the left operand of the products
    if tile.get("SWAP_AB"):
        rows = tile["BLOCK_N"]
    elif launch.name == DVALUES:
        rows = tile["BLOCK_K"]
    elif launch.name == DFACTORS:
        rows = min(tile["BLOCK_N"], tile["BLOCK_K"])
    limits = Limits(
        tensor_cores=any(kind in ("*fp16", "*bf16") for _, kind in launch.signature),
        wgmma=rows >= 64,
    )
    if launch.name == FFN:
        # for each tile of F its bias, a step ahead, and its activations: on their way to the second
        # product they pass shared memory wherever tensor cores do not take them from registers
        return dataclasses.replace(limits, synchronous_loads=8, shared_stores=16)
    if "BSR_COLS" in tile and tile["BSR_COLS"] == tile["BLOCK_K"]:
        # a pack of one block has one index, which goes to all threads that way
        return dataclasses.replace(limits, shared_stores=1)
    return limits
