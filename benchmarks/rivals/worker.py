"""A contestant's process: ``python -m benchmarks.rivals.worker``, one JSON line in, one line out.

The first line is a `Setup`; then ``{"do": "bind", "inputs": FILE}`` takes token ids (batch, length)
from a .npy file, ``{"do": "time", "calls": N, "warm": W}`` answers with the seconds of N calls
after W untimed ones, and ``{"do": "save", "file": FILE}`` writes what the last call returned.
Between two lines it waits on the pipe and takes no CPU.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from .setup import Bind, Call, NotMeasured, Setup

PATIENCE = 2.0  # seconds that thread pools may spin after a call; GOMP's take some 10 ms
WINDOW = 0.01


class Contest:
    """What a contestant is asked to do, once it stands."""

    def __init__(self, bind: Bind) -> None:
        self._bind = bind
        self._call: Call | None = None
        self._output: Any = None

    def bind(self, inputs: str | Path) -> None:
        self._call = self._bind(np.load(inputs))

    def time(self, calls: int, warm: int = 0) -> list[float]:
        assert self._call is not None
        seconds = []
        for _ in range(warm + calls):
            start = time.perf_counter()
            self._output = self._call()
            seconds.append(time.perf_counter() - start)
        wait_until_idle()
        return seconds[warm:]

    def output(self) -> Any:
        """What the last call returned, as numpy and in fp32, which has no bf16 of its own."""
        output = self._output
        return output.float().numpy() if isinstance(output, torch.Tensor) else output

    def save(self, file: str) -> None:
        np.save(file, self.output())


def wait_until_idle() -> None:
    """Return when no thread of this process runs any more.

    Pools spin for a while after a call, which makes the next call faster and would slow whoever is
    timed next; so they may, but the answer waits. Raises NotMeasured if they never stop.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(WINDOW)
        if time.process_time() - before < 0.1 * WINDOW:
            return
    raise NotMeasured(f"its threads still run {PATIENCE:g} s after the last call")


def serve(orders: IO[str], answers: IO[str]) -> None:
    """Answer every order with ``{"done": ...}``, or ``{"failed": reason}`` and go on."""
    contest = None
    for line in orders:
        try:
            order = json.loads(line)
            if contest is None:
                contest, done = Contest(_start(Setup(**order))), None
            else:
                done = getattr(contest, order.pop("do"))(**order)
            answer = {"done": done}
        except NotMeasured as error:
            answer = {"failed": str(error)}
        except Exception as error:
            first, *_ = str(error).strip().splitlines() or [""]
            answer = {"failed": f"{type(error).__name__}: {first}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


def _start(setup: Setup) -> Bind:
    torch.set_num_threads(setup.threads)
    bind = setup.start()
    gc.collect()
    gc.disable()
    return bind


def main() -> None:
    # what libraries print must not get between the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
