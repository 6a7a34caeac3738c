"""One progress bar for all long work, only where a person watches: a terminal or a notebook."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(quiet: bool = False) -> Progress:
    """A rich progress bar that clears itself, on stderr, or in the cell of a notebook.

    Silent if `quiet`, or stderr is neither. In a notebook rich draws with ipywidgets, and warns
    where those are not installed.
    """
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
