"""`PackedLinear`: a linear of an optimized model, its weight in the order of the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn
from torch._C import _get_dispatch_mode, _TorchDispatchModeKey
from torch._C._functorch import is_functionaltensor, is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing

from ..formats.bsr import Bsr
from ..formats.low_rank import LowRank
from ..ops.epilogue import check_epilogue, needs_grad
from .compressed_linear import CompressedLinear
from .dense_weight import DenseWeight

if TYPE_CHECKING:
    from lada_kernels.cpu.packed import PackedWeight
    from lada_kernels.cpu.packing import Weight


Source: TypeAlias = nn.Linear | CompressedLinear

_WEIGHTS = {"weight", "u", "v", "values"}
_HOOKS = [name for name in vars(nn.Module()) if name.startswith("_forward_")]


class PackedLinear(nn.Module):
    """``act(x W^T + bias)`` on the CPU, for inference: stands in for `source`.

    x (..., in) is computed in the packed dtype and comes back in its own. The weights of `source`
    live on in packed form alone; `state_dict` has them under their names, as rounded to the packed
    dtype.

    Forward hooks are those of `source`, which their handles remove. dense: whether it was packed
    multiplied out, which does not give its factors back; then they are kept beside it.

    Raises RuntimeError on loading a state dict: that is for the model before it is optimized; where
    x does not fit, see `inference_input`; on setting a weight or a bias.
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
        """W (out, in) as rounded to the packed dtype, multiplied out where it is used."""
        like = torch.empty(0, dtype=self._dtype, device="cpu")
        size = self.out_features, self.in_features
        return DenseWeight(self, self._multiplied_out, size, like, False)

    @property
    def bias(self) -> Tensor | None:
        """Bias (out,), or None."""
        return self._kept.get("bias")

    def _multiplied_out(self) -> Tensor:
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
        found = {"u": u, "v": v, "weight": sparse}
        if "values" in self._packed_weights:
            shape, _ = self._packed_weights["values"]
            found["values"] = _blocks(sparse, self._kept, shape)
        return {name: found[name].to(dtype) for name, (_, dtype) in self._packed_weights.items()}

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        for name, tensor in (self._unpacked() | self._kept).items():
            destination[prefix + name] = tensor

    def extra_repr(self) -> str:
        dtype = str(self.packed.dtype).removeprefix("torch.")
        return f"{self.source_repr}, packed={dtype}; lada_ops.restore gives it back"


def refuse_loading(module: nn.Module, *arguments: Any) -> None:
    """A hook that forbids to load a state dict; arguments are those of such hooks."""
    raise RuntimeError(
        f"{type(module).__name__}: cannot load a state dict: the model was optimized for "
        "inference; load its weights first, then call lada_ops.optimize"
    )


def _blocks(sparse: Tensor, indices: dict[str, Tensor], shape: torch.Size) -> Tensor:
    _, rows, cols = shape
    blocks = sparse.view(len(sparse) // rows, rows, -1, cols).transpose(1, 2)
    crow, col = indices["crow_indices"].long(), indices["col_indices"].long()
    row = torch.arange(len(crow) - 1, device=crow.device).repeat_interleave(crow.diff())
    return blocks[row, col]


def refuse(name: str, what: str) -> NoReturn:
    """Raise RuntimeError: what cannot follow the native kernels, and what to do instead."""
    raise RuntimeError(
        f"{name}: x comes by {what}; expected a plain tensor, since the model was optimized for "
        "inference: export, trace or transform it before lada_ops.optimize, or call "
        "lada_ops.restore first"
    )


def refuse_exporting(name: str) -> None:
    """Raise RuntimeError in torch.export, which would stop at what torch.compile leaves out."""
    if torch.compiler.is_exporting():
        refuse(name, "torch.export")


def refuse_tracing(name: str, x: Tensor) -> None:
    """Raise RuntimeError where x is no plain tensor of numbers, or operations on it are recorded.

    Tracers, exporters and the transforms of `torch.func` see nothing of what native kernels read.
    """
    if is_tracing():
        what = "torch.jit.trace"
    elif type(x) not in (Tensor, nn.Parameter):
        what = f"a {type(x).__name__}"
    elif is_functorch_wrapped_tensor(x) or is_functionaltensor(x):
        what = "a transform of torch.func"
    elif _get_dispatch_mode(_TorchDispatchModeKey.PROXY) is not None:
        what = "make_fx"
    elif forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        what = "forward-mode differentiation"
    else:
        return
    refuse(name, what)


def inference_input(name: str, x: Tensor, features: int) -> Tensor:
    """x (..., features) as the native kernels can read it. Raises where they cannot."""
    refuse_tracing(name, x)
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
    """The weights of linears that share x, side by side; multiplied out if `dense`."""
    from lada_kernels.cpu.packing import pack

    biases = [None if s.bias is None else s.bias.detach() for s in sources]
    return pack([weight_of(s, dense) for s in sources], biases, dtype)


@torch.no_grad()
def weight_of(source: Source, dense: bool = False) -> Weight:
    """What a linear multiplies by, as the packing takes it."""
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
        return Weight(*size, sparse=weight.to_dense(), mask=block_mask(weight))
    low_rank, bsr = weight.low_rank, weight.bsr
    return Weight(*size, low_rank.u, low_rank.v, bsr.to_dense(), block_mask(bsr))


def block_mask(bsr: Bsr) -> Tensor:
    """Which blocks of the grid are stored, (out / block_rows, in / block_cols)."""
    counts = bsr.crow_indices.long().diff()
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    mask = torch.zeros(bsr.grid, dtype=torch.bool, device=counts.device)
    mask[rows, bsr.col_indices.long()] = True
    return mask
