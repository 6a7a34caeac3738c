"""A whole BERT encoder in one native call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import native
from .packed import PackedLinear

Norm = tuple[np.ndarray, np.ndarray, float]
_FAR = 1 << 40  # farther than any two tokens are apart


@dataclass(frozen=True)
class PackedLayer:
    """``x = LN(x + out(attention(qkv(x))))``, then ``x = LN(x + down(act(up(x))))``.

    Where norms come first: ``x = x + out(attention(qkv(LN(x))))``, then
    ``x = x + down(act(up(LN(x))))``.

    qkv holds the columns of queries, keys and values one behind the other. Norms: weight and bias
    (features,), fp32 and contiguous, and eps. attention_norm: between attention and `up`.
    output_norm: after `down`. input_norm: where norms come first, before attention; None is none.
    gated: ``act(a) * b``, with a and b the halves of what `up` gives, in place of ``act(up(x))``.
    angles: (positions, features / heads), cosines and then sines by which the halves of queries and
    keys are turned (rotary positions), fp32 and contiguous; None turns nothing.
    window: how far from a query the keys are that it sees; None is any.
    """

    qkv: PackedLinear
    out: PackedLinear
    up: PackedLinear
    down: PackedLinear
    attention_norm: Norm
    output_norm: Norm | None
    activation: str
    input_norm: Norm | None = None
    gated: bool = False
    angles: np.ndarray | None = None
    window: int | None = None

    @property
    def norms_first(self) -> bool:
        return self.output_norm is None

    def struct(self) -> native.Layer:
        activation, gate = ("none", self.activation) if self.gated else (self.activation, "none")
        return native.Layer(
            self.qkv.struct(),
            self.out.struct(),
            self.up.struct(activation),
            self.down.struct(),
            native.norm_struct(self.input_norm),
            native.norm_struct(self.attention_norm),
            native.norm_struct(self.output_norm),
            None if self.angles is None else self.angles.ctypes.data,
            _FAR if self.window is None else self.window,
            native.ACTIVATIONS[gate],
        )


class PackedEncoder:
    """Layers of one size and order of norms, with `heads` heads each; scale multiplies the scores.

    bias: what is added to them then, by head and by how far a key is behind a query:
    (heads, 2 * reach) fp32, contiguous, distance 0 at `reach`; None adds nothing. `reach_for` tells
    what a sequence needs.
    """

    def __init__(
        self,
        layers: Sequence[PackedLayer],
        heads: int,
        scale: float,
        bias: np.ndarray | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.heads, self.scale, self.bias = heads, scale, bias
        self._structs: Any = None

    @property
    def longest(self) -> int | None:
        """The longest sequence that bias and angles are there for; None is any."""
        longest = [len(layer.angles) for layer in self.layers if layer.angles is not None]
        if self.bias is not None:
            longest.append(self.bias.shape[1] // 2 - reach_for(0))
        return min(longest, default=None)

    @property
    def by_position(self) -> bool:
        """Whether it makes a difference how far apart two tokens are."""
        far = any(x.angles is not None or x.window is not None for x in self.layers)
        return far or self.bias is not None

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
        return self.__dict__ | {"_structs": None}  # a copy has arrays of its own

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
            bias, reach = self.bias.ctypes.data, self.bias.shape[1] // 2
        norms_first = self.layers[0].norms_first
        sizes = end - begin, self.heads, norms_first, self.features, self.scale
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
    return length + 32  # keys are taken by 32, which looks past the last ones
