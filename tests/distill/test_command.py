"""Losses and defaults of `lada distill`, by the type of the teacher."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM, BertModel

from lada_ops.distill.command import Settings, losses_of, with_defaults
from lada_ops.distill.losses import EMBEDDINGS, Losses
from tests.distill.models import tiny_classifier
from tests.tiny_model import tiny_config


def settings(folder, pooling=None) -> Any:
    return SimpleNamespace(teacher=str(folder), pooling=pooling, labels=0.0)


def write_pooling(folder, **modes):
    (folder / "1_Pooling").mkdir()
    content = {"word_embedding_dimension": 256} | {f"pooling_mode_{k}": v for k, v in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))


def write_modules(folder, place, mode):
    """Write the pooling module as sentence-transformers 6.2 saves it."""
    kind = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    (folder / "modules.json").write_text(json.dumps([{"idx": 1, "path": place, "type": kind}]))
    (folder / place).mkdir()
    content = {"embedding_dimension": 256, "pooling_mode": mode, "include_prompt": True}
    (folder / place / "config.json").write_text(json.dumps(content))


@pytest.fixture
def embedder():
    torch.manual_seed(0)
    return BertModel(tiny_config())


def test_a_classifier_learns_all_of_the_paper():
    assert losses_of(settings("any"), tiny_classifier()) == Losses()


def test_of_another_head_the_logits_are_not_learnt():
    assert losses_of(settings("any"), BertForMaskedLM(tiny_config())) == Losses(logits=0)


def test_an_embedder_learns_its_embeddings(embedder, tmp_path):
    assert losses_of(settings(tmp_path), embedder) == EMBEDDINGS


def test_texts_are_pooled_as_the_folder_says(embedder, tmp_path):
    write_pooling(tmp_path, cls_token=True, mean_tokens=False)
    assert losses_of(settings(tmp_path), embedder).pooling == "cls"
    assert losses_of(settings(tmp_path, "mean"), embedder).pooling == "mean"


@pytest.mark.parametrize("modes", [{"max_tokens": True}, {"cls_token": True, "mean_tokens": True}])
def test_pooling_that_is_not_known_is_refused(modes, embedder, tmp_path):
    write_pooling(tmp_path, **modes)
    with pytest.raises(ValueError, match="pools by (max|cls, mean); expected one of mean, cls, or"):
        losses_of(settings(tmp_path), embedder)


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
def test_a_pooling_file_nested_too_deep_is_a_value_error_with_the_file(name, embedder, tmp_path):
    write_pooling(tmp_path, cls_token=True)
    (tmp_path / name).write_text("[" * 10**5)
    with pytest.raises(ValueError, match=rf"{name}.*recursion"):
        losses_of(settings(tmp_path), embedder)


@pytest.mark.parametrize("mode", ["mean", "cls", ["cls"]])
def test_texts_are_pooled_as_newer_folders_say(mode, embedder, tmp_path):
    write_modules(tmp_path, "2_Pooling", mode)
    assert losses_of(settings(tmp_path), embedder).pooling in mode


@pytest.mark.parametrize("mode", ["lasttoken", ["mean", "max"]])
def test_newer_pooling_that_is_not_known_is_refused(mode, embedder, tmp_path):
    write_modules(tmp_path, "1_Pooling", mode)
    with pytest.raises(ValueError, match="pools by (lasttoken|mean, max); expected one of mean, "):
        losses_of(settings(tmp_path), embedder)
    assert losses_of(settings(tmp_path, "cls"), embedder).pooling == "cls"


def test_texts_are_pooled_as_the_folder_of_a_hub_name_says(embedder, tmp_path, monkeypatch):
    root = tmp_path / "models--me--tiny"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    (root / "snapshots" / ("0" * 40)).mkdir(parents=True)
    write_modules(root / "snapshots" / ("0" * 40), "1_Pooling", "cls")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert losses_of(settings("me/tiny"), embedder).pooling == "cls"


@pytest.mark.parametrize("rate", [None, 3e-5])
@pytest.mark.parametrize("dropout", [None, True, False])
def test_given_options_override_the_defaults_by_teacher(rate, dropout, embedder):
    given = Settings(**dict.fromkeys(Settings.__dataclass_fields__))  # type: ignore[arg-type]
    given = replace(given, learning_rate=rate, dropout=dropout)
    for teacher, usual in ((tiny_classifier(), (2e-4, True)), (embedder, (1e-3, False))):
        made = with_defaults(given, teacher)
        assert made.learning_rate == (usual[0] if rate is None else rate)
        assert made.dropout == (usual[1] if dropout is None else dropout)
