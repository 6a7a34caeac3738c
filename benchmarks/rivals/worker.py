"""Process of a contestant, ``python -m benchmarks.rivals.worker``: JSON lines in and out.

The first line is a `Setup`. Then ``{"do": "bind", "inputs": FILE}`` sets the inputs, token ids
(batch, length) in a .npy file; ``{"do": "time", "calls": N, "warm": W}`` returns the seconds of N
calls after W untimed ones; ``{"do": "save", "file": FILE}`` writes the output of the last call.
Between two lines it waits on the pipe and uses no CPU.
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

PATIENCE = 2.0  # seconds that thread pools may spin after a call; GOMP's spins take 10 ms
WINDOW = 0.01


class Contest:
    """Operations of a contestant that is set up."""

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
        """Output of the last call as numpy in fp32, since numpy has no bf16."""
        output = self._output
        return output.float().numpy() if isinstance(output, torch.Tensor) else output

    def save(self, file: str) -> None:
        np.save(file, self.output())


def wait_until_idle() -> None:
    """Wait until no thread of this process runs.

    Thread pools spin for a while after a call, which speeds up the next call but would slow down
    the next contestant. Raises NotMeasured if they do not stop.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(WINDOW)
        if time.process_time() - before < 0.1 * WINDOW:
            return
    raise NotMeasured(f"its threads still run {PATIENCE:g} s after the last call")


def serve(orders: IO[str], answers: IO[str]) -> None:
    """Answer every line with ``{"done": ...}`` or ``{"failed": reason}``."""
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
    # the output of libraries must not mix with the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
