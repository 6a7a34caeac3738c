"""Capture of an optimized model in CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..architectures.layers import MODELS
from ..modules.checks import check_module
from .forward import ModelForward
from .gpu.graphs import LIMIT, CudaRecorder, Graphs, Outputs, Size


def capture_graphs(
    model: nn.Module, sizes: Iterable[tuple[int, int]], limit: int = LIMIT
) -> dict[str, int]:
    """Record CUDA graphs of an optimized model for batches of these sizes: (batch, length).

    A call that fits into one, and is no less than half of it, is padded and replayed, which costs
    the time of a single launch; others, and those that ask for more than hidden states and the
    pooler's output, run as before. Call it before the model is served, and again for more sizes.

    Returns what is recorded, and the bytes that each keeps: no more than `limit`, of which the
    least recently used goes first, and no more than the memory holds.

    Raises ValueError on a model that `lada_ops.optimize` did not make ready on a GPU, or of a kind
    that it does not know, and on sizes that it has no positions for.
    """
    check_module("capture_graphs", model)
    found = [f for m in model.modules() if isinstance(f := vars(m).get("forward"), ModelForward)]
    if not found:
        raise ValueError(
            f"capture_graphs: {type(model).__name__} holds no model of {', '.join(MODELS)} that "
            "lada_ops.optimize made ready; expected one, or torch.compile of others"
        )
    (forward,) = found[:1]
    whole: Any = forward.model
    device = next(whole.parameters()).device
    if device.type != "cuda":
        raise ValueError(f"capture_graphs: the model is on {device}; expected a GPU")
    return record_graphs(forward, sizes, lambda: Graphs(CudaRecorder(device), limit))


def record_graphs(
    forward: ModelForward, sizes: Iterable[tuple[int, int]], make: Callable[[], Graphs]
) -> dict[str, int]:
    """`capture_graphs` of one model, in what it has or else in what `make` returns."""
    whole: Any = forward.model
    longest = _longest(whole)
    wanted = [Size(*size) for size in sizes]
    for size in wanted:
        if size.batch < 1 or not 1 <= size.length <= longest:
            raise ValueError(
                f"capture_graphs: size {size}; expected a batch of 1 or more and a length of 1 to "
                f"{longest}"
            )
    if forward.graphs is None:
        forward.graphs = make()

    def run(ids: Tensor, mask: Tensor, types: Tensor) -> Outputs:
        typed = {"token_type_ids": types} if "token_type_ids" in forward.kind.inputs else {}
        return forward.run(ids, mask, may_wait=False, **typed)

    forward.graphs.record(run, wanted, getattr(whole.config, "pad_token_id", None) or 0)
    return forward.graphs.sizes


def _longest(model: Any) -> int:
    """How many positions a model has."""
    positions = getattr(model.embeddings, "position_embeddings", None)
    if positions is None:
        return model.config.max_position_embeddings
    # RoBERTa and its kin count them from the one after the padding
    first = 0 if positions.padding_idx is None else positions.padding_idx + 1
    return positions.num_embeddings - first
