"""A whole BERT encoder in one native call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import native
from .packed import PackedLinear

Norm = tuple[Tensor, Tensor, float]


@dataclass(frozen=True)
class PackedLayer:
    """``x = LN(x + out(attention(qkv(x))))``, then ``x = LN(x + down(act(up(x))))``.

    qkv holds the columns of queries, keys and values one behind the other. Norms: weight and bias
    (features,), fp32 and contiguous, and eps.
    """

    qkv: PackedLinear
    out: PackedLinear
    up: PackedLinear
    down: PackedLinear
    attention_norm: Norm
    output_norm: Norm
    activation: str

    def struct(self) -> native.Layer:
        return native.Layer(
            self.qkv.struct(),
            self.out.struct(),
            self.up.struct(self.activation),
            self.down.struct(),
            native.norm_struct(self.attention_norm),
            native.norm_struct(self.output_norm),
        )


class PackedEncoder:
    """Layers of one size, with `heads` heads each; scale multiplies the scores.

    bias: what is added to them then, by head and by how far a key is behind a query:
    (heads, 2 * reach) fp32, contiguous, distance 0 at `reach`; None adds nothing. `reach_for` tells
    what a sequence needs.
    """

    def __init__(
        self, layers: Sequence[PackedLayer], heads: int, scale: float, bias: Tensor | None = None
    ) -> None:
        self.layers = tuple(layers)
        self.heads, self.scale, self.bias = heads, scale, bias
        self._structs: Any = None

    @property
    def longest(self) -> int | None:
        """The longest sequence that `bias` is wide enough for; None is any."""
        return None if self.bias is None else self.bias.shape[1] // 2 - reach_for(0)

    @property
    def features(self) -> int:
        return self.layers[0].out.out_features

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.layers[0].out.dtype

    @property
    def io_dtype(self) -> torch.dtype:
        """Of x."""
        return self.layers[0].out.io_dtype

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_structs": None}  # a copy has tensors of its own

    def run_(
        self,
        x: Tensor,
        starts: Tensor,
        layers: slice = slice(None),
        library: ctypes.CDLL | None = None,
    ) -> Tensor:
        """x (tokens, features) becomes the output of the given layers, in place; returns it.

        Operands are checked by the caller: on the CPU and contiguous, x of io_dtype, starts
        (sequences + 1,) int64: sequence i has the rows from starts[i] to starts[i + 1], no more of
        them than `longest`.

        Raises MemoryError where there is no memory for intermediate results.
        """
        if self._structs is None:
            self._structs = (native.Layer * len(self.layers))(*(x.struct() for x in self.layers))
        begin, end, _ = layers.indices(len(self.layers))
        first = ctypes.pointer(self._structs[begin])
        bias, reach = (None, 0)
        if self.bias is not None:
            bias, reach = self.bias.data_ptr(), self.bias.shape[1] // 2
        sizes = end - begin, self.heads, self.features, self.scale
        encoder = native.Encoder(first, *sizes, bias, reach)
        failed = (library or native.library()).lada_encoder(
            native.DTYPES[self.dtype],
            ctypes.byref(encoder),
            starts.data_ptr(),
            len(starts) - 1,
            x.data_ptr(),
            native.threads(),
        )
        if failed:
            raise MemoryError(f"encoder: no memory for {len(x)} tokens")
        return x


def reach_for(length: int) -> int:
    """How far a bias must reach either way for sequences of this length."""
    return length + 32  # keys are taken by 32 and queries by 8, which looks past the last ones
