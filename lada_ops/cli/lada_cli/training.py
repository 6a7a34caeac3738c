"""Commands `lada distill` and `lada eval`: train a compressed student, and evaluate it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .app import (
    Json,
    Method,
    Shapes,
    Threads,
    app,
    check_counts,
    command,
    errors,
    note,
    note_serving,
    pair,
    show,
)

Preset = Literal["lada-block", "lada"]
Pooling = Literal["mean", "cls"]
TASK = typer.Option(help="GLUE task: sst2, cola, mrpc, rte, stsb or mnli.")
DATA = typer.Option(
    help="Data folder: glue/TASK/train.tsv and dev.tsv, and robust/textfooler if there is one."
)
DevFile = Annotated[
    str | None,
    typer.Option(help="File name of the dev set; by default dev.tsv, mnli: dev_matched_1k.tsv."),
]


@app.command(
    epilog="Examples: lada distill ./my-bert --task sst2 --data ./data --ratio 5 --out ./small; "
    "lada distill ./my-embedder --texts sentences.txt --out ./small; "
    "torchrun --nproc-per-node 2 -m lada_cli distill ..."
)
def distill(
    teacher: Annotated[str, typer.Argument(help="Folder of a fine-tuned model, or its hub name.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    task: Annotated[str | None, TASK] = None,
    data: Annotated[Path | None, DATA] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="UTF-8 file of unlabelled texts, one a line, instead of --task."),
    ] = None,
    train_file: Annotated[
        str | None, typer.Option(help="File name of the training set; by default train.tsv.")
    ] = None,
    dev_file: DevFile = None,
    preset: Annotated[
        Preset,
        typer.Option(help="Structured pruning (lada-block, fast) or single weights (lada)."),
    ] = "lada-block",
    ratio: Annotated[
        float,
        typer.Option(
            help="Compression ratio of the encoder's linears: stored bytes (lada-block), or "
            "weights over non-zeros (lada)."
        ),
    ] = 5.0,
    method: Annotated[Method, typer.Option(help="Weight format (lada-block only).")] = "low_rank",
    block: Annotated[
        str, typer.Option(help="Sparse blocks, out x in (lada-block only).")
    ] = "128x16",
    order: Annotated[
        str | None,
        typer.Option(
            help="Order of steps: factor_first, prune_first (lada-block); svd_first, alternate, "
            "greedy (lada)."
        ),
    ] = None,
    embedding_keep: Annotated[
        float | None,
        typer.Option(help="Share of word-embedding weights to keep (lada only); paper: .2."),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            help="Pooling of an embedder; by default as its sentence-transformers folder says, "
            "else mean."
        ),
    ] = None,
    labels: Annotated[float, typer.Option(help="Weight of the task's own loss.")] = 0.0,
    epochs: Annotated[float, typer.Option(help="Training epochs per stage.")] = 3.0,
    batch_size: Annotated[int, typer.Option(help="Examples per batch, in each process.")] = 32,
    accumulate: Annotated[int, typer.Option(help="Batches per optimizer step.")] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate; by default 2e-4, for embedders 1e-3."),
    ] = None,
    dropout: Annotated[
        bool | None,
        typer.Option(help="Dropout of the model's config; by default on, for embedders off."),
    ] = None,
    max_length: Annotated[int, typer.Option(help="Maximum tokens per text.")] = 128,
    patience: Annotated[
        int | None,
        typer.Option(help="Epochs without improvement before an early stop; keeps the best."),
    ] = None,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    bf16: Annotated[bool, typer.Option("--bf16", help="Mixed precision in bfloat16.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Overwrite a folder that is not empty.")] = False,
    as_json: Json = False,
) -> None:
    """Train a compressed student on the outputs of its TEACHER, and save it like any other model.

    Checkpoints go to OUT.training; the same command resumes from the last one.
    """
    options: dict[str, Any] = dict(locals())  # named as the fields of Settings, but for as_json
    options["quiet"] = options.pop("as_json")
    with errors():
        from lada_cli import tables
        from lada_ops.host.extras import require

        metrics = () if task is None else ("scipy", "sklearn")
        require("lada distill", "train", "accelerate", *metrics)  # before they are imported
        from lada_ops.distill.command import Settings, run

        with redirect_stdout(sys.stderr):  # stdout is for results: the trainer's log goes to stderr
            options["block"] = pair("--block", block)
            report = run(Settings(**options))
        if report is not None:
            show(report, as_json, tables.report)
            if task is None:
                words = ["bench", folder, "--against", teacher]
            else:
                words = ["eval", folder, "--teacher", teacher, "--task", task, "--data", data]
                words += [] if dev_file is None else ["--dev-file", dev_file]
            note(f"The student is in {folder}; next: {command('lada', *words)}")


@app.command(
    "eval", epilog="Example: lada eval ./small --teacher ./my-bert --task sst2 --data ./data"
)
def evaluate(
    folder: Annotated[str, typer.Argument(help="Folder of the student.")],
    teacher: Annotated[str, typer.Option(help="Dense model that the student was made of.")],
    task: Annotated[str, TASK],
    data: Annotated[Path, DATA],
    dev_file: DevFile = None,
    shapes: Shapes = "1x16,1x128,8x128",
    rounds: Annotated[int, typer.Option(help="Timed rounds per shape.")] = 15,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Evaluate a student beside its teacher.

    Size (stored, masked, non-zeros), FLOPs, the task's scores, loyalty to the teacher, robustness
    to attacked texts, and latency, measured in one run.
    """
    with errors():
        from lada_cli import tables
        from lada_ops.evaluate.evaluation import evaluate as evaluated

        sizes = {shape: pair("--shapes", shape) for shape in shapes.split(",")}
        check_counts({"--rounds": rounds, "--threads": threads})
        results = evaluated(
            folder,
            teacher,
            data,
            task,
            dev_file=dev_file,
            sizes=sizes,
            rounds=rounds,
            threads=threads,
        )
        show(results, as_json, tables.evaluation)
        note_serving(folder)
