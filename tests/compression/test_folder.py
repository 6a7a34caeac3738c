import errno
import os
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification

import lada_ops
from lada_ops.compression.folder import load_config, load_model, save_model
from lada_ops.host.files import check_target, staged_folder
from tests.tiny_model import tiny_config, write_tiny_model


@pytest.fixture
def source(tmp_path) -> Path:
    return write_tiny_model(tmp_path / "source")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_staged_folder_appears_whole(tmp_path):
    with staged_folder(tmp_path / "out") as stage:
        (stage / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert snapshot(tmp_path) == {"out/a": b"1"}


def test_staged_folder_takes_the_place_of_an_empty_one(tmp_path):
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out") as stage:
        (stage / "a").write_text("1")
    assert snapshot(tmp_path) == {"out/a": b"1"}


def test_staged_folder_overwrites_the_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("0")
    with staged_folder(tmp_path / "out", overwrite=True) as stage:
        (stage / "new").write_text("1")
    assert snapshot(tmp_path) == {"out/new": b"1"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_staged_folder_leaves_all_as_before_on(error, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("0")

    def fail():
        with staged_folder(tmp_path / "out", overwrite=True) as stage:
            (stage / "new").write_text("1")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert snapshot(tmp_path) == {"out/old": b"0"}


def test_staged_folder_puts_the_old_one_back_if_the_last_step_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("lada_ops.host.files.exchange", lambda *_: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("0")
    rename = os.rename

    def fail_for_new(a, b):
        if Path(a).name == "new":
            raise OSError(errno.EACCES, "no")
        rename(a, b)

    monkeypatch.setattr(os, "rename", fail_for_new)
    with pytest.raises(OSError, match="no"), staged_folder(tmp_path / "out", True) as stage:
        (stage / "new").write_text("1")
    assert snapshot(tmp_path) == {"out/old": b"0"}


def test_interrupt_between_the_last_steps_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("lada_ops.host.files.exchange", lambda *_: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("0")
    rename = os.rename

    def interrupted(a, b):
        rename(a, b)
        if Path(b).name == "old":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)

    def save():
        with staged_folder(tmp_path / "out", overwrite=True) as stage:
            (stage / "new").write_text("1")

    with pytest.raises(KeyboardInterrupt):
        save()
    assert snapshot(tmp_path) == {"out/old": b"0"}


def test_class_that_transformers_lacks_is_refused(source):
    config = source / "config.json"
    config.write_text(config.read_text().replace('"BertModel"', '"MyFancyBert"'))
    with pytest.raises(ValueError, match="is a MyFancyBert, which transformers does not have"):
        load_model(str(source))


def test_check_target_refuses_a_folder_that_holds_something(tmp_path):
    (tmp_path / "a").write_text("1")
    with pytest.raises(FileExistsError, match="not empty"):
        check_target(tmp_path, overwrite=False)


def test_check_target_refuses_a_file_even_to_overwrite(tmp_path):
    (tmp_path / "a").write_text("1")
    with pytest.raises(FileExistsError, match="is a file"):
        check_target(tmp_path / "a", overwrite=True)


def test_saved_model_takes_the_place_of_its_source(source, tmp_path):
    model = load_model(str(source))
    lada_ops.compress(model, 4, quiet=True)
    save_model(model, str(source), tmp_path / "out")
    files = snapshot(tmp_path / "out")
    assert files.keys() == snapshot(source).keys()
    kept = [name for name in files if name not in ("config.json", "model.safetensors")]
    assert "1_Pooling/config.json" in kept
    for name in kept:
        assert files[name] == (source / name).read_bytes(), name


def test_full_disk_while_saving_leaves_nothing_behind(source, tmp_path, monkeypatch):
    model = load_model(str(source))
    before = snapshot(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, str(source), tmp_path / "out")
    assert snapshot(tmp_path) == before


def test_load_model_keeps_the_head(tmp_path):
    BertForSequenceClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "cpu")
    assert isinstance(model, BertForSequenceClassification)
    assert not model.training


def test_folder_without_a_config_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"no model.*config\.json"):
        load_config(str(tmp_path))


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_config(str(tmp_path / "none"))


def test_truncated_weights_are_named(source):
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"weights in .* damaged"):
        load_model(str(source))


def test_compressed_model_loads_equal_to_the_bit(source, tmp_path):
    model = load_model(str(source), "cpu")
    lada_ops.compress(model, 4, "sparse_low_rank", quiet=True)
    save_model(model, str(source), tmp_path / "out")
    ids = torch.arange(20).view(2, 10)
    with torch.inference_mode():
        want = model(ids).last_hidden_state
        got = load_model(str(tmp_path / "out"), "cpu")(ids).last_hidden_state
    assert torch.equal(got, want)
