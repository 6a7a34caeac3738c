"""The README and the page of results, held against the result files and the package."""

import re

import pytest

from benchmarks.readme.__main__ import PAGE, README, page, rendered
from tests.distill.models import tiny_classifier
from tests.tiny_model import write_tiny_model

TEXT = README.read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
ROOT = README.parent
PAGES = [README, PAGE, ROOT / "benchmarks" / "README.md"]


def test_the_table_is_that_of_the_committed_files():
    assert rendered(TEXT) == TEXT


def test_results_are_those_of_the_committed_files():
    assert page() == PAGE.read_text()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    links = re.findall(r"\]\((?!https://)([^)]+)\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_readme_is_one_page():
    assert len(TEXT.splitlines()) <= 160


def test_code_runs_as_it_stands(tmp_path, monkeypatch):
    write_tiny_model(tmp_path / "my-bert")
    (tmp_path / "texts.txt").write_text("the old dog sleeps under a house .\n" * 40)
    monkeypatch.chdir(tmp_path)
    classifier = tiny_classifier(hidden_size=128, intermediate_size=256)
    classifier.save_pretrained(write_tiny_model(tmp_path / "my-classifier"))
    assert len(CODE) == 3
    for code in CODE:
        exec(compile(code, "README.md", "exec"), {})
    for folder in ("my-bert-5x", "my-classifier-5x"):
        assert (tmp_path / folder / "config.json").is_file()
