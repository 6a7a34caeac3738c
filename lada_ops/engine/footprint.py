"""Parameter count and memory footprint of an optimized model, packed weights included."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..modules.packed_linear import PackedLinear


class ParameterCount:
    """`PreTrainedModel.num_parameters`, with packed weights counted."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        count = type(self.model).num_parameters(self.model, only_trainable, exclude_embeddings)
        packed = 0 if only_trainable else sum(p.source_parameters for p in _packed(self.model))
        return count + packed


class MemoryFootprint:
    """`PreTrainedModel.get_memory_footprint`, with packed weights and their indices, in bytes.

    Memory that several tensors share is counted once.
    """

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
