"""Base of the compressed linears: bias, epilogue, conversion to `nn.Linear`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..formats.counts import Counts
from ..formats.sparse_low_rank import Format
from ..host.user_tables import use_user_tables
from ..ops.dispatch import needs_grad
from ..ops.reference import ACTIVATIONS
from .dense_copy import DenseCopy, KeepDense, check_keep_dense
from .dense_weight import DenseWeight, not_written


def copied(factor: Tensor) -> nn.Parameter:
    """Contiguous copy, laid out as one loaded from a file, so that both compute the same bits."""
    return nn.Parameter(factor.detach().clone(memory_format=torch.contiguous_format))


class CompressedLinear(nn.Module):
    """Base of the modules that replace `nn.Linear`: ``act(x W^T + bias) + residual``.

    A subclass holds W's tensors under their names in the format (u, v, values, ...).

    keep_dense: keep the dense W as well, in GPU memory only, for the token counts at which a dense
    product is faster: True, False, or by default "auto", where the tuned table of this GPU has
    measured one that is. Nothing is kept on the CPU, in training, under autocast, in torch.compile
    or in a CUDA graph.
    """

    keep_dense: KeepDense = "auto"
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        activation: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"{type(self).__name__}: activation {activation!r}; "
                f"expected one of {list(ACTIVATIONS)}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.activation = activation
        self._dense_copy = DenseCopy()
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Initialise every parameter and buffer as in a new module."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def format(self) -> Format:
        """Weight in its format, sharing the module's tensors; checked when read."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """Dense W (out, in) for code that reads it, such as `nn.TransformerEncoder` and peft.

        It is computed anew by each operation on it, and differentiable; it is no parameter, and in
        no state dict. Writes into it raise RuntimeError.
        """
        if torch.compiler.is_compiling():
            return self._compute_dense()
        factors, shape = self._factors(), (self.out_features, self.in_features)
        trained = needs_grad(*factors)
        return DenseWeight(self, self._compute_dense, shape, factors[0], trained)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        # peft assigns a module's weight to itself when it has merged an adapter
        if not (isinstance(value, DenseWeight) and value.owner is self):
            raise not_written(self, "__set__")

    def _compute_dense(self) -> Tensor:
        """Dense W (out, in), differentiable."""
        raise NotImplementedError

    def counts(self) -> Counts:
        """Cost of weight and bias: values, bytes and FLOPs."""
        weight = self.format.counts()
        return weight if self.bias is None else weight + Counts.of(self.bias, flops_per_value=1)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the kept dense weight; 0 where none is kept."""
        return self._dense_copy.nbytes

    def dense_for(self, x: Tensor) -> Tensor | None:
        """Dense W (out, in) as an option for the op, or None where it is not kept."""
        # compiled code would go on with an outdated copy
        if not x.is_cuda or torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda"):
            return None
        factors = self._factors()
        if needs_grad(*factors) or not self._keeps_dense(x):
            self._dense_copy.drop()
            return None
        # a captured graph would, too, and read the memory of a freed copy
        if torch.cuda.is_current_stream_capturing():
            return None
        return self._dense_copy.get([*factors, *self.buffers()], self._dense_weight)

    def _keeps_dense(self, x: Tensor) -> bool:
        if self.keep_dense != "auto":
            return self.keep_dense
        from lada_kernels.tuning import dense_is_ever_fastest

        use_user_tables()
        size = x.dtype, self.in_features, self.out_features
        return dense_is_ever_fastest(*self._table_names(), *size, x.get_device())

    @torch.no_grad()
    def _dense_weight(self) -> Tensor:
        return self.format.to_dense()

    def _factors(self) -> list[Tensor]:
        return [p for name, p in self.named_parameters() if name != "bias"]

    def _table_names(self) -> tuple[str, str]:
        """Name of the op, and of the weight in tuned tables."""
        raise NotImplementedError

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """New `nn.Linear` with the dense weight, frozen as this module; without the activation."""
        weight = self.format.to_dense()
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device="meta",
            dtype=weight.dtype,
        )
        linear.weight = nn.Parameter(weight, any(p.requires_grad for p in self._factors()))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return linear.train(self.training)

    def _set_bias(self, bias: Tensor | None, weight: Tensor) -> None:
        if bias is None:
            self.bias = None
            return
        if bias.shape != (self.out_features,):
            raise ValueError(
                f"{type(self).__name__}: bias {tuple(bias.shape)}; expected ({self.out_features},)"
            )
        if (bias.dtype, bias.device) != (weight.dtype, weight.device):
            raise TypeError(
                f"{type(self).__name__}: bias is {bias.dtype} on {bias.device}; "
                f"expected {weight.dtype} on {weight.device}, as the weight"
            )
        self.bias = nn.Parameter(bias.detach().clone())

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        text += f"{self._format_repr()}, bias={self.bias is not None}"
        return text if self.activation == "none" else f"{text}, activation={self.activation!r}"

    def _format_repr(self) -> str:
        raise NotImplementedError


def keep_dense(model: nn.Module, keep: KeepDense) -> nn.Module:
    """Set `CompressedLinear.keep_dense` on all compressed linears of `model`; returns `model`.

    Raises ValueError on anything but True, False and "auto".
    """
    check_keep_dense("keep_dense", keep)
    for module in model.modules():
        if isinstance(module, CompressedLinear):
            module.keep_dense = keep
            module._dense_copy.drop()
    return model
