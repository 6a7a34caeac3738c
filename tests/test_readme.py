"""The README's figures and its code, held against the result files and the package."""

import re
from pathlib import Path

import pytest

from benchmarks.readme.__main__ import README, rendered
from tests.distill.models import tiny_classifier
from tests.tiny_model import write_tiny_model

TEXT = README.read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_results_are_those_of_the_committed_files():
    assert rendered(TEXT) == TEXT


@pytest.mark.parametrize("image", re.findall(r"!\[.*?\]\((.*?)\)", TEXT))
def test_pictures_are_there(image):
    assert (Path(README).parent / image).is_file()


def test_code_runs_as_it_stands(tmp_path, monkeypatch):
    write_tiny_model(tmp_path / "my-bert")
    (tmp_path / "texts.txt").write_text("the old dog sleeps under a house .\n" * 40)
    monkeypatch.chdir(tmp_path)
    classifier = tiny_classifier(hidden_size=128, intermediate_size=256)
    classifier.save_pretrained(write_tiny_model(tmp_path / "my-classifier"))
    assert len(CODE) == 3
    for code in CODE:
        exec(compile(code, "README.md", "exec"), {})
    for made in ("my-bert-5x", "my-classifier-5x"):
        assert (tmp_path / made / "config.json").is_file()
