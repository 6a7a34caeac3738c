"""What all commands of `lada` share: the app, their output, their errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

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


def show(
    results: Mapping[str, Any], as_json: bool, table: Callable[[Mapping[str, Any]], RenderableType]
) -> None:
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        out.print(table(results))


def number(option: str, text: str) -> int:
    if re.fullmatch(r"\s*[1-9]\d*\s*", text) is None:
        raise ValueError(f"{option}: {text!r}; expected positive numbers with commas")
    return int(text)


def pair(option: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*([1-9]\d*)x([1-9]\d*)\s*", text)
    if match is None:
        raise ValueError(f"{option}: {text!r}; expected two positive numbers such as 8x128")
    return int(match[1]), int(match[2])


@contextmanager
def errors() -> Iterator[None]:
    """Errors a user can mend end in one line on stderr and exit code 1; others keep their trace."""
    from transformers.utils import logging

    from ..distill.losses import NotFinite
    from ..latency import WrongOutput
    from ..tune import NoGpu

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, WrongOutput, NotFinite, NoGpu) as error:
        typer.secho("error: ", fg="red", nl=False, err=True)
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
