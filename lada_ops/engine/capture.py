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
    """Capture an optimized model in CUDA graphs for batches of these sizes: (batch, length).

    A call that fits into a graph, and fills at least half of it, is padded and replayed at the cost
    of a single launch. Other calls, and calls for more than hidden states and the pooler's output,
    run without graphs. Call it before the model is served, and again for more sizes.

    Returns the captured sizes, such as "8x128", and the bytes that each graph holds. There are at
    most `limit` graphs, and no more than memory has room for; the least recently used is dropped.

    Raises ValueError on a model that `lada_ops.optimize` did not prepare on a GPU, on an
    unsupported architecture, and on sizes beyond the model's positions.
    """
    check_module("capture_graphs", model)
    forwards = [f for m in model.modules() if isinstance(f := vars(m).get("forward"), ModelForward)]
    if not forwards:
        raise ValueError(
            f"capture_graphs: {type(model).__name__} holds no model of {', '.join(MODELS)} that "
            "lada_ops.optimize made ready; expected one, or torch.compile of others"
        )
    forward = forwards[0]
    device = next(forward.model.parameters()).device
    if device.type != "cuda":
        raise ValueError(f"capture_graphs: the model is on {device}; expected a GPU")
    return record_graphs(forward, sizes, lambda: Graphs(CudaRecorder(device), limit))


def record_graphs(
    forward: ModelForward, sizes: Iterable[tuple[int, int]], new_graphs: Callable[[], Graphs]
) -> dict[str, int]:
    """Record graphs of one model; `new_graphs` is called if it has none yet.

    Returns and raises as `capture_graphs`.
    """
    model: Any = forward.model
    longest = _longest(model)
    wanted = [Size(*size) for size in sizes]
    for size in wanted:
        if size.batch < 1 or not 1 <= size.length <= longest:
            raise ValueError(
                f"capture_graphs: size {size}; expected a batch of 1 or more and a length of 1 to "
                f"{longest}"
            )
    if forward.graphs is None:
        forward.graphs = new_graphs()

    def run(ids: Tensor, mask: Tensor, types: Tensor) -> Outputs:
        typed = {"token_type_ids": types} if "token_type_ids" in forward.architecture.inputs else {}
        return forward.run(ids, mask, may_sync=False, **typed)

    forward.graphs.record(run, wanted, getattr(model.config, "pad_token_id", None) or 0)
    return forward.graphs.sizes


def _longest(model: Any) -> int:
    """Number of positions of a model."""
    positions = getattr(model.embeddings, "position_embeddings", None)
    if positions is None:
        return model.config.max_position_embeddings
    # RoBERTa's positions start after the one of the padding token
    first = 0 if positions.padding_idx is None else positions.padding_idx + 1
    return positions.num_embeddings - first
