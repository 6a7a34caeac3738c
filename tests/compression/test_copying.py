"""Files that a saved model takes over from its source: all but the weights that it replaces."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lada_ops
from lada_ops.compression.folder import load_model, save_model
from tests.tiny_model import write_tiny_model


@pytest.fixture
def source(tmp_path) -> Path:
    return write_tiny_model(tmp_path / "source")


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


def write(path: Path, content: str = "1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def saved(source: Path | str, out: Path, overwrite: bool = False) -> Path:
    model = load_model(str(source), "cpu")
    lada_ops.compress(model, 4, quiet=True)
    save_model(model, str(source), out, overwrite)
    return out


def test_files_of_other_parts_are_kept(source, tmp_path):
    parts = [
        *("2_Dense/model.safetensors", "3_CNN/pytorch_model.bin", "0_Router/a/config.json"),
        *("0_Router/a/model.safetensors", "colbert_linear.pt", "model_head.pkl"),
        *("my_pooling.py", "sentencepiece.bpe.model", "spiece.model", "merges.txt", "README.md"),
        *("training_args.bin", "eval/results.csv"),
    ]
    for part in parts:
        write(source / part)
    out = saved(source, tmp_path / "out")
    assert set(parts) <= names(out)


def test_weights_that_are_replaced_are_left(source, tmp_path):
    weights = [
        *("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        *("pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"),
        *("onnx/model_O3.onnx", "openvino/openvino_model.bin", "openvino/openvino_model.xml"),
        *("model.onnx", "checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt"),
        *("optimizer.pt", ".git/config", ".cache/huggingface/x", "pytorch_model.fp16.bin"),
        *("1_Pooling/.DS_Store", "model.fp16.safetensors", "coreml/weights.bin", "384.tflite"),
    ]
    before = names(source)
    model = load_model(str(source), "cpu")
    for weight in weights:
        write(source / weight)
    save_model(model, str(source), tmp_path / "out")
    assert names(tmp_path / "out") == before


def test_a_sharded_source_becomes_one_whole(source, tmp_path):
    load_model(str(source), "cpu").save_pretrained(source, max_shard_size="1MB")
    (source / "model.safetensors").unlink(missing_ok=True)
    assert len(list(source.glob("*.safetensors"))) > 1
    out = saved(source, tmp_path / "out")
    assert [p.name for p in out.glob("model*")] == ["model.safetensors"]
    load_model(str(out), "cpu")


def test_a_write_protected_source_gives_a_folder_to_write_and_remove(source, tmp_path):
    for path in (source / "vocab.txt", source / "1_Pooling" / "config.json"):
        path.chmod(0o444)
    (source / "1_Pooling").chmod(0o555)
    out = saved(source, tmp_path / "out")
    for path in (out, *out.rglob("*")):
        assert path.stat().st_mode & stat.S_IWUSR, path


class TestLinks:
    @pytest.mark.parametrize("name", ["README.md", "1_Pooling/notes.txt", "more"])
    def test_a_link_out_of_the_source_is_refused_by_name(self, name, source, tmp_path):
        outside = write(tmp_path / "private" / "key")
        (source / name).symlink_to(outside.parent if name == "more" else outside)
        with pytest.raises(ValueError, match=rf"{source / name} is a link to {tmp_path}/private"):
            saved(source, tmp_path / "out")
        assert sorted(os.listdir(tmp_path)) == ["private", "source"]

    def test_a_link_that_leads_nowhere_is_refused_by_name(self, source, tmp_path):
        (source / "README.md").symlink_to(source / "none")
        with pytest.raises(ValueError, match=r"README\.md .*expected a file"):
            saved(source, tmp_path / "out")

    def test_a_link_in_circles_is_refused_by_name(self, source, tmp_path):
        (source / "again").symlink_to(source)
        with pytest.raises(ValueError, match=r"again .*expected a file"):
            saved(source, tmp_path / "out")

    def test_a_pipe_is_refused_by_name(self, source, tmp_path):
        os.mkfifo(source / "pipe")
        with pytest.raises(ValueError, match=r"pipe .*expected a file"):
            saved(source, tmp_path / "out")

    def test_a_link_within_the_source_becomes_a_file(self, source, tmp_path):
        (source / "words.txt").symlink_to("vocab.txt")
        out = saved(source, tmp_path / "out")
        assert not (out / "words.txt").is_symlink()
        assert (out / "words.txt").read_bytes() == (source / "vocab.txt").read_bytes()

    def test_a_link_to_the_source_is_the_source(self, source, tmp_path):
        (tmp_path / "link").symlink_to(source)
        assert names(saved(tmp_path / "link", tmp_path / "out")) == names(source)

    def test_weights_may_lie_elsewhere(self, source, tmp_path):
        (source / "model.safetensors").rename(tmp_path / "weights")
        (source / "model.safetensors").symlink_to(tmp_path / "weights")
        assert not (saved(source, tmp_path / "out") / "model.safetensors").is_symlink()


def to_hub_cache(folder: Path, cache: Path) -> Path:
    """A snapshot of the files of `folder` as huggingface_hub keeps them: links to blobs."""
    root = cache / "models--me--tiny"
    snapshot = root / "snapshots" / ("0" * 40)
    write(root / "refs" / "main", "0" * 40)
    (root / "blobs").mkdir()
    for name in names(folder):
        blob = root / "blobs" / name.replace("/", "-")
        (folder / name).rename(blob)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


class TestHub:
    def test_the_blobs_of_a_snapshot_are_its_own(self, source, tmp_path):
        want = {name: (source / name).read_bytes() for name in names(source)}
        snapshot = to_hub_cache(source, tmp_path / "hub")
        out = saved(snapshot, tmp_path / "out")
        assert names(out) == want.keys()
        assert not any(path.is_symlink() for path in out.rglob("*"))
        assert (out / "vocab.txt").read_bytes() == want["vocab.txt"]

    def test_the_blobs_of_another_repository_are_not(self, source, tmp_path):
        snapshot = to_hub_cache(source, tmp_path / "hub")
        other = write(tmp_path / "hub" / "models--they--private" / "blobs" / "key")
        (snapshot / "README.md").symlink_to(other)
        with pytest.raises(ValueError, match=r"README\.md is a link to .*they--private"):
            saved(snapshot, tmp_path / "out")

    def test_a_hub_name_gives_all_that_its_folder_holds(self, source, tmp_path, monkeypatch):
        want = names(source)
        to_hub_cache(source, tmp_path / "hub")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        out = saved("me/tiny", tmp_path / "out")
        assert names(out) == want
        assert json.loads((out / "1_Pooling/config.json").read_text())


def test_a_model_saved_inside_its_source_does_not_hold_itself(source):
    out = saved(source, source / "small")
    want = names(out)
    assert names(saved(source, out, overwrite=True)) == want


def test_a_model_may_take_the_place_of_its_source(source):
    before = names(source)
    dense = load_file(source / "model.safetensors")
    saved(source, source, overwrite=True)
    assert names(source) == before
    assert load_file(source / "model.safetensors").keys() != dense.keys()


def test_a_source_that_is_damaged_meanwhile_leaves_no_folder(source, tmp_path):
    model = load_model(str(source), "cpu")
    (source / "vocab.txt").unlink()
    (source / "vocab.txt").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="is a link to"):
        save_model(model, str(source), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_a_transformer_further_down_is_named(source, tmp_path):
    whole = tmp_path / "whole"
    source.rename(write(whole / "modules.json", "[]").parent / "0_Transformer")
    save_file({"linear.weight": torch.ones(2, 2)}, write(whole / "1_Dense" / "model.safetensors"))
    write(whole / "1_Dense" / "config.json", json.dumps({"in_features": 2}))
    with pytest.raises(ValueError, match=r"no config\.json.*models in \['0_Transformer'\]"):
        load_model(str(whole), "cpu")
