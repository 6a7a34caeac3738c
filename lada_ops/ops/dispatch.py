"""Dispatch of the ops: autocast, Triton kernel or reference, current GPU, layout of operands."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..host.user_tables import use_user_tables
from .tracing import exporter, transforming

Result = TypeVar("Result")

# fp64 runs through the reference everywhere: it is for proofs, not for speed
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors, cast to autocast's dtype where it is enabled, as for `F.linear`.

    A custom op has no autocast rule of its own that follows a dtype chosen at run time.
    """
    device = next(t for t in tensors if t is not None).device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )


def runs_reference() -> bool:
    """True if a call must run the reference, made of torch's own operators.

    Exporters know no other operators; transforms take no custom op and see no in-place writes.
    """
    return exporter() is not None or transforming()


def kernels_run(op: str, x: Tensor) -> bool:
    """True if x is on a GPU and of a dtype that the kernels run; warns once of too old a GPU."""
    if not x.is_cuda:
        return False
    from lada_kernels.tuning import unsupported

    use_user_tables()
    reason = unsupported(x.get_device())
    if reason is not None:
        warn_once(f"{op}: runs in plain torch: {reason}")
    return reason is None and x.dtype in KERNEL_DTYPES


def on_its_gpu(body: Callable[..., Result]) -> Callable[..., Result]:
    """`body`, run with its first argument's GPU as the current device, where Triton launches."""

    @functools.wraps(body)
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Result:
        if not x.is_cuda:
            return body(x, *args, **kwargs)
        with torch.cuda.device_of(x):
            return body(x, *args, **kwargs)

    return run


def needs_grad(*tensors: Tensor | None) -> bool:
    """True if autograd would record an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def rows(t: Tensor) -> Tensor:
    """`t` (..., features) as (tokens, features) with contiguous rows, for the kernels."""
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(1) == 1 else t.contiguous()


def contiguous(t: Tensor | None) -> Tensor | None:
    """`t` contiguous, or None."""
    return None if t is None else t.contiguous()


@functools.cache
def warn_once(message: str) -> None:
    """Warn of `message`, the first time in this process."""
    warnings.warn(message, stacklevel=2)
