"""Test bench: the device, clock and static gate of a measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..host.environment import device_slug
from ..latency import Clock, GraphClock
from ..machine_code.calls import LauncherCall
from ..machine_code.catalogue import design
from ..machine_code.compile import CompileError, compile_launch
from ..machine_code.gate import Limits, faults
from ..machine_code.launches import Launch
from ..machine_code.targets import TARGETS, Target
from .case import Case

if TYPE_CHECKING:
    from lada_kernels.variants import Variant

Faults = Callable[[Case, "Variant"], list[str]]

# properties of some designs, judged by the clock instead
_FOR_THE_CLOCK = {"copy_bits": 0, "synchronous_loads": 1 << 30, "shared_stores": 1 << 30}


MAX_REASON = 300  # characters


class NoGpu(RuntimeError):
    """Error where no usable GPU is present, or an error has left it unusable."""


@dataclass(frozen=True)
class Bench:
    """Device, clock and settings of a measurement.

    l2_bytes: size of the L2 cache, cold at every call. rounds: timed samples per candidate. name:
    device name in tuned tables. faults: static gate, whose faults keep a variant from being run.
    now: seconds, for the budget. pdl: True if the device has programmatic dependent launch.
    """

    device: torch.device
    clock: Clock
    l2_bytes: int
    rounds: int = 15
    name: str = ""
    faults: Faults = lambda case, variant: []
    now: Callable[[], float] = time.monotonic
    pdl: bool = False

    @classmethod
    def of_gpu(cls) -> Bench:
        """Bench on the current GPU. Raises NoGpu without one that the kernels support."""
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
        gate = gate_for(target) if target is not None else cls.faults
        pdl = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
        name, clock = device_slug(device), GraphClock(device)
        return cls(device, clock, l2_bytes, name=name, faults=gate, pdl=pdl)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def poison(self, output_bytes: int) -> None:
        """Fill freed memory that outputs of this size will reuse with NaN, so that gaps show.

        Otherwise the allocator may return the memory of the previous, correct output.
        """
        blocks = [
            # bytes of ones are NaN in every floating-point dtype
            torch.full((output_bytes,), 255, dtype=torch.uint8, device=self.device)
            for _ in range(4)
        ]
        del blocks

    def check_alive(self) -> None:
        """Raise NoGpu if an error in a kernel has left the device unusable in this process."""
        if not self.is_cuda:
            return
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()  # raises if a failed capture has corrupted the allocator
        except RuntimeError as error:
            raise NoGpu(
                f"tune: the GPU is lost: {error}; what was measured is kept, start again to go on"
            ) from error


def reason(error: Exception) -> str:
    """Type and message of `error` in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:MAX_REASON]


def gate_for(target: Target) -> Faults:
    """Faults in the machine code of a variant's launches on `target`."""

    def launch_faults(launch: Launch) -> list[str]:
        limits = Limits(
            tensor_cores=design(launch).tensor_cores,
            # few tokens need tiles of fewer rows than wgmma takes
            wgmma=launch.tiles.get("BLOCK_M", 0) >= 64,
            **_FOR_THE_CLOCK,
        )
        try:
            return faults(compile_launch(launch, target), limits)
        except CompileError as error:
            return [str(error)]

    def gate(case: Case, variant: Variant) -> list[str]:
        call = LauncherCall.of_entry(case.key, case.tokens, variant)
        return [fault for launch in call.launches() for fault in launch_faults(launch)]

    return gate


def _architecture(device: torch.device) -> str:
    """Triton's name of the architecture, such as sm_90 or gfx942."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
