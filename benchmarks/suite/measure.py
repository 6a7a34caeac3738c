"""One row: every way of a problem prepared, checked, and timed beside the others.

A way that cannot be prepared, fails or is wrong becomes a reason in the row; the others go on.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lada_ops.latency import (
    TOLERANCES,
    Candidate,
    Clock,
    Comparison,
    Rotation,
    WrongOutput,
    compare,
    copies_for,
)
from lada_ops.machine_code.roofline import Ceilings

from .problem import Entry, Problem
from .roofline import achieved

BASELINE = "dense"
ROUNDS = 11
MAX_REASON = 300  # characters


class DeviceLost(RuntimeError):
    """The GPU's context is beyond use after an error in a kernel; only a new process gets another.

    way: whose error it was.
    """

    def __init__(self, way: str, error: Exception) -> None:
        super().__init__(f"{way}: {reason(error)}")
        self.way = way


@dataclass(frozen=True)
class Bench:
    """Where rows are measured. l2_bytes: of the cache that copies must not fit in."""

    device: torch.device
    clock: Clock
    l2_bytes: int
    ceilings: Ceilings | None = None
    rounds: int = ROUNDS

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


class Launched(Rotation):
    """Calls that no graph can hold, since they synchronise: made one by one, as fast as they go."""

    def replay(self) -> None:
        for _ in range(self.count):
            self.output = self()


@dataclass(frozen=True, eq=False)
class _Ready:
    entry: Entry
    candidate: Candidate
    rotation: Rotation


def measure(problem: Problem, dtype: torch.dtype, bench: Bench) -> dict[str, Any]:
    """The row: ``timings`` by way with what each achieved, and ``failed``, way -> reason.

    Raises DeviceLost where an error leaves no way to go on in this process.
    """
    failed: dict[str, str] = {}
    ready: dict[str, _Ready] = {}
    for name, prepare in problem.ways.items():
        try:
            ready[name] = _prepare(name, prepare, problem, dtype, bench)
        except Exception as error:  # whatever a peer raises is its result
            check_device(name, error, bench)
            failed[name] = reason(error)
    comparison = _compare(ready, failed, bench)
    row = {"case": vars(problem.case), "failed": failed}
    if comparison is None:
        return row
    return row | {
        "settings": dict(comparison.settings),
        "timings": {
            timing.name: timing.to_dict()
            | achieved(
                ready[timing.name].entry.work(problem.case.tokens, problem.output_bytes),
                timing.seconds.median,
                bench.ceilings,
            )
            | {
                "copies": len(ready[timing.name].rotation.calls),
                "launched": isinstance(ready[timing.name].rotation, Launched),
                **ready[timing.name].entry.note,
            }
            for timing in comparison.timings
        },
    }


def reason(error: Exception) -> str:
    """What went wrong, in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:MAX_REASON]


def _prepare(
    name: str,
    prepare: Callable[[], Entry],
    problem: Problem,
    dtype: torch.dtype,
    bench: Bench,
) -> _Ready:
    entry = prepare()
    expected = problem.expected if entry.expected is None else entry.expected
    tokens = problem.case.tokens
    copies = copies_for(entry.work(tokens, problem.output_bytes).bytes, bench.l2_bytes)
    calls = entry.copies(copies)
    candidate = Candidate(name, calls, expected, TOLERANCES[dtype], entry.read)
    with torch.no_grad():
        _poison(problem.output_bytes, bench)
        candidate.error(calls[0](), candidate.expect())
        rotation = _rotation(calls, bench)
    return _Ready(entry, replace(candidate, run=rotation), rotation)


def _rotation(calls: list[Callable[[], Any]], bench: Bench) -> Rotation:
    rotation = Rotation(calls)
    if not bench.cuda:
        return rotation
    torch.cuda.synchronize()
    if _waits(calls[0]):
        return Launched(calls)
    try:
        rotation.replay()
        torch.cuda.synchronize()
        return rotation
    except RuntimeError as error:
        check_device("capture", error, bench)
        return Launched(calls)


def _waits(call: Callable[[], Any]) -> bool:
    """Whether `call` waits for the GPU, which no graph can hold.

    It is not left to the capture to find out: before torch 2.12, one that fails spoils the
    allocator, and with it every later capture (pytorch#180395).
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def _poison(output_bytes: int, bench: Bench) -> None:
    """Leave NaN where outputs will lie, so that what is not written is seen.

    Memory that was just freed is what the allocator gives out next; without this it may hold the
    right answer of the way before.
    """
    blocks = [
        torch.full((output_bytes // 2,), float("nan"), dtype=torch.float16, device=bench.device)
        for _ in range(4)
    ]
    del blocks


def _compare(ready: dict[str, _Ready], failed: dict[str, str], bench: Bench) -> Comparison | None:
    """Those that are ready, side by side; whoever turns out wrong moves to `failed`."""
    while BASELINE in ready:
        try:
            return compare(
                [way.candidate for way in ready.values()],
                baseline=BASELINE,
                rounds=bench.rounds,
                warmup=1,
                clock=bench.clock,
                quiet=True,
            )
        except WrongOutput as error:
            failed[error.candidate] = reason(error)
            del ready[error.candidate]
        except Exception as error:
            check_device("compare", error, bench)
            failed["compare"] = reason(error)
            return None
    return None


def check_device(way: str, error: Exception, bench: Bench) -> None:
    """Free what the failed `way` held. Raises DeviceLost if the GPU does not work any more."""
    if not bench.cuda:
        return
    error.__traceback__ = None  # it holds the tensors that did not fit
    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        raise DeviceLost(way, error) from None
