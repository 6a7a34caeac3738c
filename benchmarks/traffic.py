"""Serving benchmark with requests of real lengths: ``python -m benchmarks.traffic --data GLUE``.

MiniLM, dense and at 5x, on texts drawn from all tasks of GLUE and padded by its tokenizer; and the
cold start of a serving process.
"""

from __future__ import annotations

import copy
import csv
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import lada_ops
from lada_cli import tables
from lada_ops.compression.folder import load_model, save_model
from lada_ops.demo import model_folder
from lada_ops.engine.optimize import fast_dtypes
from lada_ops.host.environment import device_slug
from lada_ops.host.files import write_json
from lada_ops.latency.bench import ServedModels
from lada_ops.latency.cold import cold_start

RESULTS = Path(__file__).parent / "results"
RATIO = 5.0
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="A folder of GLUE's tasks, each with a dev.tsv.")],
    model: Annotated[str | None, typer.Option(help="Model, by default MiniLM.")] = None,
    batches: Annotated[str, typer.Option(help="Texts per request, comma-separated.")] = "1,8,32",
    requests: Annotated[int, typer.Option(min=1, help="Requests per batch size.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Samples per request.")] = 7,
    results: Annotated[Path, typer.Option(help="Writes DIR/<device>/traffic.json.")] = RESULTS,
) -> None:
    """Latency percentiles, throughput, peak memory and cold start, dense and at 5x, in one run."""
    sizes = [int(text) for text in batches.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        lines = glue_texts(data)
        found = run(model or model_folder(), lines, Path(folder) / "5x", sizes, requests, rounds)
    write_json(results / device_slug() / "traffic.json", found)
    Console().print(tables.traffic(found))


def glue_texts(data: Path) -> list[str]:
    """The sentences of every task's dev.tsv, each of a pair for itself, in the order of tasks."""
    texts = []
    for path in sorted(data.glob("*/dev.tsv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                texts += [row[name] for name in ("sentence", "sentence2") if row.get(name)]
    if not texts:
        raise typer.BadParameter(f"--data: {data} has no */dev.tsv; expected GLUE's tasks")
    return texts


def run(
    source: str, lines: list[str], folder: Path, batches: list[int], requests: int, rounds: int
) -> dict[str, Any]:
    """The traffic and the cold starts; the compressed model is saved to `folder`."""
    dense = load_model(source)
    compressed = copy.deepcopy(dense)
    lada_ops.compress(compressed, RATIO, quiet=True)
    save_model(compressed, source, folder)
    dtypes = fast_dtypes() if dense.device.type == "cpu" else (dense.dtype,)
    # name -> the model before it is optimized, its folder, and what it is to compute in
    served = {"dense, optimized": (dense, source, dtypes[0])} if dtypes else {}
    for dtype in dtypes:
        served[f"low_rank {RATIO:g}x, {_short(dtype)}"] = compressed, str(folder), dtype
    bench = ServedModels(
        str(folder),
        dense,
        {
            name: lada_ops.optimize(copy.deepcopy(before), dtype)
            for name, (before, _, dtype) in served.items()
        },
        {name: before for name, (before, _, _) in served.items()},
    )
    threads = torch.get_num_threads()
    starts = {"dense": cold_start(source, threads=threads)}
    for name, (_, path, dtype) in served.items():
        starts[name] = cold_start(path, _short(dtype), threads=threads)
    return bench.traffic(lines, batches, requests, rounds) | {
        "cold_starts": {name: asdict(start) for name, start in starts.items()}
    }


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    app()
