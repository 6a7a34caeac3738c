"""`PackedLinear`: linear of an optimized model, with the weight layout of the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from ..formats.bsr import Bsr, gather_blocks
from ..formats.low_rank import LowRank
from ..ops.checks import check_epilogue
from ..ops.dispatch import needs_grad
from ..ops.tracing import exporter, tracer_of
from .compressed_linear import CompressedLinear
from .dense_weight import DenseWeight

if TYPE_CHECKING:
    from lada_kernels.cpu.packed import PackedWeight
    from lada_kernels.cpu.packing import Weight


Source: TypeAlias = nn.Linear | CompressedLinear

_WEIGHTS = {"weight", "u", "v", "values"}
_HOOKS = [name for name in vars(nn.Module()) if name.startswith("_forward_")]


class PackedLinear(nn.Module):
    """``act(x W^T + bias)`` on the CPU, for inference, in the place of the linear `source`.

    x (..., in) is computed in the packed dtype; y has x's dtype. The weights of `source` are kept
    in packed form only; `state_dict` has them under their names, as rounded to the packed dtype.

    Forward hooks are shared with `source`, so that their handles remove them. dense: `packed` is
    the dense product of compressed factors, which are then kept as well.

    Raises RuntimeError on loading a state dict and on setting a weight or a bias, which belong to
    the model before `optimize`; `forward` raises as `inference_input`.
    """

    def __init__(self, source: Source, packed: PackedWeight, dense: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = source.in_features, source.out_features
        self.activation = source.activation if isinstance(source, CompressedLinear) else "none"
        self.packed = packed
        for name in _HOOKS:
            setattr(self, name, getattr(source, name))
        self.register_load_state_dict_pre_hook(refuse_loading)
        self.source_repr = f"{source}, dense" if dense else repr(source)
        self.source_parameters = sum(p.numel() for p in source.parameters())
        self._dtype = next(source.parameters()).dtype
        self._kept: dict[str, Tensor] = {}
        self._packed_weights: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for name, tensor in source.state_dict().items():
            if name in _WEIGHTS and not (dense and isinstance(source, CompressedLinear)):
                self._packed_weights[name] = tensor.shape, tensor.dtype
            else:
                self._kept[name] = tensor.detach()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) -> (..., out)."""
        refuse_exporting("PackedLinear")
        return self._run(x, residual)

    @torch.compiler.disable(recursive=True)
    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        from lada_kernels.cpu.linear import packed_linear_fwd

        x = inference_input("PackedLinear", x, self.in_features)
        check_epilogue("PackedLinear", x, self.out_features, None, self.activation, residual)
        rows = x.reshape(-1, self.in_features).to(self.packed.io_dtype)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        y = packed_linear_fwd(self.packed, rows, activation=self.activation)
        y = y.view(*x.shape[:-1], self.out_features).to(x.dtype)
        return y if residual is None else y + residual

    @property
    def weight(self) -> Tensor:
        """Dense W (out, in), as rounded to the packed dtype, computed by each use."""
        like = torch.empty(0, dtype=self._dtype, device="cpu")
        size = self.out_features, self.in_features
        return DenseWeight(self, self._compute_dense, size, like, False)

    @property
    def bias(self) -> Tensor | None:
        """Bias (out,), or None."""
        return self._kept.get("bias")

    def _compute_dense(self) -> Tensor:
        u, v, sparse = self.packed.unpacked()
        return (u.float() @ v.float() + sparse).to(self._dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _WEIGHTS or name == "bias":  # as torch.func.functional_call does
            raise RuntimeError(
                f"PackedLinear: {name} cannot be set: the model was optimized for inference; call "
                "lada_ops.restore first"
            )
        super().__setattr__(name, value)

    def _unpacked(self) -> dict[str, Tensor]:
        u, v, sparse = self.packed.unpacked()
        tensors = {"u": u, "v": v, "weight": sparse}
        if "values" in self._packed_weights:
            (_, *block), _ = self._packed_weights["values"]
            indices = self._kept["crow_indices"], self._kept["col_indices"]
            tensors["values"] = gather_blocks(sparse, *indices, (block[0], block[1]))
        return {name: tensors[name].to(dtype) for name, (_, dtype) in self._packed_weights.items()}

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        for name, tensor in (self._unpacked() | self._kept).items():
            destination[prefix + name] = tensor

    def extra_repr(self) -> str:
        dtype = str(self.packed.dtype).removeprefix("torch.")
        return f"{self.source_repr}, packed={dtype}; lada_ops.restore gives it back"


def refuse_loading(module: nn.Module, *arguments: Any) -> None:
    """Load-state-dict pre-hook that raises RuntimeError."""
    raise RuntimeError(
        f"{type(module).__name__}: cannot load a state dict: the model was optimized for "
        "inference; load its weights first, then call lada_ops.optimize"
    )


def refuse(name: str, tracer: str) -> NoReturn:
    """Raise RuntimeError: the tracer cannot follow the native kernels; says what to do instead."""
    raise RuntimeError(
        f"{name}: x comes by {tracer}; expected a plain tensor, since the model was optimized for "
        "inference: export, trace or transform it before lada_ops.optimize, or call "
        "lada_ops.restore first"
    )


def refuse_exporting(name: str) -> None:
    """Raise RuntimeError under an exporter, which would stop at `torch.compiler.disable`."""
    if (tracer := exporter()) is not None:
        refuse(name, tracer)


def inference_input(name: str, x: Tensor, features: int) -> Tensor:
    """x (..., features), detached, as the native kernels read it.

    Raises RuntimeError under tracers and transforms and where x records gradients, ValueError on
    another number of features, TypeError unless x is a floating tensor on the CPU.
    """
    if (tracer := tracer_of(x)) is not None:
        refuse(name, tracer)
    if x.shape[-1:] != (features,):
        raise ValueError(f"{name}: x {tuple(x.shape)}; expected (..., {features})")
    if not x.is_cpu or not x.is_floating_point():
        raise TypeError(
            f"{name}: x is {x.dtype} on {x.device}; expected a floating dtype on the CPU, "
            "which the model was optimized for"
        )
    if needs_grad(x):
        raise RuntimeError(
            f"{name}: x records gradients; expected torch.no_grad(), since the model was optimized "
            "for inference"
        )
    return x.detach().resolve_neg()


def pack_linears(
    sources: Sequence[Source], dtype: torch.dtype, dense: bool = False
) -> PackedWeight:
    """Packed weights of linears that share x, stacked; as dense products if `dense`."""
    from lada_kernels.cpu.packing import pack

    biases = [None if s.bias is None else s.bias.detach() for s in sources]
    return pack([weight_of(s, dense) for s in sources], biases, dtype)


@torch.no_grad()
def weight_of(source: Source, dense: bool = False) -> Weight:
    """Weight of a linear, for the packing; its dense product if `dense`."""
    from lada_kernels.cpu.packing import Weight

    size = source.out_features, source.in_features
    if isinstance(source, nn.Linear):
        return Weight(*size, sparse=source.weight.detach().float())
    weight = source.format.to(torch.float32)
    if dense:
        return Weight(*size, sparse=weight.to_dense())
    if isinstance(weight, LowRank):
        return Weight(*size, u=weight.u, v=weight.v)
    if isinstance(weight, Bsr):
        return Weight(*size, sparse=weight.to_dense(), mask=weight.mask)
    low_rank, bsr = weight.low_rank, weight.bsr
    return Weight(*size, low_rank.u, low_rank.v, bsr.to_dense(), bsr.mask)
