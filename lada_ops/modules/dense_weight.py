"""`DenseWeight`: the `weight` of a compressed linear, for code that reads `nn.Linear.weight`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_METADATA = {  # answered without computing W
    getattr(Tensor, name).__get__
    for name in (
        "device",
        "dtype",
        "is_cpu",
        "is_cuda",
        "is_meta",
        "layout",
        "ndim",
        "requires_grad",
    )
} | {Tensor.shape.__get__, Tensor.dim, Tensor.numel, Tensor.size, Tensor.is_floating_point}  # type: ignore[attr-defined]
_DETACHED = {Tensor.data.__get__, Tensor.detach}  # type: ignore[attr-defined]


class DenseWeight(Tensor):
    """Dense W (out, in), computed anew by each operation on it; shape and dtype cost nothing.

    It has no memory of its own: writes raise RuntimeError.
    """

    owner: nn.Module
    compute_dense: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls,
        owner: nn.Module,
        compute_dense: Callable[[], Tensor],
        shape: tuple[int, int],
        like: Tensor,
        requires_grad: bool,
    ) -> DenseWeight:
        """like: a tensor with W's dtype and device. compute_dense: returns W (out, in)."""
        weight = Tensor._make_wrapper_subclass(
            cls, shape, dtype=like.dtype, device=like.device, requires_grad=requires_grad
        )
        weight.owner, weight.compute_dense = owner, compute_dense
        return weight

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        written = (args or tuple(kwargs.values()))[0]  # a keyword in torch.nn.init
        if isinstance(written, DenseWeight):
            if func in _METADATA:
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs)
            if func in _DETACHED:  # writes into it are refused, too
                dense, shape = written.compute_dense, (written.shape[0], written.shape[1])
                return cls(written.owner, lambda: dense().detach(), shape, written, False)
            if _writes(func.__name__):
                raise not_written(written.owner, func.__name__)
        return func(*_dense(args), **_dense(kwargs))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with torch.no_grad():
            return func(*_dense(args), **_dense(kwargs or {}))


def not_written(owner: nn.Module, how: str) -> RuntimeError:
    """Error for a write into the weight of a compressed linear, which would be lost."""
    return RuntimeError(
        f"{type(owner).__name__}: {how} on weight, which is multiplied out of other parameters; "
        "expected those, or lada_ops.restore first"
    )


def _writes(name: str) -> bool:
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in ("__set__", "__setitem__", "__ior__", "__iand__", "__ixor__")


def _dense(given: Any) -> Any:
    return tree_map_only(DenseWeight, lambda weight: weight.compute_dense(), given)
