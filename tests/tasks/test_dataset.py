import pytest
from transformers import AutoTokenizer, BertForTokenClassification, BertModel

from lada_ops.tasks.dataset import check_model, tokenized
from lada_ops.tasks.glue import TASKS, Examples
from tests.distill.models import tiny_classifier
from tests.tiny_model import tiny_config, write_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(write_tiny_model(tmp_path_factory.mktemp("model")))


def test_an_example_is_its_tokens_and_its_label(tokenizer):
    examples = Examples([("the dog", "a cat"), ("old", "house")], [1, 0])
    first, second = tokenized(tokenizer, examples)
    want = tokenizer("the dog", "a cat")
    assert first == {**want, "labels": 1}
    assert second["input_ids"] == tokenizer("old", "house")["input_ids"]
    assert set(first["token_type_ids"]) == {0, 1}


def test_long_texts_are_cut(tokenizer):
    (only,) = tokenized(tokenizer, Examples([("dog " * 50,)], [1]), max_length=8)
    assert len(only["input_ids"]) == 8


def test_a_model_of_the_task_passes(tokenizer):
    check_model(tiny_classifier(), tokenizer, TASKS["sst2"])
    check_model(tiny_classifier(num_labels=1), tokenizer, TASKS["stsb"])
    trained = {"num_labels": 1, "problem_type": "regression"}
    check_model(tiny_classifier(**trained), tokenizer, TASKS["stsb"])
    names = {0: "NEGATIVE", 1: "POSITIVE"}
    check_model(tiny_classifier(id2label=names), tokenizer, TASKS["sst2"])


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (tiny_classifier(), "mnli", r"has 2 labels; expected 3 for mnli: \('entailment'"),
        (tiny_classifier(), "stsb", "has 2 labels; expected 1 for stsb, a score"),
        (tiny_classifier(id2label={0: "entailment", 1: "contradiction", 2: "neutral"}), "mnli",
         "calls label 1 'contradiction'; expected 'neutral'"),
        (tiny_classifier(problem_type="regression"), "sst2",
         "problem_type is 'regression'; expected 'single_label_classification' for sst2"),
        (tiny_classifier(num_labels=1, problem_type="multi_label_classification"), "stsb",
         "problem_type is 'multi_label_classification'; expected 'regression' for stsb"),
        (tiny_classifier(vocab_size=10), "sst2", "tokenizer has 33 tokens, the model embeds 10"),
        (BertModel(tiny_config()), "sst2", "BertModel has no head for sst2"),
        (BertForTokenClassification(tiny_config()), "sst2", "has no head for sst2"),
    ],
)  # fmt: skip
def test_another_model_is_refused(model, task, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        check_model(model, tokenizer, TASKS[task])
