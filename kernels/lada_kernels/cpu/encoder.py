"""Transformer encoder on packed weights, all layers in one native call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import abi, native
from .packed import PackedWeight

NormArrays = tuple[np.ndarray, np.ndarray, float]
"""LayerNorm's weight and bias (features,), fp32 and contiguous, and eps."""
_UNLIMITED = 1 << 40  # longer than any sequence


@dataclass(frozen=True)
class PackedLayer:
    """Encoder layer; linears and norms are named as in BERT.

    Post-norm: ``x = LN(x + attention_output(attention(qkv(x))))``, then
    ``x = LN(x + output(act(intermediate(x))))``.
    Pre-norm, where output_norm is None: ``x = x + attention_output(attention(qkv(LN(x))))``, then
    ``x = x + output(act(intermediate(LN(x))))``.

    qkv: columns of queries, then keys, then values.
    attention_norm: the norm between attention and feed-forward, in either order.
    input_norm: pre-norm only, the norm before attention; None normalises nothing.
    gated: gated linear unit, ``act(a) * b`` with ``[a | b] = intermediate(x)`` in place of
    ``act(intermediate(x))``.
    cos_sin: rotary position embedding (RoPE), (positions, features / heads): cosines, then sines,
    fp32 and contiguous; None for none.
    window: largest distance between a query and a key that it attends to; None is unlimited.
    """

    qkv: PackedWeight
    attention_output: PackedWeight
    intermediate: PackedWeight
    output: PackedWeight
    attention_norm: NormArrays
    output_norm: NormArrays | None
    activation: str
    input_norm: NormArrays | None = None
    gated: bool = False
    cos_sin: np.ndarray | None = None
    window: int | None = None

    @property
    def pre_norm(self) -> bool:
        """True if LayerNorm precedes attention and feed-forward."""
        return self.output_norm is None

    def struct(self) -> abi.Layer:
        """Structure that points into the arrays, which must outlive it."""
        activation, gate = ("none", self.activation) if self.gated else (self.activation, "none")
        return abi.Layer(
            self.qkv.struct(),
            self.attention_output.struct(),
            self.intermediate.struct(activation),
            self.output.struct(),
            abi.layer_norm(self.input_norm),
            abi.layer_norm(self.attention_norm),
            abi.layer_norm(self.output_norm),
            None if self.cos_sin is None else self.cos_sin.ctypes.data,
            _UNLIMITED if self.window is None else self.window,
            abi.ACTIVATIONS[gate],
        )


class PackedEncoder:
    """Encoder of layers that have the same size and order of norms.

    scale: factor of the attention scores, before position_bias is added.
    position_bias: relative position bias (heads, 2 * reach), fp32 and contiguous: column
    ``reach + key - query``; None for none. `reach_for` gives the reach that a length needs.
    """

    def __init__(
        self,
        layers: Sequence[PackedLayer],
        heads: int,
        scale: float,
        position_bias: np.ndarray | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.heads, self.scale, self.position_bias = heads, scale, position_bias
        self._structs: Any = None

    @property
    def max_length(self) -> int | None:
        """Longest sequence that position_bias and cos_sin suffice for; None is unlimited."""
        lengths = [len(layer.cos_sin) for layer in self.layers if layer.cos_sin is not None]
        if self.position_bias is not None:
            lengths.append(self.position_bias.shape[1] // 2 - reach_for(0))
        return min(lengths, default=None)

    @property
    def position_dependent(self) -> bool:
        """True if the output depends on the distances between tokens."""
        distances = any(x.cos_sin is not None or x.window is not None for x in self.layers)
        return distances or self.position_bias is not None

    @property
    def features(self) -> int:
        return self.layers[0].attention_output.out_features

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.layers[0].attention_output.dtype

    @property
    def io_dtype(self) -> torch.dtype:
        """Dtype of x."""
        return self.layers[0].attention_output.io_dtype

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_structs": None}  # a copy has arrays of its own

    def run_(
        self,
        x: Tensor,
        starts: Tensor,
        layers: slice = slice(None),
        library: ctypes.CDLL | None = None,
    ) -> Tensor:
        """Replace x (tokens, features) by the output of the given layers; return it.

        Operands are checked by the caller: on the CPU and contiguous, x of io_dtype, starts
        (sequences + 1,) int64. Sequence i is rows starts[i] to starts[i + 1], at most `max_length`.

        Raises MemoryError where intermediate results do not fit into memory.
        """
        if self._structs is None:
            self._structs = (abi.Layer * len(self.layers))(*(x.struct() for x in self.layers))
        begin, end, _ = layers.indices(len(self.layers))
        first = ctypes.pointer(self._structs[begin])
        bias, reach = (None, 0)
        if self.position_bias is not None:
            bias, reach = self.position_bias.ctypes.data, self.position_bias.shape[1] // 2
        pre_norm = self.layers[0].pre_norm
        sizes = end - begin, self.heads, pre_norm, self.features, self.scale
        encoder = abi.Encoder(first, *sizes, bias, reach)
        failed = (library or native.library()).lada_encoder(
            abi.DTYPES[self.dtype],
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
    """Reach of a position_bias for this length: the last panel of keys is read whole."""
    return length + abi.MAX_NR
