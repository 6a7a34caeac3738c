import numpy as np
import pytest

from lada_ops.data.glue import TASKS
from lada_ops.evaluate.robustness import read_attacked, robustness
from tests.data.files import write, write_data


def test_texts_that_the_task_trains_on_are_left_out(tmp_path):
    attacked = read_attacked(write_data(tmp_path), TASKS["sst2"])
    assert attacked is not None
    assert attacked.after.texts == [("the dog",), ("a cat",)]
    assert attacked.before.texts == [("the old dog",), ("under a cat",)]
    assert attacked.before.labels == attacked.after.labels == [1, 0]


def test_attacks_that_failed_are_left_out(tmp_path):
    write(
        tmp_path / "robust/textfooler/mnli.tsv",
        "sentence\tsentence2\tlabel\torig_sentence\torig_sentence2\tvictim_fooled",
        ["a\tb\t2\tc\td\t1", "e\tf\t0\te\tf\t0"],
    )
    attacked = read_attacked(tmp_path, TASKS["mnli"])
    assert attacked is not None
    assert attacked.after.texts == [("a", "b")]
    assert attacked.before.texts == [("c", "d")]
    assert attacked.after.labels == [2]


def test_tasks_without_a_set_have_none(tmp_path):
    assert read_attacked(tmp_path, TASKS["mrpc"]) is None


def test_a_label_that_is_none_is_refused(tmp_path):
    write(
        tmp_path / "robust/textfooler/mr.tsv",
        "sentence\tlabel\torig_sentence\torig_in_sst2_train",
        ["a\t1\tb\t0", "a\t7\tb\t0"],
    )
    with pytest.raises(ValueError, match="line 3: label '7'; expected 0 to 1"):
        read_attacked(tmp_path, TASKS["sst2"])


def test_a_set_without_a_text_that_counts_is_refused(tmp_path):
    write(
        tmp_path / "robust/textfooler/mr.tsv",
        "sentence\tlabel\torig_sentence\torig_in_sst2_train",
        ["a\t1\tb\t1"],
    )
    with pytest.raises(ValueError, match=r"mr\.tsv: no row has orig_in_sst2_train 0"):
        read_attacked(tmp_path, TASKS["sst2"])


def test_accuracy_before_and_after(tmp_path):
    attacked = read_attacked(write_data(tmp_path), TASKS["sst2"])
    assert attacked is not None

    def predict(examples):  # label 1 for texts with "old"
        good = np.array(["old" in text[0] for text in examples.texts])
        return np.stack([~good, good], 1).astype(float)

    got = robustness(attacked, predict)
    assert got == {"before_attack": 1, "after_attack": 0.5, "lost": 0.5, "texts": 2}
