"""What the compressed linears share: a bias, an epilogue, and the way back to `nn.Linear`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..counts import Counts
from ..formats import Format
from ..reference import ACTIVATIONS


class CompressedLinear(nn.Module):
    """Base of the modules that stand in for `nn.Linear`: ``act(x W^T + bias) + residual``.

    A subclass holds W's tensors under their names in the format (u, v, values, ...).
    """

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
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    @property
    def format(self) -> Format:
        """The weight's tensors, shared with the module; checked when read."""
        raise NotImplementedError

    def counts(self) -> Counts:
        """What the weight and the bias cost."""
        weight = self.format.counts()
        return weight if self.bias is None else weight + Counts.of(self.bias, flops_per_value=1)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """A new `nn.Linear` that holds the same weight, dense, and is frozen where this one is.

        The activation is not part of it.
        """
        weight = self.format.to_dense()
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device="meta",
            dtype=weight.dtype,
        )
        factors = [p for name, p in self.named_parameters() if name != "bias"]
        linear.weight = nn.Parameter(weight, any(p.requires_grad for p in factors))
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
