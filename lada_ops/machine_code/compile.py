"""Ahead-of-time compilation of recorded launches, for targets that need not be present."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from . import sass
from .launches import Launch
from .targets import Target

_TENSOR_CORES = re.compile(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma")


class CompileError(RuntimeError):
    """Error of a launch that does not compile for a target; the message holds Triton's reason."""


@dataclass(frozen=True)
class Binary:
    """Properties of a compiled launch that bear on its speed."""

    target: Target
    threads: int
    itemsize: int
    """Bytes per element of the output."""
    registers: int
    """Registers per thread."""
    spills: int
    """Spills per thread: bytes of stack on NVIDIA, registers on AMD."""
    shared: int
    """Bytes of shared memory per program."""
    tensor_cores: bool
    warnings: tuple[str, ...]
    """Warnings of ptxas, a line each."""
    code: sass.Code | None
    """Machine code, NVIDIA only."""

    @property
    def occupancy(self) -> int:
        """Programs resident on a multiprocessor at once."""
        return self.target.occupancy(self.registers, self.shared, self.threads)

    @cached_property
    def issue_per_tensor(self) -> float | None:
        """Issue cycles of a K loop over its tensor-core cycles, the worst of all K loops.

        Above 1 the tensor cores idle even if every instruction issues without a stall. None without
        a K loop on tensor cores, and where opcodes do not tell the work of an instruction.
        """
        rate = self.target.tensor_flops
        if self.code is None or rate is None:
            return None
        # four schedulers issue an instruction of 32 threads each
        return max(
            (
                len(loop) * self.threads / 128 / (work / rate)
                for loop in self.code.reductions
                if (work := loop.tensor_work(self.threads))
            ),
            default=None,
        )

    @cached_property
    def instructions_per_element(self) -> float | None:
        """Instructions per thread and element of the output, behind the last product."""
        loop = self.code and self.code.epilogue
        return len(loop) / (loop.stored_bytes / self.itemsize) if loop else None


@cache
def compile_launch(launch: Launch, target: Target) -> Binary:
    """Binary of a launch, compiled once per process and target with the runtime's options.

    Triton's own cache is bypassed, since its entries lack the log of ptxas.

    Raises:
        CompileError: Triton or ptxas refused the kernel.
    """
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        launch.kernel,
        dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(position,): [["tt.divisibility", 16]] for position in launch.divisible},
    )
    options = dict(launch.options) | {"enable_fp_fusion": True}  # the default varies by version
    if target.is_amd:
        gpu = GPUTarget("hip", target.name, target.threads_per_warp)
    else:
        capability = int(target.name.removeprefix("sm_"))
        gpu = GPUTarget("cuda", capability, target.threads_per_warp)
    log = io.StringIO()
    with contextlib.redirect_stdout(log), knobs.compilation.scope(), knobs.nvidia.scope():
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        try:
            compiled = triton.compile(source, gpu, options)
        except Exception as error:  # of many types, from Python, MLIR and ptxas
            raise CompileError(f"{launch.name} for {target.name}: {error}") from error
    read = _read_amd if target.is_amd else _read_nvidia
    return read(compiled, log.getvalue(), launch, target)


def _read_nvidia(compiled: Any, log: str, launch: Launch, target: Target) -> Binary:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        # without dataflow the text is the same, in half the time
        command = [knobs.nvidia.nvdisasm.path, "-c", "--no-dataflow", cubin.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    code = sass.parse(done.stdout)
    return Binary(
        target=target,
        threads=compiled.metadata.num_warps * target.threads_per_warp,
        itemsize=launch.itemsize,
        registers=_number(r"Used (\d+) registers", log),
        spills=_number(r"(\d+) bytes stack frame", log),
        shared=compiled.metadata.shared,
        tensor_cores=bool(_TENSOR_CORES.search(compiled.asm["ptx"])),
        warnings=tuple(line for line in log.splitlines() if re.search(r"\(C\d+\)|warning", line)),
        code=code,
    )


def _read_amd(compiled: Any, log: str, launch: Launch, target: Target) -> Binary:
    text = compiled.asm["amdgcn"]
    return Binary(
        target=target,
        threads=compiled.metadata.num_warps * target.threads_per_warp,
        itemsize=launch.itemsize,
        registers=_number(r"\.vgpr_count:\s+(\d+)", text),
        spills=sum(_number(rf"\.{kind}_spill_count:\s+(\d+)", text) for kind in ("vgpr", "sgpr")),
        shared=compiled.metadata.shared,
        tensor_cores=bool(_TENSOR_CORES.search(text)),
        warnings=(),
        code=None,
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern!r} in what the compiler printed: {text[:500]}")
    return int(found[1])
