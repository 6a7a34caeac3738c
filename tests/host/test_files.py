import json
import os
import threading

import pytest
import torch

from lada_ops.host.files import read_json, write_json


def test_write_json_makes_folders_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"x": 1})
    assert json.loads(path.read_text()) == {"x": 1}
    assert os.listdir(path.parent) == ["b.json"]


def full_disk(*args):
    raise OSError("no space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    monkeypatch.setattr(f"lada_ops.host.files.os.{step}", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_threads_that_write_the_same_file_do_not_mix(tmp_path, monkeypatch):
    path, fsync = tmp_path / "a.json", os.fsync

    def overtaken(descriptor):
        monkeypatch.setattr("lada_ops.host.files.os.fsync", fsync)
        other = threading.Thread(target=write_json, args=(path, {"x": 2}))
        other.start()
        other.join()
        fsync(descriptor)

    monkeypatch.setattr("lada_ops.host.files.os.fsync", overtaken)
    write_json(path, {"x": 1})
    assert json.loads(path.read_text()) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("value", "error"), [(float("nan"), ValueError), (torch.ones(1), TypeError)]
)
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path, value, error):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(error):
        write_json(path, {"x": value})
    assert json.loads(path.read_text()) == {"x": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[" * 10**5, "recursion"),
        ("[]", "a JSON list; expected a JSON dict"),
        ("\xff", "utf-8"),
    ],
    ids=["empty", "deeply nested", "another type", "not UTF-8"],
)
def test_what_is_not_the_expected_json_is_a_value_error_with_the_file(text, reason, tmp_path):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"a\.json.*{reason}"):
        read_json(tmp_path / "a.json", dict)
