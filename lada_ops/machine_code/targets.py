"""The GPUs that kernels are compiled for: what limits a program there, and what bounds its time."""

from __future__ import annotations

from dataclasses import dataclass

from .roofline import Ceilings


@dataclass(frozen=True)
class Target:
    """An architecture as Triton names it, and the peak figures of one GPU of it.

    Limits are those of NVIDIA's CUDA C++ Programming Guide, "Compute Capabilities", and of AMD's
    CDNA 3 instruction set guide; peaks are those of the vendor's data sheet of `gpu`, without
    sparsity, at boost clock.
    """

    name: str
    shared_kib: int
    """Shared memory one program may use."""
    shared_kib_in_all: int
    """Shared memory of a multiprocessor."""
    threads_in_all: int
    """Threads of a multiprocessor."""
    tensor_flops: int | None
    """FLOPs per cycle of a multiprocessor's tensor cores, 16-bit operands and fp32 sums; None where
    the machine code does not tell how many an instruction does."""
    gpu: str
    teraflops: float
    """Of bf16 products with fp32 sums."""
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
        """How many programs a multiprocessor holds at once.

        Registers are counted per thread, shared memory in bytes per program.
        """
        if self.is_amd:
            # four SIMDs of 8 waves at most, each with 512 registers a lane, handed out by eight
            waves = 4 * min(8, 512 // max(8, -(-registers // 8) * 8))
            return min(
                waves // (threads // self.threads_per_warp),
                self.shared_kib_in_all * 1024 // max(1, shared),
            )
        # 64 Ki registers, handed out by eight a thread; each program costs a KiB of shared memory
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
    """The target of this name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in TARGETS:
        raise ValueError(f"target {name!r}; expected one of {', '.join(TARGETS)}")
    return TARGETS[name]
