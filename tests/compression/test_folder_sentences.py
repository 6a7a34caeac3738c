"""Folders of sentence-transformers, compressed and distilled whole and loaded back by it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lada_cli import app
from lada_ops.modules.compressed_linear import CompressedLinear
from tests.tiny_model import write_tiny_model

sentence_transformers = pytest.importorskip("sentence_transformers", "6.2")
models = pytest.importorskip("sentence_transformers.models")

TEXTS = ["the old dog sleeps under the house .", "a cat", "the cat sleeps , the dog a house"]


def lada(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def transformer(tmp_path_factory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("transformer")))


def embedder(modules, folder: Path):
    torch.manual_seed(0)
    model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    model.save(str(folder))
    return model


def load(folder: Path):
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def compressed(model) -> int:
    return sum(isinstance(module, CompressedLinear) for module in model.modules())


def weights_below(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.relative_to(folder)}/{name}": tensor
        for path in folder.glob("*/**/*.safetensors")
        for name, tensor in load_file(path).items()
    }


STACKS = {
    "dense": lambda: [
        models.Pooling(256, "mean"),
        models.Dense(256, 16),
        models.LayerNorm(16),
        models.Normalize(),
    ],
    "cnn": lambda: [models.CNN(256, 24, [1, 3]), models.Pooling(48, "max")],
}


@pytest.mark.parametrize("stack", STACKS)
def test_every_module_keeps_its_weights(stack, transformer, tmp_path):
    rest = STACKS[stack]()
    before = embedder([models.Transformer(transformer), *rest], tmp_path / "dense")
    lada("compress", tmp_path / "dense", "--ratio", 4, "--out", tmp_path / "small")
    model = load(tmp_path / "small")
    assert compressed(model) == 12
    assert [type(module) for module in model] == [type(module) for module in before]
    want, got = weights_below(tmp_path / "dense"), weights_below(tmp_path / "small")
    assert want
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    for one, other in zip(list(before)[1:], list(model)[1:], strict=True):
        assert all(torch.equal(t, other.state_dict()[n]) for n, t in one.state_dict().items())
    assert model.encode(TEXTS).shape == before.encode(TEXTS).shape


def test_layers_that_are_pooled_by_weight_keep_them(transformer, tmp_path):
    layers = models.WeightedLayerPooling(256, num_hidden_layers=2, layer_start=0)
    first = models.Transformer(transformer, config_kwargs={"output_hidden_states": True})
    embedder([first, layers, models.Pooling(256)], tmp_path / "dense")
    lada("compress", tmp_path / "dense", "--ratio", 4, "--out", tmp_path / "small")
    want, got = weights_below(tmp_path / "dense"), weights_below(tmp_path / "small")
    assert want.keys() == got.keys() == {"1_WeightedLayerPooling/layer_weights"}


def test_a_dense_module_saved_as_a_pickle_is_kept(transformer, tmp_path):
    torch.manual_seed(0)
    modules = [models.Transformer(transformer), models.Pooling(256), models.Dense(256, 16)]
    model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    model.save(str(tmp_path / "dense"))
    (tmp_path / "dense/2_Dense/model.safetensors").unlink()
    torch.save(model[2].state_dict(), tmp_path / "dense/2_Dense/pytorch_model.bin")
    lada("compress", tmp_path / "dense", "--ratio", 4, "--out", tmp_path / "small")
    assert torch.equal(load(tmp_path / "small")[2].linear.weight, model[2].linear.weight)


def test_a_module_of_the_users_own_code_is_kept(transformer, tmp_path):
    embedder([models.Transformer(transformer), models.Pooling(256)], tmp_path / "dense")
    (tmp_path / "dense" / "halving.py").write_text(
        "from sentence_transformers.models import Module\n\n\n"
        "class Halving(Module):\n"
        "    def forward(self, features, **kwargs):\n"
        "        features['sentence_embedding'] = features['sentence_embedding'] / 2\n"
        "        return features\n\n"
        "    def save(self, output_path, *args, **kwargs):\n"
        "        pass\n"
    )
    path = tmp_path / "dense" / "modules.json"
    own = {"idx": 2, "name": "2", "path": "2_Halving", "type": "halving.Halving"}
    path.write_text(json.dumps([*json.loads(path.read_text()), own]))
    (tmp_path / "dense" / "2_Halving").mkdir()
    lada("compress", tmp_path / "dense", "--ratio", 4, "--out", tmp_path / "small")
    model = sentence_transformers.SentenceTransformer(
        str(tmp_path / "small"), device="cpu", trust_remote_code=True
    )
    assert type(model[2]).__name__ == "Halving"
    assert compressed(model) == 12


def test_a_router_s_transformers_are_compressed_one_by_one(transformer, tmp_path):
    router = models.Router.for_query_document(
        [models.Transformer(transformer), models.Pooling(256)],
        [models.Transformer(transformer), models.Pooling(256), models.Dense(256, 256)],
    )
    embedder([router], tmp_path / "whole")
    asked = ("compress", tmp_path / "whole", "--ratio", "4", "--out", tmp_path / "x")
    result = CliRunner().invoke(app, [str(arg) for arg in asked])
    assert result.exit_code == 1
    places = sorted(
        path.parent.relative_to(tmp_path / "whole").as_posix()
        for path in (tmp_path / "whole").glob("**/sentence_bert_config.json")
    )
    assert len(places) == 2
    assert f"there are models in {places}" in result.stderr
    inner = tmp_path / "whole" / next(place for place in places if "query" in place)
    lada("compress", inner, "--ratio", 4, "--out", inner, "--overwrite")
    model = load(tmp_path / "whole")
    assert compressed(model) == 12
    assert model.encode_query(TEXTS).shape == model.encode_document(TEXTS).shape == (3, 256)


def test_an_embedder_is_distilled_with_its_modules(transformer, tmp_path):
    before = embedder(
        [models.Transformer(transformer), models.Pooling(256, "cls"), models.Dense(256, 16)],
        tmp_path / "dense",
    )
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS * 2))
    lada(
        *("distill", tmp_path / "dense", "--texts", tmp_path / "texts.txt", "--ratio", 3),
        *("--out", tmp_path / "small", "--epochs", 1, "--json"),
    )
    model = load(tmp_path / "small")
    assert compressed(model) == 12
    assert model[1].pooling_mode == "cls"
    assert torch.equal(model[2].linear.weight, before[2].linear.weight)
    recipe = json.loads((tmp_path / "small.training" / "run.json").read_text())["recipe"]
    assert recipe["losses"]["pooling"] == "cls"


def test_pooling_that_no_student_can_learn_is_named(transformer, tmp_path):
    embedder([models.Transformer(transformer), models.Pooling(256, "lasttoken")], tmp_path / "d")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    asked = ("distill", tmp_path / "d", "--texts", tmp_path / "texts.txt", "--out", tmp_path / "s")
    result = CliRunner().invoke(app, [str(arg) for arg in asked])
    assert result.exit_code == 1
    assert "pools by lasttoken; expected one of mean, cls, or --pooling" in result.stderr
    assert not (tmp_path / "s").exists()
