"""Catalogue of shipped launches: each with the limits that its machine code must meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .calls import LauncherCall
from .gate import Limits
from .hopper_regimes import REGIMES
from .launches import Launch, check_triton
from .regimes import ADD_NORM, DFACTORS, DVALUES, FFN, Regime


@dataclass(frozen=True)
class Shipped:
    """A launch, a launcher call that makes it, and the limits of its machine code."""

    call: LauncherCall
    launch: Launch
    limits: Limits


def shipped(stem: str | None = None) -> list[Shipped]:
    """Launches of every regime, of one stem or of all.

    Raises:
        ValueError: an unknown stem.
        ImportError: Triton is missing, or it interprets.
    """
    stems = list(dict.fromkeys(regime.stem for regime in REGIMES))
    if stem not in (None, *stems):
        raise ValueError(f"op {stem!r}; expected one of {', '.join(stems)}")
    return launches_of(regime for regime in REGIMES if stem in (None, regime.stem))


def launches_of(regimes: Iterable[Regime]) -> list[Shipped]:
    """Distinct launches of `regimes`; the first regime that makes a launch sets its limits.

    Raises:
        RuntimeError: a regime's launcher does not launch its kernel.
        ImportError: Triton is missing, or it interprets.
    """
    check_triton()
    found: dict[Launch, Shipped] = {}
    for regime in regimes:
        for call, occupancy, issue, instructions in regime.calls():
            launches = [x for x in call.launches() if x.name == regime.kernel]
            if not launches:
                raise RuntimeError(f"{call}: expected a launch of {regime.kernel}")
            for launch in launches:
                limits = dataclasses.replace(
                    design(launch),
                    occupancy=occupancy,
                    issue_per_tensor=issue,
                    instructions_per_element=instructions,
                )
                found.setdefault(launch, Shipped(call, launch, limits))
    return list(found.values())


def tabled(folder: Path | None = None) -> list[Shipped]:
    """Distinct launches of every variant in the tuned tables of `folder`, by default the shipped.

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
            for tokens, entry in by_tokens.items():
                for name, measured in entry.variants.items():
                    variant = Variant(name, measured.tiles)
                    call = LauncherCall.of_entry(key, tokens, variant)
                    for launch in call.launches():
                        found.setdefault(launch, Shipped(call, launch, design(launch)))
    return list(found.values())


def design(launch: Launch) -> Limits:
    """Limits that follow from a kernel's design, whatever its tiles."""
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
        # each tile of F prefetches its bias, and its activations pass through shared memory to the
        # second product unless tensor cores read them from registers
        return dataclasses.replace(limits, synchronous_loads=8, shared_stores=16)
    if "BSR_COLS" in tile and tile["BSR_COLS"] == tile["BLOCK_K"]:
        # a pack of one block has one index, broadcast to all threads through shared memory
        return dataclasses.replace(limits, shared_stores=1)
    return limits
