"""Race whole encoders on the CPU: ``python -m benchmarks.rivals --models minilm --threads 2``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lada_ops.host.environment import device_slug

from .contestants import chosen
from .heats import run
from .race import Rules
from .result import SHAPES, Results, terminal
from .setup import NotMeasured
from .weights import MODELS, Weights

RESULTS = Path(__file__).parents[1] / "results"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    models: Annotated[
        str, typer.Option(help=f"Models, comma-separated: {', '.join(MODELS)}.")
    ] = "bert_base,bert_large,minilm",
    shapes: Annotated[str, typer.Option(help="Batch x length, with commas.")] = ",".join(SHAPES),
    threads: Annotated[str, typer.Option(help="Numbers of threads, comma-separated.")] = "1,2",
    contestants: Annotated[
        str, typer.Option(help="Names or patterns, comma-separated; eager always takes part.")
    ] = "*",
    rounds: Annotated[int, typer.Option(min=1, help="Samples per contestant.")] = 7,
    seconds: Annotated[float, typer.Option(help="Seconds per sample.")] = 0.5,
    at_once: Annotated[
        int, typer.Option(min=1, help="Concurrent contestants beside eager; each holds a model.")
    ] = 4,
    again: Annotated[bool, typer.Option(help="Repeat measured rows.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of ONNX exports kept for the next run; stale ones are refused."),
    ] = None,
    results: Annotated[Path, typer.Option(help="Writes DIR/<device>/rivals_*.json.")] = RESULTS,
) -> None:
    """Speed-ups of whole encoders over torch's eager mode, each contestant in its own process.

    Goes on where an earlier run stopped. No time is reported for a wrong output.
    """
    try:
        names, sizes = models.split(","), [_shape(text) for text in shapes.split(",")]
        unknown = set(names) - set(MODELS)
        if unknown:
            raise ValueError(f"--models: {sorted(unknown)}; expected some of {', '.join(MODELS)}")
        counts = [_number("--threads", text) for text in threads.split(",")]
        entered = chosen(contestants.split(","))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    folder = results / device_slug("cpu")
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            scratch = Path(temporary)
            weights = Weights(name, scratch)
            for count in counts:
                kept = Results(folder, name, count)
                try:
                    run(
                        entered,
                        sizes,
                        weights,
                        kept,
                        threads=count,
                        rules=Rules(rounds, seconds),
                        at_once=at_once,
                        again=again,
                        exports=(cache or scratch / "exports") / name,
                        say=lambda line: typer.echo(line, err=True),
                    )
                except NotMeasured as error:
                    typer.echo(f"{name}: {error}", err=True)
                    raise typer.Exit(1) from None
                Console().print(terminal(kept.path))


def _shape(text: str) -> tuple[int, int]:
    batch, _, length = text.partition("x")
    return _number("--shapes", batch), _number("--shapes", length)


def _number(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{option}: {text!r}; expected whole numbers above 0")
    return int(text)


if __name__ == "__main__":
    app()
