"""CUDA graphs of a model: recorded for some batch sizes, replayed for every batch that fits."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

Outputs: TypeAlias = tuple[Tensor | None, ...]
Run: TypeAlias = Callable[[Tensor, Tensor, Tensor], Outputs]
"""input_ids, attention_mask and token_type_ids (batch, length) -> tensors (batch, ...)."""

LIMIT = 16
MOST_PADDING = 2  # a replay computes at most twice as many positions as the call has
_WARM_UPS = 3  # compilation and allocation at first calls must not happen in a capture
_logger = logging.getLogger("lada_ops")


class Size(NamedTuple):
    """Shape of a batch of sequences."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"

    def holds(self, batch: int, length: int) -> bool:
        """True if a batch fits, without more than `MOST_PADDING`."""
        fits = batch <= self.batch and length <= self.length
        return fits and self.batch * self.length <= MOST_PADDING * batch * length


class Recorder(Protocol):
    """Recorder of a call's kernel launches on one device."""

    device: torch.device

    def record(self, call: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None], int]:
        """Output tensors, a function that replays the launches into them, and the bytes held.

        Raises torch.OutOfMemoryError.
        """
        ...

    def fence(self) -> Callable[[], None]:
        """Function that makes the then current stream wait for all launches up to now."""
        ...


class CudaRecorder:
    """CUDA graphs that share a memory pool: no two of them may be replayed at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()

    def record(self, call: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None], int]:
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()  # replays of dropped graphs may still run in this pool
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
            except BaseException:
                torch.cuda.set_stream(stream)  # after a failed capture torch stays on the capture's
                raise
            return outputs, graph.replay, torch.cuda.memory_allocated() - before

    def fence(self) -> Callable[[], None]:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return lambda: torch.cuda.current_stream(self.device).wait_event(event)


@dataclass
class Recording:
    """Recorded graph of one size: its input and output tensors, and its replay."""

    inputs: tuple[Tensor, ...]
    outputs: Outputs
    replay: Callable[[], None]
    nbytes: int


class Graphs:
    """Recorded graphs of one model, at most `limit`: the least recently used is dropped first.

    Calls from several threads and streams take turns; each gets copies of the outputs.
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
        return type(None), ()  # graphs hold addresses: a copy of the model records its own

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def record(self, run: Run, sizes: Iterable[Size], pad_id: int) -> None:
        """Record `run` at each new size.

        If memory runs out, other graphs are dropped; if that does not help, a warning is logged.
        """
        # tensors created in inference mode could not be written to outside of it
        with self._lock, torch.inference_mode(False), torch.no_grad():
            for size in sizes:
                if size in self._recordings:
                    continue
                while len(self._recordings) >= self.limit:
                    self._recordings.popitem(last=False)
                recording = self._record(run, size, pad_id)
                if recording is None:
                    _logger.warning("no memory for a graph of %s: it runs without one", size)
                else:
                    self._recordings[size] = recording

    def _record(self, run: Run, size: Size, pad_id: int) -> Recording | None:
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
        """Outputs (batch, ...) for ids (batch, length), or None where no recorded size holds them.

        Outputs at positions that the mask hides are undefined.
        """
        batch, length = input_ids.shape
        with self._lock:
            fitting = [size for size in self._recordings if size.holds(batch, length)]
            if not fitting:
                return None
            size = min(fitting, key=lambda size: size.batch * size.length)
            self._recordings.move_to_end(size)
            recording = self._recordings[size]
            self._wait()  # for the last call's copies of the outputs
            ids, mask, types = recording.inputs
            ids[:batch, :length] = input_ids
            mask.zero_()  # hides the last call's tokens
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
        """Recorded sizes, such as "8x128", and the bytes that each graph holds."""
        return {str(size): recording.nbytes for size, recording in self._recordings.items()}
