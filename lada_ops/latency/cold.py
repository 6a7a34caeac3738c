"""A cold start: what a process that serves a model needs until its first answer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ColdStart:
    """Seconds, one after the other, of a process of its own, and the memory it took at most.

    imports: from its start, until torch, transformers and lada_ops are there. load: the model from
    its folder. optimize: what `lada_ops.optimize` did, 0 without it. first: the first answer; next:
    the second one.
    peak_bytes: resident at most. model_bytes: how much more that is than after the imports.
    gpu_bytes: the most that tensors took on the GPU.
    """

    imports: float
    load: float
    optimize: float
    first: float
    next: float
    peak_bytes: int
    model_bytes: int
    gpu_bytes: int


def cold_start(
    folder: str, optimized: str | None = None, size: tuple[int, int] = (8, 128), threads: int = 1
) -> ColdStart:
    """Start a process that answers twice, on the GPU if there is one.

    optimized: the dtype for `lada_ops.optimize`, None for the model as it is. size: batch and
    length of what it is asked. threads: of torch, on the CPU.

    Raises RuntimeError, with what it printed, if it fails.
    """
    # a clock that all processes share
    arguments = [str(time.monotonic()), folder, optimized or "", *map(str, (*size, threads))]
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, *arguments], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"cold_start of {folder}: {done.stderr.strip() or done.returncode}")
    return ColdStart(**json.loads(done.stdout.splitlines()[-1]))


def main(
    started: float, folder: str, optimized: str, batch: int, length: int, threads: int
) -> ColdStart:
    """What the process does."""
    clock = time.monotonic
    marks = [started]
    import torch

    from lada_ops.compression.folder import load_model
    from lada_ops.engine.optimize import optimize

    torch.set_num_threads(threads)
    marks.append(clock())
    before = _resident("VmRSS")
    model = load_model(folder)
    marks.append(clock())
    if optimized:
        optimize(model, getattr(torch, optimized))
    marks.append(clock())
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(1, vocabulary, (batch, length), device=model.device)
    with torch.inference_mode():
        for _ in range(2):
            model(ids, attention_mask=torch.ones_like(ids))[0].cpu()
            marks.append(clock())
    steps = [after - start for start, after in zip(marks, marks[1:], strict=False)]
    peak = _resident("VmHWM")
    gpu_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    imports, load, optimizing, first, next_one = steps
    sizes = peak, peak - before, gpu_bytes
    return ColdStart(imports, load, optimizing, first, next_one, *sizes)


def _resident(field: str) -> int:
    """Bytes that this process has in memory now (VmRSS), or had at most (VmHWM), on Linux.

    getrusage would count what the parent had when it started this one.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


if __name__ == "__main__":
    started, folder, optimized, *sizes = sys.argv[1:]
    print(json.dumps(asdict(main(float(started), folder, optimized, *map(int, sizes)))))
