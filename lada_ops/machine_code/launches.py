"""Recorded launches of jit kernels: all that their compilation depends on, without running them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}
_OPTIONS = ("num_warps", "num_stages", "maxnreg", "launch_pdl")


@dataclass(frozen=True)
class Launch:
    """A jit kernel and its specialisation; equal launches share one binary."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    """Name and Triton type of each argument."""
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    """Positions of arguments divisible by 16; pointers by their address in bytes."""
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return self.kernel.__name__

    @property
    def itemsize(self) -> int:
        """Bytes per element of the last pointer argument, the output of our kernels."""
        pointer = [kind for _, kind in self.signature if kind.startswith("*")][-1]
        return int(pointer[-2:]) // 8

    @property
    def tiles(self) -> dict[str, int]:
        """Tile sizes, warps and stages by name."""
        sizes = {name: value for name, value in self.constants if name.startswith("BLOCK_")}
        return sizes | dict(self.options)


def check_triton() -> None:
    """Raise ImportError, with the remedy, where Triton is missing or interprets."""
    try:
        from triton import knobs
    except ImportError:
        raise ImportError(
            "Triton is not installed; expected 3.6 or newer, which there is for Linux: "
            "pip install triton"
        ) from None
    if knobs.runtime.interpret:
        raise ImportError("Triton interprets and compiles nothing; expected no TRITON_INTERPRET")


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record launches of jit kernels to the yielded list, in place of running them.

    Operands may be meta tensors. Not thread-safe: launches of other threads are recorded too.
    """
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(_launch(kernel, args, kwargs))

    run = JITFunction.run
    JITFunction.run = record  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield launches
    finally:
        JITFunction.run = run


def _launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    """Launch with its arguments specialised by the rules of Triton's runtime."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    options = tuple((name, values.pop(name)) for name in _OPTIONS if name in values)
    signature, constants, divisible = [], [], []
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        value = values.get(name, parameter.default)
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature.append((name, "constexpr"))
            constants.append((name, value))
            continue
        signature.append((name, _type(value)))
        if isinstance(value, torch.Tensor):
            address = 0 if value.is_meta else value.data_ptr()
            aligned = address % 16 == 0
        else:
            aligned = type(value) is int and value % 16 == 0
        if aligned:
            divisible.append(position)
    return Launch(kernel, tuple(signature), tuple(constants), tuple(divisible), options)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
