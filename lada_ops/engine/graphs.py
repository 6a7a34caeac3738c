"""CUDA graphs of a whole model: recorded for some sizes, replayed for every batch that fits in."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ..checks import check_module
from .forward import ModelForward
from .kinds import MODELS

Outputs: TypeAlias = tuple[Tensor | None, ...]
Run: TypeAlias = Callable[[Tensor, Tensor, Tensor], Outputs]
"""input_ids, attention_mask and token_type_ids (batch, length) -> tensors (batch, ...)."""

LIMIT = 16
MOST_PADDING = 2  # a replay computes no more than twice the positions that were asked for
_WARM_UPS = 3  # what compiles and allocates at its first calls must not do so while recorded
_logger = logging.getLogger("lada_ops")


class Size(NamedTuple):
    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"

    def holds(self, batch: int, length: int) -> bool:
        fits = batch <= self.batch and length <= self.length
        return fits and self.batch * self.length <= MOST_PADDING * batch * length


class Recorder(Protocol):
    """Records what a call launches, on one device."""

    device: torch.device

    def record(self, call: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None], int]:
        """The outputs' memory, what computes them again, and the bytes that this keeps.

        Raises torch.OutOfMemoryError where there is not that much.
        """
        ...

    def fence(self) -> Callable[[], None]:
        """What makes the current stream, at that time, wait for what was launched up to now."""
        ...


class CudaRecorder:
    """Graphs that share their memory: of their replays no two may run at once."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()

    def record(self, call: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None], int]:
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()  # replays of what was dropped for this one may still run
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    call()
            torch.cuda.current_stream().wait_stream(side)
            before = torch.cuda.memory_allocated()
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=self.pool):
                    outputs = call()
            except Exception:
                torch.cuda.set_stream(stream)  # torch stays on its own where a capture fails
                raise
            return outputs, graph.replay, torch.cuda.memory_allocated() - before

    def fence(self) -> Callable[[], None]:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return lambda: torch.cuda.current_stream(self.device).wait_event(event)


@dataclass
class Recording:
    """A size's own inputs and outputs, and what computes the one from the other."""

    inputs: tuple[Tensor, ...]
    outputs: Outputs
    replay: Callable[[], None]
    nbytes: int


class Graphs:
    """The recordings of one model, no more than `limit`: the least recently used one goes first.

    Calls from several threads and streams take turns, and get tensors of their own.
    """

    def __init__(self, recorder: Recorder, limit: int = LIMIT) -> None:
        if limit < 1:
            raise ValueError(f"Graphs: limit {limit}; expected 1 or more")
        self.recorder, self.limit = recorder, limit
        self._recordings: OrderedDict[Size, Recording] = OrderedDict()
        self._lock = threading.Lock()
        self._wait: Callable[[], None] = lambda: None

    @property
    def device(self) -> torch.device:
        return self.recorder.device

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy of the model has to record its own

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def record(self, run: Run, sizes: Iterable[Size], pad_id: int) -> None:
        """Record `run` at each size that is not yet.

        Where memory runs out others are dropped; where that does not help, a warning says so.
        """
        # what inference mode makes could not be written to outside it
        with self._lock, torch.inference_mode(False), torch.no_grad():
            for size in sizes:
                if size in self._recordings:
                    continue
                while len(self._recordings) >= self.limit:
                    self._recordings.popitem(last=False)
                recording = self._recorded(run, size, pad_id)
                if recording is None:
                    _logger.warning("no memory for a graph of %s: it runs without one", size)
                else:
                    self._recordings[size] = recording

    def _recorded(self, run: Run, size: Size, pad_id: int) -> Recording | None:
        ids = torch.full(size, pad_id, dtype=torch.long, device=self.device)
        inputs = ids, torch.ones_like(ids), torch.zeros_like(ids)
        while True:
            try:
                return Recording(inputs, *self.recorder.record(lambda: run(*inputs)))
            except torch.OutOfMemoryError:
                if not self._recordings:
                    return None
                self._recordings.popitem(last=False)

    @torch.no_grad()
    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> Outputs | None:
        """The outputs (batch, ...) for ids (batch, length), or None where no recording holds them.

        What a mask hides, and the padding up to the recorded size, comes out as anything.
        """
        batch, length = input_ids.shape
        with self._lock:
            fitting = [size for size in self._recordings if size.holds(batch, length)]
            if not fitting:
                return None
            size = min(fitting, key=lambda size: size.batch * size.length)
            self._recordings.move_to_end(size)
            recording = self._recordings[size]
            self._wait()  # for those who copy what came before
            ids, mask, types = recording.inputs
            ids[:batch, :length] = input_ids
            mask.zero_()  # hides what another call left behind
            mask[:batch, :length] = True if attention_mask is None else attention_mask != 0
            types[:batch, :length] = 0 if token_type_ids is None else token_type_ids
            recording.replay()
            outputs = tuple(
                None if y is None else (y[:batch, :length] if y.ndim == 3 else y[:batch]).clone()
                for y in recording.outputs
            )
            self._wait = self.recorder.fence()
            return outputs

    @property
    def sizes(self) -> dict[str, int]:
        """What is recorded, such as "8x128", and the bytes that it keeps."""
        return {str(size): recording.nbytes for size, recording in self._recordings.items()}


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
