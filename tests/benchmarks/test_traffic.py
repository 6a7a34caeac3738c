import json

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.readme.speed import traffic_section
from benchmarks.traffic import app, glue_texts
from lada_ops.engine.optimize import fast_dtypes
from lada_ops.host.environment import device_slug
from tests.tiny_model import write_tiny_model


@pytest.fixture
def glue(tmp_path):
    for task, text in {
        "rte": "sentence\tsentence2\tlabel\nthe old dog\ta cat\t1\nthe house\t\t0\n",
        "cola": 'sentence\tlabel\n"under the house\t1\n',
    }.items():
        folder = tmp_path / "glue" / task
        folder.mkdir(parents=True)
        (folder / "dev.tsv").write_text(text)
    return tmp_path / "glue"


def test_texts_are_those_of_all_tasks(glue):
    assert glue_texts(glue) == ['"under the house', "the old dog", "a cat", "the house"]


def test_a_folder_without_tasks_is_refused(tmp_path):
    with pytest.raises(typer.BadParameter, match=r"has no \*/dev.tsv"):
        glue_texts(tmp_path)


@pytest.mark.exhaustive
def test_results_are_those_of_the_readmes_table(glue, tmp_path):
    model = write_tiny_model(tmp_path / "model")
    args = ["--data", glue, "--model", model, "--batches", "1,3", "--requests", 2, "--rounds", 1]
    done = CliRunner().invoke(app, [str(arg) for arg in [*args, "--results", tmp_path]])
    assert done.exit_code == 0, done.output
    folder = tmp_path / device_slug()
    found = json.loads((folder / "traffic.json").read_text())
    names = [served["name"] for served in found["traffic"][0]["models"]]
    assert len(names) == (2 + len(fast_dtypes()) if fast_dtypes() else 1)
    assert list(found["cold_starts"]) == names
    section = traffic_section(folder)
    assert "2 requests of each size" in section
    assert section.count("| 3, ") == len(names)


def test_without_results_there_is_no_section(tmp_path):
    assert traffic_section(tmp_path) == ""
