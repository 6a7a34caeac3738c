"""`lada`: compress a model, time it, look into it, or see it all on a real one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from . import tables
from .plans import Method

app = typer.Typer(
    help="Compressed BERTs that are actually fast.\n\n"
    "Start with `lada demo`; then `lada compress MODEL --out DIR` and `lada bench DIR`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, no table.")]
Model = Annotated[str, typer.Argument(help="A model's folder, or its name on the hub.")]


@app.command(
    epilog="Example: lada compress ./my-bert --ratio 5 --calibration texts.txt --out ./my-bert-5x"
)
def compress(
    model: Model,
    folder: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    ratio: Annotated[
        float, typer.Option(help="Stored bytes of the encoder's linears, dense over compressed.")
    ] = 5.0,
    method: Annotated[Method, typer.Option(help="What the linears become.")] = "low_rank",
    block: Annotated[
        str, typer.Option(help="Sparse blocks, out x in; tall ones are fast.")
    ] = "128x16",
    calibration: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text like the model's own, a sentence a line: keeps accuracy."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Which linears, as a regular expression; by default the encoder's."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what the folder holds.")] = False,
    as_json: Json = False,
) -> None:
    """Compress the encoder of MODEL without training and save it like any other model.

    Load the result with `import lada_ops` and `AutoModel.from_pretrained(DIR)`.
    """
    with _errors():
        from transformers import AutoTokenizer

        from . import input_grams, plan, swap
        from .folder import check_target, load_model, longest, save_model
        from .pretrained import compression_of
        from .texts import read_lines, token_batches

        check_target(folder, overwrite)  # before the work, not after
        dense = load_model(model)
        if compression_of(dense) is not None:
            raise ValueError(
                f"{model} is compressed already; expected the dense model it came from"
            )
        grams = None
        if calibration is not None:
            tokenizer = AutoTokenizer.from_pretrained(model)
            length = min(128, longest(dense))
            batches = token_batches(tokenizer, read_lines(calibration), max_length=length)
            grams = input_grams(dense, batches, layers)
        shape = _pair("--block", block)
        made = plan(dense, ratio, method, block=shape, calibration=grams, layers=layers)
        report = swap.compress(dense, made, grams)
        save_model(dense, model, folder, overwrite)
        _print(report.to_dict() | {"folder": str(folder)}, as_json, tables.report)


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
    with _errors():
        from .bench import Bench
        from .plots import plot_speedups

        sizes = {shape: _pair("--shapes", shape) for shape in shapes.split(",")}
        counts = [_number("--batches", text) for text in batches.split(",")]
        for option, count in (("--requests", requests), ("--rounds", rounds)):
            _number(option, str(count))
        if plot is not None and (texts is not None or not plot.absolute().parent.is_dir()):
            raise ValueError(f"--plot: {plot}; expected a file in a folder that exists, no --texts")
        made = Bench.of(folder, against)
        if texts is not None:
            results = made.traffic(texts, counts, requests, rounds, threads)
            results["cold_starts"] = made.cold_starts(threads)
            _print(results, as_json, tables.traffic)
            return
        results = made.shapes(sizes, rounds, threads)
        _print(results, as_json, tables.latency)
        if plot is not None:
            plot_speedups(results, plot, Path(folder).resolve().name)


@app.command(epilog="Example: lada info ./my-bert-5x")
def info(
    folder: Annotated[str, typer.Argument(help="The compressed model.")],
    as_json: Json = False,
) -> None:
    """Show what each layer of a compressed model is, costs, lost, and how this CPU would run it."""
    with _errors():
        from .engine.optimize import optimize, paths
        from .folder import load_config, load_model
        from .pretrained import compression_of

        found = compression_of(load_config(folder))
        if found is None:
            raise ValueError(f"{folder} is a dense model; expected one that lada compressed")
        model = optimize(load_model(folder, "cpu").float())
        _print(found[1].to_dict() | {"cpu_paths": paths(model)}, as_json, tables.report)


@app.command(
    epilog="Examples: lada tune ./my-bert-5x --dtype bfloat16; "
    "lada tune --shapes 768x3072:r128:fused,768x768:128x16-d20"
)
def tune(
    model: Annotated[
        str | None, typer.Argument(help="A compressed model, for what its linears are.")
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            help="Instead of a model, with commas: in x out : weight : plain, fused or norm."
        ),
    ] = None,
    tokens: Annotated[
        str, typer.Option(help="Batch times length, with commas; powers of two, or the next.")
    ] = "16,128,512,2048,8192",
    dtype: Annotated[
        str | None, typer.Option(help="The model's own by default; bfloat16 for shapes.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Seconds; a second run goes on.")] = 1800.0,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Where tables go; by default where the kernels find them."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find out how this GPU runs compressed linears fastest, and remember it.

    Times each way to compute them beside the dense product, and keeps the tables in the user's
    cache folder, where every later run of the kernels looks them up.
    """
    with _errors():
        from .folder import load_model
        from .tune import Bench, Case, cases_of
        from .tune import tune as run_tuner
        from .user_tables import user_folder

        sizes = [_number("--tokens", text) for text in tokens.split(",")]
        if (model is None) == (shapes is None):
            raise ValueError("expected a compressed model's folder, or --shapes, and not both")
        if not budget > 0:
            raise ValueError(f"--budget: {budget:g}; expected seconds, more than 0")
        if shapes is not None:
            texts = shapes.split(",")
            cases = [Case.parse(text, m, dtype or "bfloat16") for m in sizes for text in texts]
            bench = Bench.of_gpu()
        else:
            assert model is not None
            bench = Bench.of_gpu()
            cases = cases_of(load_model(model, "cpu"), sizes, dtype)
            if not cases:
                raise ValueError(f"{model} is a dense model; expected one that lada compressed")
        summary = run_tuner(
            cases,
            folder or user_folder(),
            budget=budget,
            bench=bench,
            say=lambda line: typer.echo(line, err=True),
        )
        _print(summary.to_dict(), as_json, tables.tuning)


@app.command(epilog="Example: lada inspect low_rank_linear --target sm_80")
def inspect(
    stem: Annotated[str | None, typer.Argument(help="One op, such as low_rank_linear.")] = None,
    target: Annotated[
        str, typer.Option(help="The GPU architecture; need not be this machine's.")
    ] = "sm_90",
    as_json: Json = False,
) -> None:
    """Compile the kernels as they are shipped, and show what their machine code is.

    Registers, shared memory, how busy the tensor cores can be, and what is wrong, if anything; with
    the least time that the work takes by a data sheet. Measures nothing and needs no GPU.
    """
    with _errors():
        from .machine_code.catalogue import shipped
        from .machine_code.inspection import inspect as rows_of
        from .machine_code.targets import find_target
        from .progress import progress_bar

        gpu = find_target(target)
        launches = shipped(stem)
        with progress_bar() as bar:
            tracked = bar.track(launches, description="Compiling")
            rows = list(rows_of(tracked, gpu))
        results = {
            "target": gpu.name,
            "gpu": gpu.gpu,
            "teraflops": gpu.teraflops,
            "gigabytes_per_second": gpu.gigabytes_per_second,
            "rows": rows,
        }
        _print(results, as_json, tables.inspection)


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
    with _errors():
        from .demo import run_demo

        results = run_demo(folder, data)
        _print(results, as_json, tables.demo)
        if not as_json:
            out.print(f"The picture: {folder / 'speedups.png'}; the models: {folder}/*")


def _print(
    results: Mapping[str, Any], as_json: bool, table: Callable[[Mapping[str, Any]], RenderableType]
) -> None:
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        out.print(table(results))


def _number(option: str, text: str) -> int:
    if re.fullmatch(r"\s*[1-9]\d*\s*", text) is None:
        raise ValueError(f"{option}: {text!r}; expected positive numbers with commas")
    return int(text)


def _pair(option: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*([1-9]\d*)x([1-9]\d*)\s*", text)
    if match is None:
        raise ValueError(f"{option}: {text!r}; expected two positive numbers such as 8x128")
    return int(match[1]), int(match[2])


@contextmanager
def _errors() -> Iterator[None]:
    """Errors a user can mend end in one line on stderr and exit code 1; others keep their trace."""
    from transformers.utils import logging

    from .latency import WrongOutput
    from .tune import NoGpu

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, WrongOutput, NoGpu) as error:
        typer.secho("error: ", fg="red", nl=False, err=True)
        typer.echo(error, err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
