"""Replacement of a model's modules: the module of a format, set in all places or in none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from ..formats.bsr import Bsr
from ..formats.low_rank import LowRank
from ..formats.sparse_low_rank import Format
from ..modules.block_sparse_linear import BlockSparseLinear
from ..modules.compressed_linear import CompressedLinear
from ..modules.low_rank_linear import LowRankLinear
from ..modules.sparse_low_rank_linear import SparseLowRankLinear


def to_module(weight: Format, like: nn.Linear | CompressedLinear) -> CompressedLinear:
    """Module for `weight` in the place of `like`, with its bias, mode and grad flags."""
    activation = getattr(like, "activation", "none")
    if isinstance(weight, LowRank):
        module = LowRankLinear.from_format(weight, like.bias, activation)
    elif isinstance(weight, Bsr):
        module = BlockSparseLinear.from_format(weight, like.bias, activation)
    else:
        module = SparseLowRankLinear.from_format(weight, like.bias, activation)
    trained = any(p.requires_grad for name, p in like.named_parameters() if name != "bias")
    module.train(like.training).requires_grad_(trained)
    if module.bias is not None and like.bias is not None:
        module.bias.requires_grad_(like.bias.requires_grad)
    if isinstance(like, CompressedLinear):
        module.keep_dense = like.keep_dense
    return module


@contextmanager
def replaced_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Context in which every named submodule is replaced; all are put back if its body raises."""
    new = {id(model.get_submodule(name)): module for name, module in modules.items()}
    # a module may go by several names, and is replaced under each
    everywhere = model.named_modules(remove_duplicate=False)
    before = {name: module for name, module in everywhere if id(module) in new}
    try:
        for name, module in before.items():
            model.set_submodule(name, new[id(module)])
        yield
    except BaseException:
        for name, module in before.items():
            model.set_submodule(name, module)
        raise


def model_bytes(model: nn.Module) -> int:
    """Bytes of all tensors of a model, each once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
