"""The whole run, on tiny models: trajectories, checkpoints, errors."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from lada_ops.architectures.encoders import encoder_linears
from lada_ops.compression.pretrained import compression_of
from lada_ops.distill.lada import LadaConfig
from lada_ops.distill.lada_block import LadaBlockConfig
from lada_ops.distill.losses import Losses, NotFinite
from lada_ops.distill.pruner import PruningCallback
from lada_ops.distill.recipe import Recipe
from lada_ops.distill.run import distill
from lada_ops.distill.trainer import DistillationTrainer, last_checkpoint
from tests.distill.models import arguments, collate, examples, tiny_classifier

BLOCK = LadaBlockConfig(ratio=4, rank_multiple=2, block=(32, 16))
TRAIN = examples(64)


class Cut(TrainerCallback):
    """Interrupt of the run after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def run(folder: Path, recipe: Recipe = BLOCK, teacher=None, train=TRAIN, **options) -> Any:
    settings = {
        k: options.pop(k) for k in list(options) if k not in ("dev", "callbacks", "dropout")
    }
    args = arguments(folder, **settings)
    teacher = teacher or tiny_classifier(hidden_dropout_prob=0.1)
    return distill(teacher, recipe, args, train, collate, quiet=True, **options)


def same(a, b) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


@pytest.mark.parametrize(
    "recipe",
    [
        BLOCK,
        replace(BLOCK, method="sparse_low_rank", score="movement"),
        replace(BLOCK, method="block_sparse", ratio=2.5),
        replace(BLOCK, order="prune_first"),
    ],
    ids=["low rank", "sum, movement", "blocks", "prune first"],
)
def test_lada_block_ends_at_its_ratio(recipe, tmp_path):
    student = run(tmp_path, recipe)
    found = compression_of(student)
    assert found is not None
    assert recipe.ratio <= found[1].ratio < 1.25 * recipe.ratio
    assert not student.training


@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.exhaustive), 11])
def test_a_run_that_is_cut_off_goes_on_as_if_it_was_not(stop, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = run(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", callbacks=[Cut(stop)], **settings)
    assert last_checkpoint(tmp_path / "cut" / "1-train").name == f"checkpoint-{stop // 2 * 2}"  # type: ignore[union-attr]
    assert same(run(tmp_path / "cut", **settings), whole)


def test_a_run_cut_off_between_its_stages_goes_on(tmp_path):
    recipe = replace(BLOCK, order="prune_first")
    whole = run(tmp_path / "whole", recipe)
    run(tmp_path / "cut", recipe)
    shutil.rmtree(tmp_path / "cut" / "2-train")
    assert same(run(tmp_path / "cut", recipe), whole)


def test_a_checkpoint_cut_short_is_passed_over(tmp_path):
    for step, state in ((2, "{}"), (4, '{"epo'), (6, "[" * 10**5), (10, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert last_checkpoint(tmp_path / "none") is None


def test_a_run_that_is_done_is_not_trained_again(tmp_path):
    first = run(tmp_path)
    assert same(run(tmp_path, callbacks=[Cut(1)]), first)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"learning_rate": 1e-4}, "learning_rate"),
        ({"seed": 1}, "seed"),
        ({"recipe": replace(BLOCK, ratio=3)}, "recipe"),
        ({"teacher": tiny_classifier(num_labels=3)}, "teacher"),
        ({"train": examples(32)}, "examples"),
        ({"dropout": False}, "dropout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_run_in_the_folder_is_refused(change, name, tmp_path):
    run(tmp_path)
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(ValueError, match=f"holds another run: its {name} is"):
        run(tmp_path, **change)
    assert (tmp_path / "run.json").read_text() == before


def test_a_run_file_nested_too_deep_is_a_value_error_with_the_file(tmp_path):
    (tmp_path / "run.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"run\.json.*recursion"):
        run(tmp_path)


def test_accumulated_gradients_are_those_of_the_larger_batch(tmp_path):
    """Two accumulated batches of four equal one of eight: no dropout, examples in order."""

    def trained(folder, **batches):
        torch.manual_seed(0)
        args = arguments(
            tmp_path / folder, num_train_epochs=1, train_sampling_strategy="sequential", **batches
        )
        student = tiny_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        full = [{**item, "input_ids": item["input_ids"][:4]} for item in TRAIN]
        DistillationTrainer(
            student, args, losses=Losses(labels=1), teacher=tiny_classifier(), train_dataset=full,
            data_collator=collate,
        ).train()  # fmt: skip
        return student

    whole = trained("whole", per_device_train_batch_size=8)
    parts = trained("parts", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


class Watch(TrainerCallback):
    """Record of the dropout rates and the attention of the model in training."""

    def __init__(self) -> None:
        self.recorded: list[Any] = []

    def __deepcopy__(self, memo):
        return self

    def on_train_begin(self, args, state, control, model: Any = None, **_):
        self.recorded += [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        self.recorded.append(model.config._attn_implementation)


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_is_left_out_of_training_alone(dropout, tmp_path):
    watch = Watch()
    student = run(tmp_path, dropout=dropout, callbacks=[watch])
    *shares, attention = watch.recorded
    assert max(shares) == (0.1 if dropout else 0.0)
    assert student.config.hidden_dropout_prob == 0.1
    assert student.bert.embeddings.dropout.p == 0.1
    assert (attention, student.config._attn_implementation) == ("eager", "sdpa")


def test_a_loss_that_is_not_finite_stops_the_run_and_its_checkpoints_stay_good(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}

    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model: Any = None, **_):
            if state.global_step == 5:
                with torch.no_grad():
                    model.classifier.weight.fill_(float("nan"))

    with pytest.raises(NotFinite, match="the loss is nan at step 6"):
        run(tmp_path / "cut", callbacks=[Spoil()], **settings)
    assert same(run(tmp_path / "cut", **settings), run(tmp_path / "whole", **settings))


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    class Spoil(TrainerCallback):
        def on_train_begin(self, args, state, control, model: Any = None, **_):
            model.classifier.weight.register_hook(lambda grad: grad * float("inf"))

    with pytest.raises(NotFinite, match="gradient is NaN or infinite at step 1"):
        run(tmp_path, callbacks=[Spoil()])


def test_the_terms_are_logged_beside_the_loss(tmp_path):
    logs = []

    class Keep(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            kept.append(logs)

        def __deepcopy__(self, memo):
            return self

    kept = logs
    run(tmp_path, replace(BLOCK, losses=Losses(labels=0.5)), callbacks=[Keep()])
    first = next(log for log in logs if "loss" in log)
    parts = sum(first[f"loss_{name}"] for name in ("attention", "hidden", "logits"))
    assert parts + 0.5 * first["loss_labels"] == pytest.approx(first["loss"], rel=1e-4)


def test_only_models_pruned_to_the_end_compete_for_the_best(tmp_path):
    student = run(
        tmp_path, num_train_epochs=4, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="loss", dev=examples(16, seed=1),
        callbacks=[EarlyStoppingCallback(1)],
    )  # fmt: skip
    report = compression_of(student)[1]  # type: ignore[index]
    assert report.ratio >= 4


def test_the_student_learns_what_the_teacher_knows(tmp_path):
    """A teacher trained on the labels, a student that sees none of them."""
    teacher = tiny_classifier()
    DistillationTrainer(
        teacher, arguments(tmp_path / "teacher", num_train_epochs=6), train_dataset=examples(256),
        losses=Losses(attention=0, hidden=0, logits=0, labels=1), data_collator=collate,
    ).train()  # fmt: skip
    dev = collate(examples(128, seed=7))

    def accuracy(model):
        with torch.no_grad():
            return float((model.eval()(**dev).logits.argmax(1) == dev["labels"]).float().mean())

    assert accuracy(teacher) > 0.95
    unlabelled = [{"input_ids": item["input_ids"]} for item in examples(256, seed=3)]
    student = run(tmp_path, teacher=teacher, train=unlabelled, num_train_epochs=4)
    assert accuracy(student) > 0.9


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="cannot be reached"):
        run(tmp_path / "x", replace(BLOCK, ratio=500))
    with pytest.raises(ValueError, match="rank 256 for bert.encoder"):
        run(tmp_path / "x", LadaConfig())
    assert not (tmp_path / "x").exists()


def test_the_teacher_is_left_as_it_was(tmp_path):
    teacher = tiny_classifier()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    run(tmp_path, teacher=teacher)
    assert all(torch.equal(t, before[n]) for n, t in teacher.state_dict().items())
    assert len(encoder_linears(teacher)) == 12
    assert all(p.requires_grad for p in teacher.parameters())


def test_a_teacher_is_needed_where_a_term_does(tmp_path):
    with pytest.raises(ValueError, match="teacher None for losses that need one"):
        DistillationTrainer(tiny_classifier(), arguments(tmp_path), losses=Losses())


def test_a_pruner_s_state_is_in_the_checkpoint(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=16)
    text = (tmp_path / "1-train" / "checkpoint-16" / "trainer_state.json").read_text()
    assert PruningCallback.__name__ in text
