"""Progress bar of long work, shown in a terminal or a notebook only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def progress_bar(quiet: bool = False) -> Progress:
    """Progress bar of rich, on stderr or in the cell of a notebook, cleared at its end.

    Disabled if `quiet`, or if stderr is neither a terminal nor a notebook. In a notebook rich needs
    ipywidgets, and warns where they are not installed.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not (console.is_terminal or console.is_jupyter),
    )
