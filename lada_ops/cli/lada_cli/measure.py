"""Commands `lada bench` and `lada demo`: time a compressed model, and try all on a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import (
    Json,
    Shapes,
    Threads,
    app,
    check_counts,
    errors,
    note,
    note_serving,
    number,
    pair,
    show,
)


@app.command(
    epilog="Examples: lada bench ./my-bert-5x --against ./my-bert --plot latency.png; "
    "lada bench ./my-bert-5x --texts requests.txt"
)
def bench(
    folder: Annotated[str, typer.Argument(help="Folder of the compressed model.")],
    against: Annotated[
        str | None,
        typer.Option(help="Dense model to compare with; by default the model, made dense again."),
    ] = None,
    shapes: Shapes = "1x16,1x128,8x128,32x128",
    texts: Annotated[
        Path | None,
        typer.Option(help="UTF-8 file, one text a line: time requests of these texts instead."),
    ] = None,
    batches: Annotated[str, typer.Option(help="Texts per request, comma-separated.")] = "1,8,32",
    requests: Annotated[int, typer.Option(help="Requests per batch size.")] = 40,
    rounds: Annotated[int, typer.Option(help="Timed rounds per shape or request.")] = 15,
    threads: Threads = None,
    plot: Annotated[Path | None, typer.Option(help="Image file to draw the speed-ups to.")] = None,
    as_json: Json = False,
) -> None:
    """Time a compressed model beside its dense one, in one run.

    Runs on the GPU if there is one. No time is reported for a wrong output. With --texts: latency
    percentiles, throughput and cold starts.
    """
    with errors():
        from lada_cli import tables
        from lada_ops.data.texts import read_lines
        from lada_ops.host.extras import require
        from lada_ops.latency.bench import ServedModels
        from lada_ops.latency.plots import plot_speedups

        sizes = {shape: pair("--shapes", shape) for shape in shapes.split(",")}
        counts = [number("--batches", text) for text in batches.split(",")]
        check_counts({"--requests": requests, "--rounds": rounds, "--threads": threads})
        if plot is not None and (texts is not None or not plot.absolute().parent.is_dir()):
            raise ValueError(f"--plot: {plot}; expected a file in a folder that exists, no --texts")
        if plot is not None:
            require("lada bench --plot", "bench", "matplotlib")
        lines = None if texts is None else read_lines(texts, "--texts")
        models = ServedModels.of(folder, against)
        if lines is not None:
            results = models.traffic(lines, counts, requests, rounds, threads)
            results["cold_starts"] = models.cold_starts(threads)
            show(results, as_json, tables.traffic)
        else:
            results = models.shapes(sizes, rounds, threads)
            show(results, as_json, tables.latency)
        if plot is not None:
            plot_speedups(results, plot, Path(folder).resolve().name)
            note(f"The picture is {plot}.")
        note_serving(folder)


@app.command(epilog="Example: lada demo --data path/to/stsb")
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with STS-B's train.tsv and dev.tsv, to score embeddings."),
    ] = None,
    folder: Annotated[
        Path, typer.Option("--out", help="Folder to write: models, results.json and speedups.png.")
    ] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Compress, time and save a real model (all-MiniLM-L6-v2) in a few minutes.

    Compresses it 2.5x and 5x by each method, compares embeddings and latency with the dense model,
    saves and loads it, and checks that the outputs are equal to the bit.
    """
    with errors():
        from lada_cli import tables
        from lada_ops.demo import run_demo

        results = run_demo(folder, data)
        show(results, as_json, tables.demo)
        note(
            f"The picture is {folder / 'speedups.png'}, the models are beside it; next, with your "
            "own: lada compress MODEL --calibration TEXTS --out DIR"
        )
