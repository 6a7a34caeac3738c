"""Counts of an encoder's GPU launches, on meta tensors that pose as CUDA tensors."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from lada_ops.engine.watch import Watch
from lada_ops.ops import (
    add_norm,
    block_sparse_linear,
    low_rank_ffn,
    low_rank_linear,
    sparse_low_rank_linear,
)

OPS = {
    op._op._qualname: op._op
    for op in (
        *(low_rank_linear, block_sparse_linear, sparse_low_rank_linear, low_rank_ffn),
        add_norm,
    )
}
NO_KERNELS = {"empty", "empty_like", "new_empty", "_unsafe_view", "detach"}


class Launches(TorchDispatchMode):
    """Counter of kernels by name: torch's own, and those that our ops launch."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        name = func._schema.name
        if name in OPS:
            with self:  # count the op's launches, not the op
                return OPS[name]._init_fn(*args, **(kwargs or {}))
        view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not view and name.removeprefix("aten::") not in NO_KERNELS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def launches_of(encoder: nn.Module, size: tuple[int, int, int], monkeypatch) -> Counter[str]:
    """Launches by kernel of an fp16 encoder on a GPU without tuned tables.

    size: of the hidden states, (batch, length, features).
    """
    from lada_kernels import tuning

    launches = Launches()

    def launch(kernel, *args, grid, warmup, **kwargs):
        launches.counts[kernel.__name__] += 1

    def attention(q, *args, **kwargs):
        launches.counts["attention"] += 1
        return torch.empty_like(q)

    with monkeypatch.context() as patch, torch.no_grad(), launches:
        patch.setattr(JITFunction, "run", launch)
        patch.setattr(F, "scaled_dot_product_attention", attention)
        patch.setattr(tuning, "unsupported", lambda index: None)
        patch.setattr(torch.cuda, "device_of", lambda x: nullcontext())
        patch.setattr(Watch, "changed", lambda self: False)  # the move to meta is a change
        encoder.half().to("meta")
        x = torch.empty(size, dtype=torch.half, device="meta")
        launches.counts.clear()
        patch.setattr(torch.Tensor, "is_cuda", property(lambda self: True), raising=False)
        encoder(x)
    return launches.counts
