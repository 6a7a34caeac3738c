"""Accuracy of every compression method: ``python -m benchmarks.accuracy.table``.

MiniLM is fine-tuned on a task and compressed by every method at every ratio, with equal training,
and evaluated beside the teacher. The result file is written after every row, so that an interrupted
run resumes and existing rows are kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    TrainingArguments,
)

import lada_ops
from benchmarks.accuracy.methods import LABELS, METHODS
from lada_ops.compression.folder import load_model, save_model
from lada_ops.data.dataset import tokenized
from lada_ops.data.glue import Task, find_task, read_split
from lada_ops.data.metrics import compute_metrics
from lada_ops.demo import model_folder
from lada_ops.distill.run import distill
from lada_ops.distill.trainer import DistillationTrainer
from lada_ops.evaluate.evaluation import evaluate
from lada_ops.host.environment import device_slug, environment
from lada_ops.host.files import staged_folder, write_json
from lada_ops.latency.bench import ServedModels

RESULTS = Path(__file__).parents[1] / "results"
TRAIN_FILES = {"sst2": "train_sentences.tsv"}  # 7k whole sentences, of 67k phrases
EPOCHS = {"sst2": 3, "mrpc": 5}
TEACHER_RATE, RATE = 5e-5, 2e-4
BATCH = 32
SIZES = {"1x16": (1, 16), "1x128": (1, 128), "8x128": (8, 128)}
ROUNDS = 15
TEACHER = "{}-teacher"  # folder of a task's teacher
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="Folder with glue/ and robust/.")],
    work: Annotated[Path, typer.Option(help="Folder of models and checkpoints.")],
    tasks: Annotated[str, typer.Option(help="Tasks, comma-separated.")] = "sst2",
    methods: Annotated[str, typer.Option(help="Methods, comma-separated.")] = ",".join(METHODS),
    ratios: Annotated[str, typer.Option(help="Ratios, comma-separated.")] = "5,2.5,10,7.5",
    seeds: Annotated[str, typer.Option(help="Seeds, comma-separated.")] = "0",
    again: Annotated[
        bool, typer.Option(help="Repeat the timing of existing rows, on a quiet machine.")
    ] = False,
    bf16: Annotated[bool, typer.Option(help="Train in mixed precision.")] = True,
    results: Annotated[Path, typer.Option(help="Writes DIR/<device>/compression.json.")] = RESULTS,
) -> None:
    """Measure the missing rows, in the order of seeds, ratios and methods."""
    path = results / device_slug() / "compression.json"
    if again:
        content = json.loads(path.read_text()) | {"environment": environment()}
        for made in content["rows"]:
            made["speedups"] = timed(work, made)
            write_json(path, content)
        return
    for task in map(find_task, tasks.split(",")):
        row = Row(data, work, task, bf16)
        for seed in map(int, seeds.split(",")):
            for ratio in map(float, ratios.split(",")):
                for method in methods.split(","):
                    rows = json.loads(path.read_text())["rows"] if path.exists() else []
                    if any(_key(r) == (task.name, method, ratio, seed) for r in rows):
                        continue
                    made = row.make(method, ratio, seed)
                    where = made.pop("environment")
                    write_json(path, {"environment": where, "rows": [*rows, made]})
                    Console().print(_line(made))


def timed(work: Path, row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Speed-ups of a row, from its saved student and teacher."""
    dense = load_model(str(work / TEACHER.format(row["task"])))
    folder = str(work / _name(*_key(row)))
    return _speedups(
        ServedModels.of_models(folder, dense, load_model(folder)).shapes(SIZES, ROUNDS)
    )


class Row:
    """Rows of one task, whose teacher is fine-tuned once."""

    def __init__(self, data: Path, work: Path, task: Task, bf16: bool) -> None:
        self.data, self.work, self.task, self.bf16 = data, work, task, bf16
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder())
        train = read_split(data, task, "train", TRAIN_FILES.get(task.name))
        self.train = tokenized(self.tokenizer, train)
        self.dev = tokenized(self.tokenizer, read_split(data, task, "dev"))
        self.collate = DataCollatorWithPadding(self.tokenizer)
        self.teacher = work / TEACHER.format(task.name)
        if not self.teacher.exists():
            self._fine_tune()

    def make(self, method: str, ratio: float, seed: int) -> dict[str, Any]:
        """Train and evaluate a student; its row."""
        name = _name(self.task.name, method, ratio, seed)
        folder, teacher = self.work / name, load_model(str(self.teacher), "cpu")
        recipe = METHODS[method](teacher, ratio)
        curve: list[dict[str, float]] = []
        if recipe is None:
            student = teacher
            batches = [self.collate(self.train[i : i + BATCH]) for i in range(0, 2048, BATCH)]
            lada_ops.compress(student, ratio, calibration=batches)
        else:
            args = self._arguments(self.work / f"{name}.training", RATE, seed)
            student = distill(
                teacher,
                recipe,
                args,
                self.train,
                self.collate,
                dev=self.dev,
                compute_metrics=compute_metrics(self.task),
            )
            curve = _curve(Path(args.output_dir or ""), self.task)
        save_model(student, str(self.teacher), folder, overwrite=True)
        found = evaluate(
            str(folder), str(self.teacher), self.data, self.task.name, sizes=SIZES, rounds=ROUNDS
        )
        return {
            "task": self.task.name,
            "method": method,
            "ratio": ratio,
            "seed": seed,
            "epochs": EPOCHS[self.task.name] if recipe else 0,
            "learning_rate": RATE if recipe else None,
            "bf16": self.bf16,
            "batch": BATCH,
            "curve": curve,
            "models": found["models"],
            "speedups": _speedups(found),
            "environment": found["environment"],
        }

    def _fine_tune(self) -> None:
        labels = dict(enumerate(self.task.labels)) or {0: "score"}
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            model_folder(), id2label=labels, label2id={name: i for i, name in labels.items()}
        )
        trainer = DistillationTrainer(
            model,
            self._arguments(self.work / f"{self.teacher.name}.training", TEACHER_RATE, 0),
            losses=LABELS,
            train_dataset=self.train,
            eval_dataset=self.dev,
            data_collator=self.collate,
            compute_metrics=compute_metrics(self.task),
        )
        trainer.train()
        with staged_folder(self.teacher) as stage:
            model.save_pretrained(stage)
            self.tokenizer.save_pretrained(stage)

    def _arguments(self, folder: Path, rate: float, seed: int) -> TrainingArguments:
        steps = -(-len(self.train) // BATCH)
        return TrainingArguments(
            str(folder),
            num_train_epochs=EPOCHS[self.task.name],
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=2 * BATCH,
            learning_rate=rate,
            warmup_steps=0.1,
            seed=seed,
            bf16=self.bf16,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            train_sampling_strategy="group_by_length",
            eval_strategy="steps",
            eval_steps=steps // 2,
            save_steps=steps // 2,
            save_total_limit=1,
            logging_steps=steps // 2,
            report_to=[],
        )


def _curve(folder: Path, task: Task) -> list[dict[str, float]]:
    """Metric of the task at every evaluated step, over all stages."""
    found, before = [], 0
    for path in sorted(folder.glob("*/trained/trainer_state.json")):
        state = json.loads(path.read_text(encoding="utf-8"))
        for log in state["log_history"]:
            if f"eval_{task.metric}" in log:
                point = {"step": before + log["step"], task.metric: log[f"eval_{task.metric}"]}
                found.append(point)
        before += state["global_step"]
    return found


def _speedups(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Speed-ups of the models, by batch x length and name."""
    return {
        comparison["label"]: {t["name"]: t["speedup_median"] for t in comparison["timings"]}
        for comparison in found["comparisons"]
    }


def _name(task: str, method: str, ratio: float, seed: int) -> str:
    return f"{task}-{method}-{ratio:g}-{seed}"


def _key(row: dict[str, Any]) -> tuple[str, str, float, int]:
    return row["task"], row["method"], row["ratio"], row["seed"]


def _line(row: dict[str, Any]) -> str:
    teacher, student = row["models"][:2]
    scores = {name: f"{score:.4f}" for name, score in student["scores"].items()}
    megabytes = student["linears"]["stored_bytes"] / 1e6
    return (
        f"{row['task']} {row['method']} {row['ratio']:g}x: {scores} of {teacher['scores']}, "
        f"{megabytes:.1f} MB"
    )


if __name__ == "__main__":
    app()
