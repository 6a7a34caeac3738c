"""Rows: all implementations of a workload prepared, checked, and timed side by side.

An implementation that cannot be prepared, fails or is wrong becomes a reason in the row; the others
go on.
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
    Comparison,
    Rotation,
    WrongOutput,
    compare,
    copies_for,
)
from lada_ops.machine_code.roofline import Ceilings
from lada_ops.tune.device import Bench, NoGpu, reason

from .roofline import achieved
from .workload import Implementation, Workload

BASELINE = "dense"


class DeviceLost(RuntimeError):
    """Error in a kernel that left the GPU's context unusable; only a new process gets another.

    name: the implementation that failed.
    """

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"{name}: {reason(error)}")
        self.name = name


class Launched(Rotation):
    """Calls that synchronise, so that no CUDA graph can capture them: launched one by one."""

    def replay(self) -> None:
        for _ in range(self.count):
            self.output = self()


@dataclass(frozen=True, eq=False)
class _Ready:
    implementation: Implementation
    candidate: Candidate
    rotation: Rotation


def measure(workload: Workload, bench: Bench, ceilings: Ceilings | None) -> dict[str, Any]:
    """Row of a workload: ``timings`` with achieved rates and ``failed`` reasons, both by name.

    Raises DeviceLost where an error leaves the device unusable in this process.
    """
    failed: dict[str, str] = {}
    ready: dict[str, _Ready] = {}
    for name, prepare in workload.implementations.items():
        try:
            ready[name] = _prepare(name, prepare, workload, bench)
        except Exception as error:  # a peer may raise anything; it becomes a reason
            check_device(name, error, bench)
            failed[name] = reason(error)
    comparison = _compare(ready, failed, bench)
    row = {"case": workload.case.to_dict(), "failed": failed}
    if comparison is None:
        return row
    return row | {
        "settings": dict(comparison.settings),
        "timings": {
            timing.name: timing.to_dict()
            | _details(ready[timing.name], workload, timing.seconds.median, ceilings)
            for timing in comparison.timings
        },
    }


def _details(
    ready: _Ready, workload: Workload, seconds: float, ceilings: Ceilings | None
) -> dict[str, Any]:
    work = ready.implementation.work(workload.case.tokens, workload.output_bytes)
    return achieved(work, seconds, ceilings) | {
        "copies": len(ready.rotation.calls),
        "launched": isinstance(ready.rotation, Launched),
        **ready.implementation.note,
    }


def _prepare(
    name: str,
    prepare: Callable[[], Implementation],
    workload: Workload,
    bench: Bench,
) -> _Ready:
    made = prepare()
    expected = workload.expected if made.expected is None else made.expected
    work = made.work(workload.case.tokens, workload.output_bytes)
    calls = made.copies(copies_for(work.bytes, bench.l2_bytes))
    tolerance = TOLERANCES[getattr(torch, workload.case.dtype)]
    candidate = Candidate(name, calls, expected, tolerance, made.read)
    with torch.no_grad():
        bench.poison(workload.output_bytes)
        candidate.error(calls[0](), candidate.expect())
        rotation = _rotation(calls, bench)
    return _Ready(made, replace(candidate, run=rotation), rotation)


def _rotation(calls: list[Callable[[], Any]], bench: Bench) -> Rotation:
    rotation = Rotation(calls)
    if not bench.is_cuda:
        return rotation
    torch.cuda.synchronize()
    if _synchronises(calls[0]):
        return Launched(calls)
    try:
        rotation.replay()
        torch.cuda.synchronize()
        return rotation
    except RuntimeError as error:
        check_device("capture", error, bench)
        return Launched(calls)


def _synchronises(call: Callable[[], Any]) -> bool:
    """True if `call` synchronises with the GPU, so that no graph can capture it.

    Tested ahead of the capture: before torch 2.12 a failed one corrupts the allocator, and with it
    every later capture (pytorch#180395).
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


def _compare(ready: dict[str, _Ready], failed: dict[str, str], bench: Bench) -> Comparison | None:
    """Comparison of all that are ready; those with wrong outputs move to `failed`."""
    while BASELINE in ready:
        try:
            return compare(
                [one.candidate for one in ready.values()],
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


def check_device(name: str, error: Exception, bench: Bench) -> None:
    """Free the memory of a failed implementation. Raises DeviceLost if the GPU is unusable."""
    if not bench.is_cuda:
        return
    error.__traceback__ = None  # its frames hold tensors
    gc.collect()
    try:
        bench.check_alive()
    except NoGpu:
        raise DeviceLost(name, error) from None
