"""GPU architectures that kernels are compiled for: resource limits and peak rates."""

from __future__ import annotations

from dataclasses import dataclass

from .roofline import Ceilings


@dataclass(frozen=True)
class Target:
    """An architecture by Triton's name, and the peak rates of one GPU of it.

    Limits from NVIDIA's CUDA C++ Programming Guide, "Compute Capabilities", and AMD's CDNA 3
    instruction set guide; peak rates from `gpu`'s data sheet, without sparsity, at boost clock.
    """

    name: str
    shared_kib: int
    """Most shared memory of a program."""
    shared_kib_in_all: int
    """Shared memory of a multiprocessor."""
    threads_in_all: int
    """Threads of a multiprocessor."""
    tensor_flops: int | None
    """Tensor-core FLOPs per cycle and multiprocessor, 16-bit operands and fp32 accumulators; None
    where opcodes do not tell the FLOPs of an instruction."""
    gpu: str
    teraflops: float
    """Peak of bf16 products with fp32 accumulators."""
    gigabytes_per_second: float

    @property
    def threads_per_warp(self) -> int:
        return 64 if self.is_amd else 32

    @property
    def is_amd(self) -> bool:
        return self.name.startswith("gfx")

    @property
    def ceilings(self) -> Ceilings:
        return Ceilings(self.teraflops * 1e12, self.gigabytes_per_second * 1e9)

    def occupancy(self, registers: int, shared: int, threads: int) -> int:
        """Programs resident on a multiprocessor at once.

        registers: per thread. shared: bytes per program. threads: per program.
        """
        if self.is_amd:
            # four SIMDs of at most 8 waves, 512 registers per lane allocated in units of eight
            waves = 4 * min(8, 512 // max(8, -(-registers // 8) * 8))
            return min(
                waves // (threads // self.threads_per_warp),
                self.shared_kib_in_all * 1024 // max(1, shared),
            )
        # 64 Ki registers, allocated in units of eight per thread; 1 KiB of shared is reserved
        by_registers = 65536 // (-(-registers // 8) * 8 * threads)
        by_shared = self.shared_kib_in_all * 1024 // (shared + 1024)
        return min(by_registers, by_shared, self.threads_in_all // threads, 32)


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", 163, 164, 2048, 2048, "A100 SXM 80 GB", 312, 2039),
        Target("sm_86", 99, 100, 1536, 1024, "A10", 125, 600),
        Target("sm_89", 99, 100, 1536, 1024, "L40S", 362, 864),
        Target("sm_90", 227, 228, 2048, 4096, "H200", 989, 4800),
        Target("sm_100", 227, 228, 2048, None, "B200", 2250, 8000),
        Target("sm_120", 99, 100, 1536, None, "RTX PRO 6000 Blackwell", 503, 1792),
        Target("gfx942", 64, 64, 2048, None, "MI300X", 1307, 5300),
    )
}


def find_target(name: str) -> Target:
    """Target by name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in TARGETS:
        raise ValueError(f"target {name!r}; expected one of {', '.join(TARGETS)}")
    return TARGETS[name]
