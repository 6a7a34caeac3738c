import copy
import re

import pytest
import torch
from transformers import AutoTokenizer

import lada_ops
from lada_ops.data.glue import TASKS, Examples
from lada_ops.evaluate import evaluation
from lada_ops.evaluate.evaluation import (
    check_vocabularies,
    evaluate,
    linear_counts,
    linear_names,
    logits_of,
)
from lada_ops.modules.compressed_linear import CompressedLinear
from tests.data.files import write_data
from tests.distill.models import tiny_classifier
from tests.tiny_model import write_tiny_model

SIZES = {"1x8": (1, 8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("model"))
    tiny_classifier().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def compressed(layers=None):
    model = tiny_classifier()
    plan = lada_ops.plan(model, 2, "low_rank", layers=layers)
    lada_ops.compress(model, plan=plan, quiet=True)
    return model


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_logits_are_in_the_order_of_the_examples(batch, tokenizer, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", batch)
    model = tiny_classifier()
    words = ["old", "dog", "under", "cat", "house", "sleeps", "the"]
    texts = [(" ".join(words[: n * 5 % 7 + 1]), words[n % 7]) for n in range(7)]
    got = logits_of(model, tokenizer, Examples(texts, [0] * 7), TASKS["mrpc"])
    with torch.no_grad():
        want = [model(**tokenizer(*pair, return_tensors="pt")).logits[0] for pair in texts]
    assert len({tuple(row.tolist()) for row in want}) == 7
    torch.testing.assert_close(torch.tensor(got).float(), torch.stack(want))


def tensors_of(model, names):
    """Parameters of the modules of these names."""
    return [p for n, p in model.named_parameters() if n.rpartition(".")[0] in names]


@pytest.mark.parametrize("make", [tiny_classifier, compressed], ids=["dense", "compressed"])
def test_linears_are_counted_as_they_are_now(make):
    model = make()
    names = [
        n for n, _ in model.named_modules() if re.search(r"(query|key|value|r\.\d.*dense)$", n)
    ]
    assert len(names) == 12
    assert linear_names(model) == sorted(names)
    with torch.no_grad():
        for tensor in tensors_of(model, names):
            tensor.fill_(1)[..., ::3] = 0  # as training that prunes leaves it
    tensors = tensors_of(model, names)
    counts = linear_counts(model, names)
    assert counts.stored_bytes == sum(4 * t.numel() for t in tensors)
    assert counts.nonzeros == sum(int((t != 0).sum()) for t in tensors)
    bits = sum((t.numel() + 7) // 8 for t in tensors)
    assert counts.masked_bytes == 4 * counts.nonzeros + bits
    work = sum(t.numel() * (2 if t.ndim == 2 else 1) for t in tensors)
    assert counts.flops_per_token == work


def test_what_only_the_student_has_compressed_is_counted_in_both():
    dense, student = tiny_classifier(), compressed(r"pooler\.dense")
    names = linear_names(dense, student)
    assert isinstance(student.get_submodule("bert.pooler.dense"), CompressedLinear)
    assert len(names) == 13
    assert "bert.pooler.dense" in names
    less = linear_counts(dense, names).stored_bytes - linear_counts(student, names).stored_bytes
    pooler = dense.get_submodule("bert.pooler.dense"), student.get_submodule("bert.pooler.dense")
    sizes = [sum(4 * p.numel() for p in module.parameters()) for module in pooler]
    assert less == sizes[0] - sizes[1] > 0


def test_a_student_of_fewer_layers_counts_those_that_it_has():
    dense, student = tiny_classifier(num_hidden_layers=4), tiny_classifier(num_hidden_layers=2)
    names = linear_names(dense, student)
    sizes = [linear_counts(model, names).stored_bytes for model in (dense, student)]
    assert sizes[0] == 2 * sizes[1] > 0


def test_tokenizers_with_other_words_or_other_ids_are_refused(folder, tokenizer, tmp_path):
    check_vocabularies(tokenizer, AutoTokenizer.from_pretrained(folder))
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["horse"])
    with pytest.raises(ValueError, match="teacher's has 33 tokens, the student's 34"):
        check_vocabularies(tokenizer, more)


def test_a_student_of_another_dtype_is_refused_before_the_work(folder, tmp_path, monkeypatch):
    student = compressed().bfloat16()
    student.save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "student")
    monkeypatch.setattr(evaluation, "logits_of", None)
    data = write_data(tmp_path / "data")
    with pytest.raises(ValueError, match="expected BertForSeq.* in torch.bfloat16: only like"):
        evaluate(str(tmp_path / "student"), str(folder), data, "sst2", sizes=SIZES)


def test_shapes_that_are_too_long_are_refused_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "logits_of", None)
    with pytest.raises(ValueError, match="1x129; expected lengths up to the model's 128"):
        evaluate(str(folder), str(folder), write_data(tmp_path), "sst2", sizes={"1x129": (1, 129)})


def test_regression_has_scores_and_no_loyalty(tmp_path):
    folders = [write_tiny_model(tmp_path / name) for name in ("teacher", "student")]
    teacher = tiny_classifier(num_labels=1)
    teacher.save_pretrained(folders[0])
    lada_ops.compress(teacher, 2, "low_rank", quiet=True)
    teacher.save_pretrained(folders[1])
    data = write_data(tmp_path / "data")
    found = evaluate(str(folders[1]), str(folders[0]), data, "stsb", sizes=SIZES, rounds=1)
    assert (found["metric"], found["examples"]) == ("spearman", 8)
    for row in found["models"]:
        assert row.keys() == {"name", "linears", "model_bytes", "scores"}
        assert row["scores"].keys() == {"spearman", "pearson"}
