"""Peers of whole models in `bench_bert`: other methods that make a BERT faster.

onnxruntime, OpenVINO and int8 dynamic quantization are in `benchmarks.rivals`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lada_ops
from benchmarks.shapes import torch_bsr
from benchmarks.suite.peers import prune_2to4
from lada_ops import BlockSparseLinear, LowRankLinear
from lada_ops.architectures.encoders import encoder_linears
from lada_ops.tune.device import reason

BSR_TOKENS = 1024  # most tokens on a CPU, where it is eight times as slow as dense


class Missing(Exception):
    """Error of a peer that cannot run here, with the reason."""


class Peer(NamedTuple):
    """A timed model, and the reference whose outputs it must give."""

    model: nn.Module
    reference: nn.Module


def peers(
    dense: nn.Module,
    low_rank: nn.Module,
    block_sparse: nn.Module,
    ratio: float,
    inputs: Mapping[str, Tensor],
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Peers by name, and the reasons of the missing ones.

    low_rank, block_sparse: `dense` compressed `ratio` times. inputs: of the first call of every
    peer, which compiles it; a peer that fails is missing.
    """
    tokens = inputs["input_ids"].numel()
    makers: Mapping[str, Callable[[], Peer]] = {
        "dense, compiled": lambda: Peer(compiled(dense), dense),
        "dense, optimized": lambda: Peer(lada_ops.optimize(copy.deepcopy(dense)), dense),
        f"two products {ratio:g}x, compiled": lambda: Peer(
            compiled(two_products(low_rank)), low_rank
        ),
        f"smaller dense {ratio:g}x, compiled": lambda: _compiled(smaller(dense, ratio)),
        f"torch BSR {ratio:g}x": lambda: Peer(sparse_tensors(block_sparse, tokens), block_sparse),
        "2:4": lambda: two_to_four(dense),
    }
    found, missing = {}, {}
    for name, make in makers.items():
        try:
            peer = make()
            with torch.no_grad():
                peer.model(**inputs)
            found[name] = peer
        except Missing as why:
            missing[name] = str(why)
        except Exception as error:  # of many types, from compilers and drivers
            missing[name] = reason(error)
    return found, missing


def compiled(model: nn.Module) -> nn.Module:
    """torch.compile with static shapes and its fastest options.

    On a GPU autotuned kernels and CUDA graphs; on a CPU frozen weights, which it packs.
    """
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # else a pool of processes competes with the timed model
    if _on_gpu(model):
        return _module(torch.compile(model, dynamic=False, mode="max-autotune"))
    return _module(torch.compile(model, dynamic=False, options={"freezing": True}))


def two_products(model: nn.Module) -> nn.Module:
    """Copy of `model` whose low-rank linears are two `nn.Linear` in sequence."""
    model = copy.deepcopy(model)
    for name, linear in _of_type(model, LowRankLinear).items():
        down, up = nn.Linear(linear.in_features, linear.rank, bias=False), _like(linear)
        up.weight, up.bias, down.weight = linear.u, linear.bias, linear.v
        model.set_submodule(name, nn.Sequential(down, up))
    return model.eval()


def smaller(model: nn.Module, ratio: float) -> nn.Module:
    """Copy of `model` with fewer heads and a narrower feed-forward, 1 / ratio of the weights.

    The share of heads is 1 / ratio, rounded; the feed-forward takes the remaining weights.
    """
    model = copy.deepcopy(model)
    config: Any = model.config
    features, heads = config.hidden_size, max(1, round(config.num_attention_heads / ratio))
    kept = heads * features // config.num_attention_heads
    weights = 4 * features**2 + 2 * features * config.intermediate_size
    hidden = int((weights / ratio - 4 * features * kept) / (2 * features)) // 8 * 8
    for name, linear in encoder_linears(model).items():
        of_attention = name.endswith(("query", "key", "value", "attention.output.dense"))
        width = kept if of_attention else hidden
        narrow_in = name.endswith("output.dense")
        rows, columns = (features, width) if narrow_in else (width, features)
        cut = nn.Linear(columns, rows)
        cut.weight.data = linear.weight.detach()[:rows, :columns].clone()
        cut.bias.data = linear.bias.detach()[:rows].clone()
        model.set_submodule(name, cut)
    return model.eval()


@torch.no_grad()
def sparse_tensors(model: nn.Module, tokens: int) -> nn.Module:
    """Copy of `model` whose block-sparse linears multiply by torch's sparse tensors.

    Raises Missing on a CPU where it would take minutes.
    """
    if not _on_gpu(model) and tokens > BSR_TOKENS:
        raise Missing(f"on a CPU it takes minutes for more than {BSR_TOKENS:,} tokens")
    model = copy.deepcopy(model)
    for name, linear in _of_type(model, BlockSparseLinear).items():
        model.set_submodule(name, _TensorLinear(torch_bsr(linear.bsr), linear))
    return model.eval()


def two_to_four(model: nn.Module) -> Peer:
    """Copy of `model` pruned 2:4, in the format of sparse tensor cores.

    Raises Missing without a GPU.
    """
    if not _on_gpu(model):
        raise Missing("it needs the tensor cores of a GPU")
    from torch.sparse import to_sparse_semi_structured

    pruned = copy.deepcopy(model)
    for linear in encoder_linears(pruned).values():
        linear.weight.data = prune_2to4(linear.weight.data)
    sparse = copy.deepcopy(pruned)
    for name, linear in encoder_linears(sparse).items():
        weight = to_sparse_semi_structured(linear.weight.data)
        sparse.set_submodule(name, _TensorLinear(weight, linear))
    return Peer(sparse.eval(), pruned)


class _TensorLinear(nn.Module):
    """``x W^T + bias`` with a weight W that is no parameter."""

    def __init__(self, weight: Tensor, like: Any) -> None:
        super().__init__()
        self.weight, self.bias = weight, like.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def _compiled(model: nn.Module) -> Peer:
    return Peer(compiled(model), model)


def _module(model: Any) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model


def _like(linear: LowRankLinear) -> nn.Linear:
    return nn.Linear(linear.rank, linear.out_features, bias=linear.bias is not None)


def _of_type(model: nn.Module, kind: type[Any]) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, kind)}


def _on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda
