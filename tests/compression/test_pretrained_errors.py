"""Folders that are damaged, foreign, or from the future."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from lada_ops import compress
from tests.compression.test_compress import make_plan
from tests.tiny_encoders import tiny_bert, with_head

QUERY = "encoder.layer.0.attention.self.query"
# transformers' own words in some releases, ours in the others
MISMATCH = rf"ignore_mismatched_sizes|{QUERY}\.\w+ is .*plan expects"


@pytest.fixture
def folder(tmp_path):
    """A compressed model on disk."""
    model = tiny_bert()
    compress(model, plan=make_plan(model, "sparse_low_rank", ratio=1.2), quiet=True)
    model.save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, edit):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def edit_tensors(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def refuses(folder, message, error: type[Exception] | tuple[type[Exception], ...] = ValueError):
    with pytest.raises(error, match=message):
        AutoModel.from_pretrained(folder)


def test_a_format_from_the_future(folder):
    edit_config(folder, lambda config: config["quantization_config"].update(format_version=2))
    refuses(folder, "format_version 2 in the model's quantization_config; expected 1 to 1: a newer")


def test_a_plan_that_is_gone(folder):
    edit_config(folder, lambda config: config["quantization_config"].pop("plan"))
    refuses(folder, "CompressionPlan: missing")


def test_a_report_that_is_gone(folder):
    edit_config(folder, lambda config: config["quantization_config"].pop("report"))
    refuses(folder, "CompressionReport")


def test_a_layer_with_a_wrong_rank(folder):
    def edit(config):
        config["quantization_config"]["plan"]["layers"][QUERY]["rank"] = 99

    edit_config(folder, edit)
    refuses(folder, f"layer '{QUERY}': LayerPlan: rank 99 .*expected 1 to 32")


def test_a_layer_with_another_rank_than_its_tensors(folder):
    def edit(config):
        config["quantization_config"]["plan"]["layers"][QUERY]["rank"] += 1

    edit_config(folder, edit)
    refuses(folder, MISMATCH, (RuntimeError, ValueError))


def test_a_layer_with_another_density_than_its_tensors(folder):
    def edit(config):
        config["quantization_config"]["plan"]["layers"][QUERY]["density"] = 1.0

    edit_config(folder, edit)
    refuses(folder, MISMATCH, (RuntimeError, ValueError))


def test_a_plan_for_other_shapes(folder):
    def edit(config):
        layer = config["quantization_config"]["plan"]["layers"][QUERY]
        layer["in_features"] = 64

    edit_config(folder, edit)
    refuses(folder, rf"{QUERY} .*\(32, 32\); the checkpoint.s plan expects \(64, 32\)")


def test_a_plan_with_names_the_model_lacks(folder):
    def edit(config):
        for part in ("plan", "report"):
            layers = config["quantization_config"][part]["layers"]
            layers["encoder.layer.7.output.dense"] = layers[QUERY]

    edit_config(folder, edit)
    refuses(folder, "BertModel has no nn.Linear named 'encoder.layer.7.output.dense'.*expected")


def test_one_linear_under_two_names(folder):
    def edit(config):
        for part in ("plan", "report"):
            layers = config["quantization_config"][part]["layers"]
            layers[f"bert.{QUERY}"] = layers[QUERY]

    edit_config(folder, edit)
    refuses(folder, f"plan compresses {QUERY} twice, as '{QUERY}' and 'bert.{QUERY}'; expected it")


@pytest.mark.parametrize(("part", "other"), [("plan", "report"), ("report", "plan")])
def test_a_layer_that_only_one_of_plan_and_report_has(part, other, folder):
    def edit(config):
        del config["quantization_config"][part]["layers"][QUERY]

    edit_config(folder, edit)
    refuses(folder, rf"the {other} has '{QUERY}', which the {part} lacks; expected the same layers")


def test_another_model_class(folder):
    model = with_head("distilbert")
    with pytest.raises(ValueError, match="has no nn.Linear named"):
        type(model).from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("col_indices", lambda t: t.fill_(999), "col_indices holds 999; expected 0 to 7"),
        ("col_indices", lambda t: t.fill_(-1), "col_indices holds -1"),
        ("col_indices", lambda t: t.zero_(), "expected strictly ascending"),
        ("crow_indices", lambda t: t.zero_(), r"crow_indices \[0, 0.*expected 0 first"),
        ("crow_indices", lambda t: t.add_(1), "expected 0 first"),
    ],
)
def test_wrong_indices(folder, name, spoil, message):
    edit_tensors(folder, lambda tensors: spoil(tensors[f"{QUERY}.{name}"]))
    refuses(folder, message)


def test_wrong_indices_name_their_layer(folder):
    edit_tensors(folder, lambda tensors: tensors[f"{QUERY}.col_indices"].fill_(999))
    refuses(folder, QUERY)


@pytest.mark.parametrize("name", ["u", "v", "values", "crow_indices", "col_indices", "bias"])
def test_a_missing_tensor(folder, name):
    edit_tensors(folder, lambda tensors: tensors.pop(f"{QUERY}.{name}"))
    refuses(folder, f"the checkpoint lacks {QUERY}.{name}")


def test_a_dense_weight_in_place_of_factors(folder):
    def edit(tensors):
        for name in ("u", "v", "values", "crow_indices", "col_indices"):
            del tensors[f"{QUERY}.{name}"]
        tensors[f"{QUERY}.weight"] = torch.zeros(32, 32)

    edit_tensors(folder, edit)
    refuses(folder, f"the checkpoint lacks {QUERY}.u, v, crow_indices, col_indices, values|lacks")


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_a_truncated_file(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refuses(folder, "(?i)header|invalid|incomplete|truncat|safetensors", Exception)


def test_a_missing_file(folder):
    (folder / "model.safetensors").unlink()
    refuses(folder, "no file named model.safetensors", OSError)


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    refuses(tmp_path, "(?i)config.json|model_type|recognize", (OSError, ValueError))  # type: ignore[arg-type]
