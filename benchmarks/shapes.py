"""Shapes of the benchmarks: BERT-base's linears and feed-forward, token counts and ratios.

Weights are random and show speed, not quality. Their sizes are those that `lada_ops.plan` gives for
the ratio, indices included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lada_ops
from lada_ops import Bsr, LowRank, SparseLowRank
from lada_ops.approximation.blocks import prune_blocks
from lada_ops.compression.plan import CompressionPlan, LayerPlan, Method
from lada_ops.compression.replacement import to_module
from lada_ops.formats.sparse_low_rank import Format
from lada_ops.latency import Candidate

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32

BERT_LINEARS = ((768, 768), (768, 3072), (3072, 768))  # (in, out)
BERT_ENCODER_ELEMENTS = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
# most tokens at which it matters if the weight is cold; beyond, arithmetic takes longer
COLD_TOKENS = 128


class LinearCase(NamedTuple):
    """One linear, compressed `ratio` times, applied to `tokens` rows."""

    in_features: int
    out_features: int
    tokens: int
    ratio: float

    def __str__(self) -> str:
        return f"{self.in_features}-{self.out_features} M={self.tokens} {self.ratio:g}x"

    @property
    def copies(self) -> int:
        """Number of weights of this shape in the encoder of a BERT-base, 1 beyond COLD_TOKENS.

        Rotating through them leaves every format as cold as it would be in the model.
        """
        if self.tokens > COLD_TOKENS:
            return 1
        return max(1, BERT_ENCODER_ELEMENTS // (self.in_features * self.out_features))

    def weight(self, method: Method) -> Format:
        """A random weight (out, in) of the size that the ratio allows."""
        linear = nn.Sequential(nn.Linear(self.in_features, self.out_features, device="meta"))
        layers = lada_ops.plan(linear, self.ratio, method, layers="").layers
        return random_format(next(iter(layers.values())))


class FfnCase(NamedTuple):
    """The two linears of a feed-forward block, compressed `ratio` times, on `tokens` rows."""

    features: int
    hidden: int
    tokens: int
    ratio: float

    def __str__(self) -> str:
        return f"{self.features}-{self.hidden}-{self.features} M={self.tokens} {self.ratio:g}x"

    @property
    def up(self) -> LinearCase:
        return LinearCase(self.features, self.hidden, self.tokens, self.ratio)

    @property
    def down(self) -> LinearCase:
        return LinearCase(self.hidden, self.features, self.tokens, self.ratio)

    @property
    def copies(self) -> int:
        """Number of feed-forwards, as `LinearCase.copies`."""
        return max(1, self.up.copies // 2)


class ModelCase(NamedTuple):
    """A model with the batch size and length of its inputs."""

    model: str
    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.model} {self.batch}x{self.length}"


LINEARS = [
    LinearCase(*shape, tokens, ratio)
    for shape in BERT_LINEARS
    for tokens in (16, 128, 1024)
    for ratio in (2.5, 5.0, 10.0)
]
QUICK_LINEARS = [LinearCase(128, 256, 8, 2.5)]

FFNS = [
    FfnCase(768, 3072, tokens, ratio) for tokens in (16, 128, 1024) for ratio in (2.5, 5.0, 10.0)
]
QUICK_FFNS = [FfnCase(128, 256, 8, 2.5)]

ON_GPU = DEVICE.type == "cuda"
BUCKETS = [(1, 16), (1, 128), (8, 128), (32, 128)]
if ON_GPU:
    BUCKETS = [(batch, length) for batch in (1, 8, 32, 128) for length in (32, 128, 384, 512)]
MODELS = [
    ModelCase(model, *bucket)
    for model in ("bert_base", *(["bert_large"] if ON_GPU else []), "minilm")
    for bucket in BUCKETS
]
QUICK_MODELS = [ModelCase("tiny", 2, 8)]
MODEL_RATIOS = (2.5, 5.0, 10.0)
PEER_RATIO = 5.0

Op = Callable[..., Tensor]


def random_format(plan: LayerPlan) -> Format:
    """Random weight of the format, rank, block and density in `plan`."""
    out, cols = plan.out_features, plan.in_features

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=DTYPE) / shape[-1] ** 0.5

    if plan.format == "low_rank":
        assert plan.rank is not None
        return LowRank(normal(out, plan.rank), normal(plan.rank, cols))
    assert plan.block is not None
    assert plan.density is not None
    bsr = prune_blocks(normal(out, cols), plan.block, plan.density)
    if plan.format == "block_sparse":
        return bsr
    assert plan.rank is not None
    return SparseLowRank(LowRank(normal(out, plan.rank), normal(plan.rank, cols)), bsr)


def fill_with_noise(model: nn.Module, plan: CompressionPlan) -> None:
    """Replace linears by compressed modules as `compress` does, with random weights."""
    for name, layer in plan.layers.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, to_module(random_format(layer), linear))


def linear_candidates(
    case: LinearCase, weight: Format, ops: dict[str, tuple[Op, Sequence[Tensor]]]
) -> list[Candidate]:
    """Candidates that apply `weight` to the same x (tokens, in) and bias, checked in fp64.

    ops: name -> op and its weight tensors, called as ``op(x, *tensors, bias)`` over copies.
    """
    x = torch.randn(case.tokens, case.in_features, device=DEVICE, dtype=DTYPE)
    bias = torch.randn(case.out_features, device=DEVICE, dtype=DTYPE)
    expected = F.linear(x.double(), in_fp64(weight), bias.double())

    def calls(op: Op, tensors: Sequence[Tensor]) -> list[Callable[[], Any]]:
        return [
            partial(op, x, *(tensor.clone() for tensor in tensors), bias)
            for _ in range(case.copies)
        ]

    return [Candidate(name, calls(*op), expected) for name, op in ops.items()]


def in_fp64(weight: Format) -> Tensor:
    """Dense weight (out, in) in fp64."""
    if isinstance(weight, SparseLowRank):
        return in_fp64(weight.low_rank) + in_fp64(weight.bsr)
    if isinstance(weight, LowRank):
        return weight.u.double() @ weight.v.double()
    return weight.to_dense().double()


def torch_bsr(bsr: Bsr) -> Tensor:
    """Block-sparse tensor of torch with the same weight, in blocks of 16 x 16.

    Square blocks are the only ones that torch multiplies by on the CPU as well as on CUDA.
    """
    return bsr.to_dense().to_sparse_bsr((16, 16))
