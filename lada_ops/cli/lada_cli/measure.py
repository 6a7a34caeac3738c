"""`lada bench` and `lada demo`: what a compressed model is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import Json, app, errors, note, note_serving, number, pair, show


@app.command(
    epilog="Examples: lada bench ./my-bert-5x --against ./my-bert --plot latency.png; "
    "lada bench ./my-bert-5x --texts requests.txt"
)
def bench(
    folder: Annotated[str, typer.Argument(help="The compressed model.")],
    against: Annotated[
        str | None,
        typer.Option(help="The dense model; by default the compressed one, made dense again."),
    ] = None,
    shapes: Annotated[
        str, typer.Option(help="Batch x length, with commas.")
    ] = "1x16,1x128,8x128,32x128",
    texts: Annotated[
        Path | None,
        typer.Option(help="Instead of shapes: a text a line, for requests of their lengths."),
    ] = None,
    batches: Annotated[str, typer.Option(help="Texts a request, with commas.")] = "1,8,32",
    requests: Annotated[int, typer.Option(help="How many of each, of random lines.")] = 40,
    rounds: Annotated[int, typer.Option(help="Timed rounds per shape or request.")] = 15,
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's own choice.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the speed-ups to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Time a compressed model side by side with its dense one, in one run.

    Runs on the GPU if there is one. No time is printed for an output that is wrong. With texts,
    latency percentiles and throughput, and what a cold start takes.
    """
    with errors():
        from lada_cli import tables
        from lada_ops.data.texts import read_lines
        from lada_ops.host.extras import require
        from lada_ops.latency.bench import ServedModels
        from lada_ops.latency.plots import plot_speedups

        sizes = {shape: pair("--shapes", shape) for shape in shapes.split(",")}
        counts = [number("--batches", text) for text in batches.split(",")]
        for option, count in (
            *(("--requests", requests), ("--rounds", rounds)),
            *(() if threads is None else (("--threads", threads),)),
        ):
            number(option, str(count))
        if plot is not None and (texts is not None or not plot.absolute().parent.is_dir()):
            raise ValueError(f"--plot: {plot}; expected a file in a folder that exists, no --texts")
        if plot is not None:
            require("lada bench --plot", "bench", "matplotlib")
        lines = None if texts is None else read_lines(texts, "--texts")
        made = ServedModels.of(folder, against)
        if lines is not None:
            results = made.traffic(lines, counts, requests, rounds, threads)
            results["cold_starts"] = made.cold_starts(threads)
            show(results, as_json, tables.traffic)
        else:
            results = made.shapes(sizes, rounds, threads)
            show(results, as_json, tables.latency)
        if plot is not None:
            plot_speedups(results, plot, Path(folder).resolve().name)
            note(f"The picture is {plot}.")
        note_serving(folder)


@app.command(epilog="Example: lada demo --data path/to/stsb")
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="A folder with STS-B's train.tsv and dev.tsv, for a true score."),
    ] = None,
    folder: Annotated[
        Path, typer.Option("--out", help="Where models, results.json and speedups.png go.")
    ] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Do the whole job on a real model (all-MiniLM-L6-v2) in a few minutes.

    Compresses it at 2.5x and 5x by each method, compares embeddings and latency with the dense
    model, saves, loads back, and checks that the outputs are equal to the bit.
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
