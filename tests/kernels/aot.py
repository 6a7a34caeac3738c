"""Compile what a launcher would launch, for a target that need not be present; read the code."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_LIMIT = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64}  # KiB per program
_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
}
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Binary:
    code: str  # PTX or AMD assembly
    sass: str  # machine code, NVIDIA only
    registers: int
    spills: int
    shared: int  # bytes
    threads: int

    @property
    def tensor_cores(self) -> bool:
        return bool(re.search(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma", self.code))


class Recorder:
    """Stands in for a jit kernel and keeps the arguments of its last launch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.args, self.kwargs = args, kwargs

        return launch


def compile_launch(kernel, launch: Recorder, target: str) -> Binary:
    """Compile `kernel` for `target`, specialised on the recorded arguments as the runtime does."""
    values = dict(zip(kernel.arg_names, launch.args, strict=False)) | launch.kwargs
    options = {name: values.pop(name) for name in ("num_warps", "num_stages")}
    signature, constants, attrs = {}, {}, {}  # of triton.compiler.ASTSource
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        pointer = isinstance(value, torch.Tensor)
        if kernel.params[i].is_constexpr or value is None or (not pointer and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = _TYPES[value.dtype] if pointer else "i32"
        if pointer or value % 16 == 0:
            attrs[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attrs)
    options["enable_fp_fusion"] = True  # the default differs between versions of Triton
    if target.startswith("gfx"):
        return _read_amd(triton.compile(source, GPUTarget("hip", target, 64), options))
    capability = int(target.removeprefix("sm_"))
    return _read_nvidia(triton.compile(source, GPUTarget("cuda", capability, 32), options))


def _read_nvidia(compiled) -> Binary:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", cubin.name)
        sass = _run("nvdisasm", "-c", cubin.name)
    registers, stack, local = (_count(rf"\b{n}:(\d+)", usage) for n in ("REG", "STACK", "LOCAL"))
    return Binary(
        code=compiled.asm["ptx"],
        sass=sass,
        registers=registers,
        spills=stack + local + len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared=compiled.metadata.shared,
        threads=compiled.metadata.num_warps * 32,
    )


def _read_amd(compiled) -> Binary:
    code = compiled.asm["amdgcn"]
    return Binary(
        code=code,
        sass="",
        registers=_count(r"\.vgpr_count:\s+(\d+)", code),
        spills=_count(r"\.vgpr_spill_count:\s+(\d+)", code)
        + _count(r"\.sgpr_spill_count:\s+(\d+)", code),
        shared=compiled.metadata.shared,
        threads=compiled.metadata.num_warps * 64,
    )


def _count(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in what the tool printed"
    return int(found[1])


def _run(tool: str, *args: str) -> str:
    return subprocess.run([_TOOLS / tool, *args], capture_output=True, text=True, check=True).stdout
