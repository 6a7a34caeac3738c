"""Common parts of the commands of `lada`: the app, shared options, output, errors.

Only a command that runs imports torch and lada_ops; help and usage errors do not.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from platform import python_version
from typing import Annotated, Any, Literal

import typer
from rich.console import Console, RenderableType

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
out = Console()

Json = Annotated[bool, typer.Option("--json", help="JSON output instead of a table.")]
Model = Annotated[str, typer.Argument(help="Folder of a model, or its name on the hub.")]
Shapes = Annotated[str, typer.Option(help="Batch x length, comma-separated.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default torch's choice.")]
Method = Literal["low_rank", "block_sparse", "sparse_low_rank"]  # as in lada_ops.compression.plan


def _show_version(requested: bool) -> None:
    if requested:
        others = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
        typer.echo(f"lada-ops {version('lada-ops')} ({others}, Python {python_version()})")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Versions of lada-ops, torch, transformers and Python.",
        ),
    ] = False,
) -> None:
    """Compressed BERTs that are actually fast.

    Start with `lada demo`; then `lada compress MODEL --out DIR` and `lada bench DIR`.
    """


def show(
    results: Mapping[str, Any], as_json: bool, table: Callable[[Mapping[str, Any]], RenderableType]
) -> None:
    """Print the results on stdout: as JSON, or as `table` renders them."""
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        out.print(table(results))


def note(line: str) -> None:
    """Print a line for people on stderr; stdout holds results only."""
    typer.echo(line, err=True)


def note_serving(folder: str) -> None:
    """Print the line of Python that serves a model."""
    from lada_ops.compression.folder import load_config

    architecture, *_ = load_config(folder).architectures or ["AutoModel"]
    note(f"To serve it, in Python: lada_ops.optimize({architecture}.from_pretrained({folder!r}))")


def command(*words: object) -> str:
    """Command line, quoted for a shell."""
    return shlex.join(str(word) for word in words)


def number(option: str, text: str) -> int:
    """Positive number from the text of an option. Raises ValueError on other text."""
    if re.fullmatch(r"\s*[1-9]\d*\s*", text) is None:
        raise ValueError(f"{option}: {text!r}; expected positive numbers with commas")
    return int(text)


def pair(option: str, text: str) -> tuple[int, int]:
    """Two positive numbers from text such as 8x128. Raises ValueError on other text."""
    match = re.fullmatch(r"\s*([1-9]\d*)x([1-9]\d*)\s*", text)
    if match is None:
        raise ValueError(f"{option}: {text!r}; expected two positive numbers such as 8x128")
    return int(match[1]), int(match[2])


def check_counts(counts: Mapping[str, int | None]) -> None:
    """Raise ValueError unless the values of the options, by name, are positive or None."""
    for option, count in counts.items():
        if count is not None:
            number(option, str(count))


@contextmanager
def errors() -> Iterator[None]:
    """Context in which errors that a user can mend end in one line on stderr and exit code 1."""
    from transformers.utils import logging

    from lada_ops.distill.losses import NotFinite
    from lada_ops.latency import WrongOutput
    from lada_ops.tune import NoGpu

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, WrongOutput, NotFinite, NoGpu) as error:
        typer.secho("error: ", fg="red", nl=False, err=True)
        typer.echo(" ".join(map(str.strip, str(error).splitlines())), err=True)
        raise typer.Exit(1) from error
