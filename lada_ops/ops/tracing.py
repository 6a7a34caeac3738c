"""Tracers, exporters and transforms that record or rewrite the operations of a call."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._C import _get_dispatch_mode, _TorchDispatchModeKey
from torch._C._functorch import is_functionaltensor, is_functorch_wrapped_tensor
from torch.autograd import forward_ad


def exporter() -> str | None:
    """Name of the exporter that records operations for another runtime, or None."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if tracing:
        return "torch.jit.trace"
    return "torch.export" if torch.compiler.is_exporting() else None


def transforming() -> bool:
    """True in a transform of torch.func or under forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def tracer_of(x: Tensor) -> str | None:
    """Name of the exporter, tracer or transform that operations on x belong to, or None.

    It sees nothing of a native kernel, which reads x's memory; torch.compile is none of them.
    """
    if (name := exporter()) is not None:
        return name
    if type(x) not in (Tensor, nn.Parameter):
        return f"a {type(x).__name__}"
    if is_functorch_wrapped_tensor(x) or is_functionaltensor(x):
        return "a transform of torch.func"
    if _get_dispatch_mode(_TorchDispatchModeKey.PROXY) is not None:
        return "make_fx"
    if transforming() and forward_ad.unpack_dual(x).tangent is not None:
        return "forward-mode differentiation"
    return None
