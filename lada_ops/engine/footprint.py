"""Sizes of an optimized model, as transformers tells them of others."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..modules.packed_linear import PackedLinear


class ParameterCount:
    """`PreTrainedModel.num_parameters` that counts packed weights, too."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        count = type(self.model).num_parameters(self.model, only_trainable, exclude_embeddings)
        packed = 0 if only_trainable else sum(p.source_parameters for p in _packed(self.model))
        return count + packed


class MemoryFootprint:
    """`PreTrainedModel.get_memory_footprint`, in bytes, each memory once, that of packed weights
    and their indices among it."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, return_buffers: bool = True) -> int:
        tensors = [*self.model.parameters(), *(self.model.buffers() if return_buffers else ())]
        storages = [t.untyped_storage() for t in tensors]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        packed = {id(a): a.nbytes for p in _packed(self.model) for a in p.packed.arrays}
        return sum(sizes.values()) + sum(packed.values())


def _packed(model: nn.Module) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]
