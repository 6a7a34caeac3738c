"""Cold start: time and memory of a new process until a model's first output."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ColdStart:
    """Seconds of the consecutive phases of a new process, and its peak memory.

    imports: process start to the end of importing torch, transformers and lada_ops. load: loading
    the model from its folder. optimize: `lada_ops.optimize`, 0 without it. first, next: first and
    second forward pass.
    peak_bytes: peak resident memory. model_bytes: its increase since the imports. gpu_bytes: peak
    memory of tensors on the GPU.
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
    """Measure a new process that runs the model in `folder` twice, on the GPU if there is one.

    optimized: dtype for `lada_ops.optimize`, None for the model as loaded. size: batch and length.
    threads: torch's intra-op CPU threads.

    Raises RuntimeError, with the process's stderr, if it fails.
    """
    # the monotonic clock is the same in all processes
    arguments = [str(time.monotonic()), folder, optimized or "", *map(str, (*size, threads))]
    process = subprocess.run(
        [sys.executable, "-m", __spec__.name, *arguments], capture_output=True, text=True
    )
    if process.returncode:
        raise RuntimeError(
            f"cold_start of {folder}: {process.stderr.strip() or process.returncode}"
        )
    return ColdStart(**json.loads(process.stdout.splitlines()[-1]))


def main(
    started: float, folder: str, optimized: str, batch: int, length: int, threads: int
) -> ColdStart:
    """Run the phases in this process and measure them; `started` is its start by `monotonic`."""
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
    """Resident bytes of this process on Linux: now (VmRSS) or at most (VmHWM).

    getrusage would include the parent's memory at the fork.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


if __name__ == "__main__":
    started, folder, optimized, *sizes = sys.argv[1:]
    print(json.dumps(asdict(main(float(started), folder, optimized, *map(int, sizes)))))
