"""`shrink`: removal of the rank slices and blocks that training has set to zero."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from ..formats.bsr import Bsr, split_blocks
from ..formats.low_rank import LowRank
from ..formats.sparse_low_rank import Format, SparseLowRank
from ..modules.checks import check_module
from ..modules.compressed_linear import CompressedLinear
from .plan import LayerPlan, Method
from .pretrained import compression_of, name_in, pretrained_models, record_compression
from .replacement import model_bytes, replaced_modules, to_module

_METHODS: dict[type, Method] = {
    LowRank: "low_rank",
    Bsr: "block_sparse",
    SparseLowRank: "sparse_low_rank",
}


@torch.no_grad()
def shrink(model: nn.Module) -> list[str]:
    """Drop the rank slices and blocks of zeros from a model's compressed linears, in place.

    The model computes the same. Its config, which `save_pretrained` writes, records the new
    formats, ranks and counts; errors measured before training become None. Single zeros within the
    remaining slices and blocks stay.
    Returns the names of the modules that became smaller.

    Raises ValueError, the model unchanged, where a linear that its config records is gone.
    """
    check_module("shrink", model, values=True)
    found = {n: m for n, m in model.named_modules() if isinstance(m, CompressedLinear)}
    smaller = {}
    for name, module in found.items():
        weight = module.format
        left = without_zeros(weight)
        if left.counts().stored_bytes < weight.counts().stored_bytes:
            smaller[name] = to_module(left, module)
    with replaced_modules(model, smaller):
        for owner in pretrained_models(model).values():
            _record(owner)
    return list(smaller)


def without_zeros(weight: Format) -> Format:
    """Weight without the ranks, and the packs of blocks, that are all zero.

    A sum loses a part that is all zero; a weight of zeros keeps one rank or pack.
    """
    if isinstance(weight, LowRank):
        return _without_ranks(weight)
    if isinstance(weight, Bsr):
        return _without_blocks(weight)
    low_rank, bsr = _without_ranks(weight.low_rank), _without_blocks(weight.bsr)
    if not bsr.values.any():
        return low_rank
    return SparseLowRank(low_rank, bsr) if low_rank.u.any() else bsr


def _without_ranks(weight: LowRank) -> LowRank:
    live = weight.u.any(0) & weight.v.any(1)
    live[0] |= not live.any()
    return LowRank(weight.u[:, live], weight.v[live])


def _without_blocks(weight: Bsr) -> Bsr:
    dense = weight.to_dense()
    keep = split_blocks(dense, weight.block).any(-1).any(-1)
    keep[0, 0] |= not keep.any()
    return Bsr.from_dense(dense, weight.block, keep).padded()


def _record(model: PreTrainedModel) -> None:
    recorded = compression_of(model)
    if recorded is None:
        return
    plan, report = recorded
    plans, layers = {}, {}
    for name, layer in report.layers.items():
        found = name_in(model, name, CompressedLinear)
        if found is None:
            raise ValueError(
                f"shrink: {type(model).__name__} has no compressed linear named {name!r}, which "
                "its config records; expected the model as compress or from_pretrained left it"
            )
        module = model.get_submodule(found)
        assert isinstance(module, CompressedLinear)
        plans[name] = plan_of(module)
        layers[name] = replace(
            layer,
            plan=plans[name],
            objective="training",
            weight_error=None,
            activation_error=None,
            compressed=module.counts(),
        )
    report = replace(report, layers=layers, model_bytes=model_bytes(model))
    record_compression(model, replace(plan, layers=plans), report)


def plan_of(module: CompressedLinear) -> LayerPlan:
    """Plan with the format, rank, block and density of a module."""
    weight = module.format
    low_rank = weight.low_rank if isinstance(weight, SparseLowRank) else weight
    bsr = weight.bsr if isinstance(weight, SparseLowRank) else weight
    return LayerPlan(
        _METHODS[type(weight)],
        module.in_features,
        module.out_features,
        rank=low_rank.rank if isinstance(low_rank, LowRank) else None,
        block=bsr.block if isinstance(bsr, Bsr) else None,
        density=bsr.density if isinstance(bsr, Bsr) else None,
    )
