"""What is tuned: an op, its sizes, the format of its weight, what follows it, and the tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

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
    from lada_kernels.weight_names import Weight

Kind: TypeAlias = tuple[int, int, str, str, str]  # k, n, weight, epilogue, dtype
_SHAPE = re.compile(r"(\d+)x(\d+):([^:]+)(?::([a-z]+))?")


@dataclass(frozen=True)
class Case:
    """One entry of a table: ``x (tokens, k) -> y (tokens, n)``.

    weight: a name that tables have. epilogue: "plain" (bias alone), "fused" (a GELU; a
    feed-forward has that inside, and here a residual), or "norm" (residual, then LayerNorm).

    Raises ValueError on sizes that don't fit, an unknown epilogue or dtype, or a weight whose name
    is not that of its bucket.
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
        from lada_kernels.weight_names import Weight, token_bucket

        parsed = Weight.parse(self.weight)
        for what, got, known in (
            ("epilogue", self.epilogue, EPILOGUES),
            ("dtype", self.dtype, DTYPES),
            ("weight", self.weight, [parsed.name]),
        ):
            if got not in known:
                raise ValueError(f"{self}: {what} {got!r}; expected one of {list(known)}")
        if min(self.k, self.n, self.tokens) < 1 or token_bucket(self.tokens) != self.tokens:
            raise ValueError(f"{self}: expected positive sizes, and tokens a power of two")
        if self.n % parsed.groups:
            raise ValueError(f"{self}: n {self.n}; expected a multiple of {parsed.groups} groups")
        if parsed.rows:
            check_block(str(self), (parsed.rows, parsed.cols), (self.n, self.k))

    @classmethod
    def parse(cls, text: str, tokens: int, dtype: str = "bfloat16") -> Case:
        """Of ``KxN:WEIGHT`` or ``KxN:WEIGHT:EPILOGUE``, such as "768x3072:r128:fused"."""
        from lada_kernels.weight_names import Weight

        match = _SHAPE.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"shape {text!r}; expected such as 768x3072:r128 or 768x3072:128x16-d20:fused "
                "(in x out : weight : plain, fused or norm)"
            )
        k, n, weight, epilogue = match.groups()
        name = Weight.parse(weight).name
        return cls(int(k), int(n), name, epilogue or "plain", _bucket(tokens), dtype)

    @property
    def stem(self) -> str:
        return self.parts.stem

    @property
    def parts(self) -> Weight:
        from lada_kernels.weight_names import Weight

        return Weight.parse(self.weight)

    @property
    def key(self) -> Key:
        from lada_kernels.table import Key

        return Key(self.dtype, self.k, self.n, self.weight, self.epilogue)

    def __str__(self) -> str:
        shape = f"{self.k}x{self.n} {self.weight} {self.epilogue}"
        return f"{shape} {self.dtype}, {self.tokens} tokens"


def cases_of(model: nn.Module, tokens: Iterable[int], dtype: str | None = None) -> list[Case]:
    """The compressed modules of `model`, each kind once, for each number of tokens.

    An encoder that `optimize` fuses on a GPU comes as that calls it, query, key and value in one
    and with what follows each, and then linear by linear.

    dtype: that they are run in, by default their own; those of one without kernels are left out.
    """
    from lada_kernels.table import DTYPES

    found: dict[Kind, None] = {}
    for encoder in find_encoders(model).values():
        if isinstance(encoder, SupportedEncoder):
            for layer in encoder.layers:
                found |= dict.fromkeys(_fused_kinds(FusedLayer(encoder, layer), dtype))
    joined: set[nn.Module] = set()
    for module in model.modules():
        if module in joined:
            continue
        if isinstance(module, LowRankFFN):
            joined |= {module.up, module.down}
        found |= dict.fromkeys(_kinds(module, dtype))
    sizes = dict.fromkeys(map(_bucket, tokens))
    return [
        Case(k, n, weight, epilogue, m, run_in)
        for m in sizes
        for k, n, weight, epilogue, run_in in found
        if dtype is not None or run_in in DTYPES
    ]


def _fused_kinds(layer: FusedLayer, dtype: str | None) -> list[Kind]:
    """What the ops of a fused layer compute."""
    return [
        (part.k, part.n, part.weight, part.epilogue, dtype or _name(part.dtype))
        for part in tuned_calls(layer)
    ]


def _kinds(module: nn.Module, dtype: str | None) -> list[Kind]:
    """What a module computes; a feed-forward that is run in two launches is two linears as well."""
    from lada_kernels import weight_names as names

    if isinstance(module, LowRankFFN):
        up, down = module.up, module.down
        weight = names.ffn_name(up.rank, up.out_features, down.rank)
        # models that have a feed-forward have a residual around it
        epilogue = "fused" if module.norm is None else "norm"
        (first,), (second,) = _kinds(up, dtype), _kinds(down, dtype)
        return [
            (up.in_features, down.out_features, weight, epilogue, first[-1]),
            (*first[:3], "fused", first[-1]),
            (*second[:3], epilogue, second[-1]),
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
    own = _name(next(module.parameters()).dtype)
    epilogue = "plain" if module.activation == "none" else "fused"
    return [(module.in_features, module.out_features, weight, epilogue, dtype or own)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bucket(tokens: int) -> int:
    from lada_kernels.weight_names import token_bucket

    if tokens < 1:
        raise ValueError(f"tokens {tokens}; expected 1 or more")
    return token_bucket(tokens)
