"""Result files of the GPU suite."""

import json

import pytest

from benchmarks.suite.rows import newest, read
from benchmarks.suite.store import Store, suite_environment

HERE = {"gpu": "one", "kernels": "abc"}
THERE = {"gpu": "two", "kernels": "abc"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "device" / "suite_a.json"


def test_a_row_is_on_disk_as_soon_as_it_is_put(path):
    Store(path, HERE).put("row", {"x": 1})
    assert read(path) == ([HERE], {"row": {"x": 1, "environment": 0}})


def test_each_row_is_a_line(path):
    store = Store(path, HERE)
    for key in ("first", "second"):
        store.put(key, {"x": [1, 2], "text": "a\nb"})
    lines = [line for line in path.read_text().splitlines() if line.startswith('"')]
    assert [line.split('"')[1] for line in lines] == ["rows", "first", "second"]


def test_values_outside_json_leave_the_file_unchanged(path):
    store = Store(path, HERE)
    store.put("first", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        store.put("second", {"x": float("nan")})
    assert set(Store(path, HERE).rows) == {"first"}


def test_a_second_run_adds_rows(path):
    Store(path, HERE).put("first", {"x": 1})
    second = Store(path, HERE)
    assert second.done("first")
    assert not second.done("second")
    second.put("second", {"x": 2})
    assert set(Store(path, HERE).rows) == {"first", "second"}


def test_a_row_of_another_environment_is_measured_again_and_replaced(path):
    Store(path, HERE).put("row", {"x": 1})
    other = Store(path, THERE)
    assert not other.done("row")
    other.put("row", {"x": 2})
    assert read(path) == ([HERE, THERE], {"row": {"x": 2, "environment": 1}})


def test_coming_back_to_an_environment_finds_its_rows(path):
    Store(path, HERE).put("here", {})
    Store(path, THERE).put("there", {})
    store = Store(path, HERE)
    assert (store.done("here"), store.done("there")) == (True, False)


def test_newest_has_the_rows_of_the_last_environment_alone(path):
    Store(path, HERE).put("old", {"x": 1})
    Store(path, THERE).put("new", {"x": 2})
    assert newest(path) == (THERE, {"new": {"x": 2, "environment": 1}})


class TestInterrupted:
    def test_a_row_that_was_begun_and_never_put_is_returned_once(self, path):
        Store(path, HERE).begin("row")
        after = Store(path, HERE)
        assert after.interrupted() == "row"
        assert after.interrupted() is None

    def test_a_row_that_was_put_is_not(self, path):
        store = Store(path, HERE)
        store.begin("row")
        store.put("row", {})
        assert Store(path, HERE).interrupted() is None

    def test_the_note_is_no_result_file(self, path):
        Store(path, HERE).begin("row")
        assert not list(path.parent.glob("suite_*"))


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": {}}'])
def test_another_file_is_an_error_with_its_name(path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=r"suite_a\.json.*expected a result file"):
        Store(path, HERE)
    assert path.read_text() == text


class TestEnvironment:
    def test_a_dry_run_is_marked(self):
        assert suite_environment(dry_run=True)["dry_run"] is True

    def test_a_measurement_is_not(self):
        assert "dry_run" not in suite_environment(dry_run=False)

    def test_the_hash_changes_with_the_kernels_source(self, tmp_path, monkeypatch):
        monkeypatch.setattr("benchmarks.suite.store.KERNELS", tmp_path)
        (tmp_path / "kernel.py").write_text("1")
        before = suite_environment(dry_run=False)
        (tmp_path / "kernel.py").write_text("2")
        after = suite_environment(dry_run=False)
        assert before.pop("kernels") != after.pop("kernels")
        assert before == after

    def test_it_survives_json(self):
        found = suite_environment(dry_run=False)
        assert json.loads(json.dumps(found)) == found
