import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForTokenClassification,
    BertModel,
    DataCollatorWithPadding,
    Trainer,
)

from lada_ops.data.dataset import check_model, tokenized
from lada_ops.data.glue import TASKS, Examples
from tests.distill.models import arguments, tiny_classifier
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


def test_trainer_groups_them_by_length(tokenizer, tmp_path):
    counts = [n * 19 % 64 + 1 for n in range(64)]  # of words: 1 to 64, in no order
    examples = Examples([("dog " * n,) for n in counts], [n % 2 for n in counts])

    def padding(strategy):
        trainer = Trainer(
            tiny_classifier(),
            arguments(tmp_path, train_sampling_strategy=strategy, per_device_train_batch_size=2),
            train_dataset=tokenized(tokenizer, examples),  # type: ignore[arg-type]
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        batches = list(trainer.get_train_dataloader())
        lengths = [batch["attention_mask"].sum(1) for batch in batches]
        assert sorted(torch.cat(lengths).tolist()) == list(range(3, 67))
        for batch, length in zip(batches, lengths, strict=True):
            assert batch["labels"].tolist() == (length % 2).tolist()
        return sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)

    assert padding("group_by_length") < padding("random") / 2


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
