"""A folder that lacks a part of its model, or holds another's, is refused by the part's name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    RobertaForMaskedLM,
)
from typer.testing import CliRunner

import lada_ops
from lada_cli import app
from lada_ops.compression.folder import load_model
from tests.tiny_encoders import tiny_bert, with_head

QUERY = "encoder.layer.0.attention.self.query"


def edit_tensors(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def outputs(model):
    with torch.inference_mode():
        return model(torch.arange(5, 15).view(2, 5))[0]


@pytest.fixture
def folder(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        f"{QUERY}.weight",
        "encoder.layer.1.output.LayerNorm.weight",
        "embeddings.word_embeddings.weight",
    ],
)
def test_a_missing_tensor_is_named(folder, name):
    edit_tensors(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"{folder} lacks {name}.*expected every tensor of a Bert"):
        load_model(str(folder), "cpu")


def test_a_tensor_of_another_shape_is_named(folder):
    edit_config(folder, intermediate_size=48)
    name = r"encoder\.layer\.0\.intermediate\.dense\.bias"
    with pytest.raises(ValueError, match=rf"{name} is \(64,\).*expected \(48,\)"):
        load_model(str(folder), "cpu")


def test_layers_that_the_config_does_not_count_are_named(folder):
    edit_config(folder, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.\S+.* which a BertModel has not"):
        load_model(str(folder), "cpu")


def test_a_missing_head_is_named(tmp_path):
    with_head("bert").save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.pop("classifier.weight"))
    with pytest.raises(ValueError, match=r"lacks classifier\.weight"):
        load_model(str(tmp_path), "cpu")


def test_a_pooler_that_a_head_needs_is_named(tmp_path):
    with_head("bert").save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.pop("bert.pooler.dense.weight"))
    with pytest.raises(ValueError, match=r"lacks bert\.pooler\.dense\.weight"):
        load_model(str(tmp_path), "cpu")


def test_an_encoder_saved_without_a_pooler_stays_without(tmp_path):
    model = BertModel(tiny_bert().config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), "cpu")
    assert loaded.pooler is None
    assert torch.equal(outputs(loaded), outputs(model))


def test_heads_of_other_tasks_are_left_and_said(tmp_path):
    """A pretraining checkpoint whose config names the masked language model, as BERT's own."""
    BertForPreTraining(tiny_bert().config).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["BertForMaskedLM"])
    with pytest.warns(UserWarning, match=r"bert\.pooler\.dense\.bias.* cls\.seq_relationship"):
        model = load_model(str(tmp_path), "cpu")
    assert type(model) is BertForMaskedLM


def test_buffers_of_older_releases_are_no_alarm(folder, recwarn):
    positions = torch.arange(40)[None]
    edit_tensors(folder, lambda t: t.update({"embeddings.position_ids": positions}))
    load_model(str(folder), "cpu")
    assert not [w for w in recwarn if "position_ids" in str(w.message)]


def test_tied_weights_are_no_alarm(tmp_path):
    with_head("roberta").save_pretrained(tmp_path)
    assert "lm_head.decoder.weight" not in load_file(tmp_path / "model.safetensors")
    model = load_model(str(tmp_path), "cpu")
    assert isinstance(model, RobertaForMaskedLM)
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight


def test_a_missing_shard_entry_is_named(folder):
    tiny_bert().save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = folder / content["weight_map"].pop(f"{QUERY}.weight")
    index.write_text(json.dumps(content))
    tensors = load_file(shard)
    del tensors[f"{QUERY}.weight"]
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"lacks {QUERY}\.weight"):
        load_model(str(folder), "cpu")


def test_pickled_weights_are_held_to_the_same(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert torch.equal(outputs(load_model(str(folder), "cpu")), outputs(tiny_bert()))
    del tensors[f"{QUERY}.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"lacks {QUERY}\.weight"):
        load_model(str(folder), "cpu")


def test_damaged_pickled_weights_are_named(folder):
    (folder / "model.safetensors").unlink()
    torch.save(tiny_bert().state_dict(), folder / "pytorch_model.bin")
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=rf"weights in {folder} are damaged"):
        load_model(str(folder), "cpu")


class TestCommands:
    """No command of `lada` computes with weights that it made up."""

    @pytest.fixture
    def compressed(self, tmp_path):
        model = with_head("bert")
        lada_ops.compress(model, 2, quiet=True)
        model.save_pretrained(tmp_path / "small")
        edit_tensors(tmp_path / "small", lambda t: t.pop("bert.embeddings.LayerNorm.bias"))
        return tmp_path / "small"

    @pytest.fixture
    def dense(self, tmp_path):
        with_head("bert").save_pretrained(tmp_path / "dense")
        edit_tensors(tmp_path / "dense", lambda t: t.pop("bert.embeddings.LayerNorm.bias"))
        return tmp_path / "dense"

    @pytest.mark.parametrize(
        "command",
        ["compress {dense} --out {out}", "info {small}", "bench {small}", "bench {whole} --against "
         "{dense}", "distill {dense} --texts {whole}/config.json --out {out}"],
    )  # fmt: skip
    def test_refuses_a_folder_without_a_layer_norm(self, command, dense, compressed, tmp_path):
        model = with_head("bert")
        lada_ops.compress(model, 2, quiet=True)
        model.save_pretrained(tmp_path / "whole")
        paths = {name: tmp_path / name for name in ("dense", "small", "whole", "out")}
        result = CliRunner().invoke(app, command.format(**paths).split())
        assert result.exit_code == 1, result.output
        assert "lacks bert.embeddings.LayerNorm.bias" in result.stderr.replace("\n", " ")
        assert not (tmp_path / "out").exists()


class TestCompressed:
    """Through transformers' own `from_pretrained`, where no command stands between."""

    @pytest.fixture
    def folder(self, tmp_path):
        model = with_head("bert")
        lada_ops.compress(model, 2, quiet=True)
        model.save_pretrained(tmp_path)
        return tmp_path

    def test_a_layer_in_neither_plan_nor_report_is_missing(self, folder):
        config = json.loads((folder / "config.json").read_text())
        name = f"bert.{QUERY}"
        for part in ("plan", "report"):
            del config["quantization_config"][part]["layers"][name]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=rf"the checkpoint lacks bert\.{QUERY}\.weight"):
            BertForSequenceClassification.from_pretrained(folder)
        with pytest.raises(ValueError, match=rf"the checkpoint lacks {QUERY}\.weight"):
            AutoModel.from_pretrained(folder)

    def test_a_missing_layer_norm_is_an_error(self, folder):
        edit_tensors(folder, lambda t: t.pop("bert.embeddings.LayerNorm.bias"))
        with pytest.raises(ValueError, match=r"the checkpoint lacks embeddings\.LayerNorm\.bias"):
            AutoModel.from_pretrained(folder)

    def test_a_masked_language_model_gives_its_encoder(self, tmp_path):
        torch.manual_seed(0)
        model = BertForMaskedLM(tiny_bert().config).eval()
        lada_ops.compress(model, 2, quiet=True)
        model.save_pretrained(tmp_path)
        model.bert.pooler = None
        loaded = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(outputs(loaded), outputs(model.bert))

    def test_new_labels_come_with_another_head(self, folder):
        pytest.importorskip("transformers", "5.23")  # earlier ones load the old head whatever
        kind = BertForSequenceClassification
        model = kind.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
        assert outputs(model).shape == (2, 5)

    def test_a_dense_tensor_of_another_shape_is_named(self, folder):
        edit_tensors(
            folder, lambda t: t.update({"bert.embeddings.LayerNorm.bias": torch.zeros(31)})
        )
        with pytest.raises(ValueError, match=r"LayerNorm\.bias (of shape|is \(31,\).*) \(32,\)"):
            load_model(str(folder), "cpu")

    def test_offload_is_refused_by_its_name(self, folder, tmp_path):
        pytest.importorskip("accelerate")
        places = {"bert": "disk", "classifier": "cpu"}
        kind = BertForSequenceClassification
        with pytest.raises(ValueError, match=r"is offloaded; expected a device_map .*without"):
            kind.from_pretrained(folder, device_map=places, offload_folder=str(tmp_path / "o"))

    def test_what_is_not_compressed_may_be_offloaded(self, folder, tmp_path):
        pytest.importorskip("accelerate")
        places = {"bert.embeddings": "disk", "bert.encoder": "cpu", "bert.pooler": "cpu"}
        places |= {"classifier": "cpu"}
        kind = BertForSequenceClassification
        model = kind.from_pretrained(folder, device_map=places, offload_folder=str(tmp_path / "o"))
        assert torch.equal(outputs(model), outputs(kind.from_pretrained(folder)))
