import rich.console
from rich.console import Console

from lada_ops.host.progress import progress_bar


def test_there_is_a_bar_in_a_notebook(monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", False)
    assert progress_bar().disable
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    assert not progress_bar().disable
    assert progress_bar(quiet=True).disable
