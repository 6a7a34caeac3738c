"""Cases: an op with its sizes, weight format, epilogue, dtype and number of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ..engine.find import SupportedEncoder, find_encoders
from ..engine.gpu.fused import FusedLayer
from ..engine.gpu.parts import tuned_calls
from ..formats.grid import check_block
from ..modules.block_sparse_linear import BlockSparseLinear
from ..modules.low_rank_ffn import LowRankFFN
from ..modules.low_rank_linear import LowRankLinear
from ..modules.sparse_low_rank_linear import SparseLowRankLinear

if TYPE_CHECKING:
    from lada_kernels.table import Key
    from lada_kernels.weight_names import WeightName

_SHAPE = re.compile(r"(\d+)x(\d+):([^:]+)(?::([a-z]+))?")


@dataclass(frozen=True)
class Case:
    """One call of an op: ``x (tokens, k) -> y (tokens, n)``.

    weight: name as in `lada_kernels.weight_names`. epilogue: "plain" (bias), "fused" (bias and
    GELU; for a feed-forward, bias and residual) or "norm" (bias, residual, LayerNorm).

    Raises ValueError on sizes that don't fit, or an unknown weight, epilogue or dtype.
    """

    k: int
    n: int
    weight: str
    epilogue: str = "plain"
    tokens: int = 2048
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        from lada_kernels.table import DTYPES
        from lada_kernels.variants import EPILOGUES

        parts = self.parts
        for name, value, known in (
            ("epilogue", self.epilogue, EPILOGUES),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in known:
                raise ValueError(f"{self}: {name} {value!r}; expected one of {list(known)}")
        if min(self.k, self.n, self.tokens) < 1:
            raise ValueError(f"{self}: expected positive sizes")
        if self.n % parts.groups:
            raise ValueError(f"{self}: n {self.n}; expected a multiple of {parts.groups} groups")
        if parts.rows:
            check_block(str(self), (parts.rows, parts.cols), (self.n, self.k))

    @classmethod
    def parse(cls, text: str, tokens: int, dtype: str = "bfloat16") -> Case:
        """Case in its bucket, from ``KxN:WEIGHT[:EPILOGUE]`` such as "768x3072:r128:fused"."""
        from lada_kernels.weight_names import WeightName

        match = _SHAPE.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"shape {text!r}; expected such as 768x3072:r128 or 768x3072:128x16-d20:fused "
                "(in x out : weight : plain, fused or norm)"
            )
        k, n, weight, epilogue = match.groups()
        name = WeightName.parse(weight).name
        return cls(int(k), int(n), name, epilogue or "plain", _bucket(tokens), dtype)

    @property
    def stem(self) -> str:
        return self.parts.stem

    @property
    def parts(self) -> WeightName:
        """Numbers in the weight's name."""
        from lada_kernels.weight_names import WeightName

        return WeightName.parse(self.weight)

    @property
    def key(self) -> Key:
        """Key in the op's tuned table. Raises ValueError unless the case is that of its bucket."""
        from lada_kernels.table import Key
        from lada_kernels.weight_names import token_bucket

        bucket = self.parts.name
        if self.weight != bucket:
            raise ValueError(
                f"{self}: weight {self.weight!r}; expected that of its bucket, {bucket}"
            )
        if token_bucket(self.tokens) != self.tokens:
            raise ValueError(f"{self}: expected tokens a power of two")
        return Key(self.dtype, self.k, self.n, self.weight, self.epilogue)

    def __str__(self) -> str:
        shape = f"{self.k}x{self.n} {self.weight} {self.epilogue}"
        return f"{shape} {self.dtype}, {self.tokens} tokens"


class _Op(NamedTuple):
    """A case but for its tokens."""

    k: int
    n: int
    weight: str
    epilogue: str
    dtype: str


def cases_of(model: nn.Module, tokens: Iterable[int], dtype: str | None = None) -> list[Case]:
    """Distinct cases of the compressed modules in `model`, for every number of tokens.

    An encoder that `optimize` fuses on a GPU gives its fused ops (query, key and value merged, each
    with its epilogue), and then its linears one by one.

    dtype: compute dtype, by default each module's own; modules in one without kernels are skipped.
    """
    from lada_kernels.table import DTYPES

    ops: dict[_Op, None] = {}
    for encoder in find_encoders(model).values():
        if isinstance(encoder, SupportedEncoder):
            for layer in encoder.layers:
                ops |= dict.fromkeys(_fused_ops(FusedLayer(encoder, layer), dtype))
    feed_forward_linears: set[nn.Module] = set()
    for module in model.modules():
        if module in feed_forward_linears:
            continue
        if isinstance(module, LowRankFFN):
            feed_forward_linears |= {module.up, module.down}
        ops |= dict.fromkeys(_module_ops(module, dtype))
    buckets = dict.fromkeys(map(_bucket, tokens))
    return [
        Case(op.k, op.n, op.weight, op.epilogue, bucket, op.dtype)
        for bucket in buckets
        for op in ops
        if dtype is not None or op.dtype in DTYPES
    ]


def _fused_ops(layer: FusedLayer, dtype: str | None) -> list[_Op]:
    """Ops of a fused layer."""
    return [
        _Op(part.k, part.n, part.weight, part.epilogue, dtype or _name(part.dtype))
        for part in tuned_calls(layer)
    ]


def _module_ops(module: nn.Module, dtype: str | None) -> list[_Op]:
    """Ops of a module; a feed-forward may also run as two linears, so these are listed too."""
    from lada_kernels import weight_names as names

    if isinstance(module, LowRankFFN):
        up, down = module.up, module.down
        weight = names.ffn_name(up.rank, up.out_features, down.rank)
        # feed-forwards of models have a residual around them
        epilogue = "fused" if module.norm is None else "norm"
        (first,), (second,) = _module_ops(up, dtype), _module_ops(down, dtype)
        return [
            _Op(first.k, second.n, weight, epilogue, first.dtype),
            first._replace(epilogue="fused"),
            second._replace(epilogue=epilogue),
        ]
    if isinstance(module, LowRankLinear):
        weight = names.low_rank_name(module.rank)
    elif isinstance(module, BlockSparseLinear):
        weight = names.sparse_name(*module.format.block, module.format.density)
    elif isinstance(module, SparseLowRankLinear):
        bsr = module.format.bsr
        weight = names.sparse_low_rank_name(module.rank, *bsr.block, bsr.density)
    else:
        return []
    dtype = dtype or _name(next(module.parameters()).dtype)
    epilogue = "plain" if module.activation == "none" else "fused"
    return [_Op(module.in_features, module.out_features, weight, epilogue, dtype)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bucket(tokens: int) -> int:
    from lada_kernels.weight_names import token_bucket

    if tokens < 1:
        raise ValueError(f"tokens {tokens}; expected 1 or more")
    return token_bucket(tokens)
