"""Where tuning happens: a GPU with its clock and its gate, or what a test puts in their place."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..host.environment import device_slug
from ..latency import Clock, GraphClock
from ..machine_code.cases import Case as LaunchCase
from ..machine_code.catalogue import design
from ..machine_code.compile import CompileError, compile_launch
from ..machine_code.gate import Limits, faults
from ..machine_code.launches import Launch
from ..machine_code.targets import TARGETS, Target
from .case import Case

if TYPE_CHECKING:
    from lada_kernels.variants import Variant

Faults = Callable[[Case, "Variant"], list[str]]

# what some kernels do by design, and the clock tells whether it pays
_FOR_THE_CLOCK = {"copy_bits": 0, "synchronous_loads": 1 << 30, "shared_stores": 1 << 30}
_EPILOGUES = {"plain": "none", "fused": "gelu", "norm": "norm"}


class NoGpu(RuntimeError):
    """There is no GPU to measure on, or none any more."""


@dataclass(frozen=True)
class Bench:
    """What is measured on.

    name: the device's, as tables have it. l2_bytes: of the cache that must be cold. faults: what
    speaks against a way before it is run; empty lets it pass. rounds: timed samples of each way.
    now: seconds, for the budget. pdl: whether it has programmatic dependent launch.
    """

    device: torch.device
    name: str
    clock: Clock
    l2_bytes: int
    faults: Faults
    rounds: int = 15
    now: Callable[[], float] = time.monotonic
    pdl: bool = False

    @classmethod
    def of_gpu(cls) -> Bench:
        """The current GPU. Raises NoGpu where there is none, or the kernels cannot run on it."""
        from lada_kernels.tuning import unsupported

        if not torch.cuda.is_available():
            raise NoGpu(
                "tune: torch finds no GPU here; expected one, since the tables hold what was "
                "measured on it"
            )
        device = torch.device("cuda", torch.cuda.current_device())
        reason = unsupported(device.index)
        if reason is not None:
            raise NoGpu(f"tune: {reason}")
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        target = TARGETS.get(_architecture(device))
        gate = gate_for(target) if target is not None else lambda case, way: []
        pdl = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
        return cls(device, device_slug(device), GraphClock(device), l2_bytes, gate, pdl=pdl)

    def check_alive(self) -> None:
        """Raise NoGpu if an error in a kernel has left the device unusable in this process."""
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()  # raises where a failed capture has spoilt the allocator
        except RuntimeError as error:
            raise NoGpu(
                f"tune: the GPU is lost: {error}; what was measured is kept, start again to go on"
            ) from error


def gate_for(target: Target) -> Faults:
    """The faults in the machine code of what a way launches on `target`."""

    @functools.cache  # most numbers of tokens launch the same
    def judged(launch: Launch) -> list[str]:
        limits = Limits(
            tensor_cores=design(launch).tensor_cores,
            # lower tiles than a warpgroup's are right for few tokens
            wgmma=launch.tiles.get("BLOCK_M", 0) >= 64,
            **_FOR_THE_CLOCK,
        )
        try:
            return faults(compile_launch(launch, target), limits)
        except CompileError as error:
            return [str(error)]

    def gate(case: Case, way: Variant) -> list[str]:
        dtype, epilogue = getattr(torch, case.dtype), _EPILOGUES[case.epilogue]
        size = case.tokens, case.k, case.n
        launches = LaunchCase(case.stem, *size, case.weight, epilogue, dtype, way).launches()
        return [fault for launch in launches for fault in judged(launch)]

    return gate


def _architecture(device: torch.device) -> str:
    """As Triton names it: sm_90, gfx942."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
