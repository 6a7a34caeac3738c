"""`lada distill` and `lada eval`: a student that learns from its teacher, and what it is worth."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import typer

from .app import Json, Method, app, command, errors, note, note_serving, number, pair, show

Preset = Literal["lada-block", "lada"]
Pooling = Literal["mean", "cls"]
Task = Annotated[str, typer.Option(help="sst2, cola, mrpc, rte, stsb or mnli.")]
Data = Annotated[
    Path,
    typer.Option(help="A folder with glue/TASK/train.tsv and dev.tsv; robust/textfooler, if any."),
]


@app.command(
    epilog="Examples: lada distill ./my-bert --task sst2 --data ./data --ratio 5 --out ./small; "
    "lada distill ./my-embedder --texts sentences.txt --out ./small; "
    "torchrun --nproc-per-node 2 -m lada_cli distill ..."
)
def distill(
    teacher: Annotated[str, typer.Argument(help="A fine-tuned model's folder, or hub name.")],
    folder: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    task: Annotated[str | None, typer.Option(help="sst2, cola, mrpc, rte, stsb or mnli.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --task: a folder with glue/TASK/train.tsv, dev.tsv.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="In the place of a task: unlabelled text, a line each.")
    ] = None,
    train_file: Annotated[
        str | None, typer.Option(help="Another file of the task than train.tsv.")
    ] = None,
    dev_file: Annotated[
        str | None, typer.Option(help="Another than dev.tsv; mnli's own is dev_matched_1k.tsv.")
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="Ranks and blocks, which are fast; or single weights.")
    ] = "lada-block",
    ratio: Annotated[
        float,
        typer.Option(
            help="Of the encoder's linears, dense over compressed: stored bytes by lada-block, "
            "weights over non-zeros by lada."
        ),
    ] = 5.0,
    method: Annotated[Method, typer.Option(help="By lada-block.")] = "low_rank",
    block: Annotated[str, typer.Option(help="By lada-block: blocks, out x in.")] = "128x16",
    order: Annotated[
        str | None,
        typer.Option(
            help="factor_first, prune_first (lada-block); svd_first, alternate, greedy (lada)."
        ),
    ] = None,
    embedding_keep: Annotated[
        float | None,
        typer.Option(help="By lada: prune word embeddings to this share, .2 in the paper."),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            help="How an embedder makes one vector of a text; as its folder of "
            "sentence-transformers says, else by the mean."
        ),
    ] = None,
    labels: Annotated[float, typer.Option(help="Weight of the task's own loss.")] = 0.0,
    epochs: Annotated[float, typer.Option(help="Of each stage.")] = 3.0,
    batch_size: Annotated[int, typer.Option(help="Examples a step, in each process.")] = 32,
    accumulate: Annotated[int, typer.Option(help="Batches a step.")] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="The largest, after a warm-up; by default 2e-4, of an embedder 1e-3."),
    ] = None,
    dropout: Annotated[
        bool | None,
        typer.Option(help="Train with the dropout of the model's config; an embedder does not."),
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of a text, at most.")] = 128,
    patience: Annotated[
        int | None, typer.Option(help="Stop when so many epochs were no better; keep the best.")
    ] = None,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train in mixed precision.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace what the folder holds.")] = False,
    as_json: Json = False,
) -> None:
    """Train a compressed student to answer as its TEACHER does, and save it like any other model.

    Checkpoints go to OUT.training; the same command goes on from the last one.
    """
    with errors():
        from lada_cli import tables
        from lada_ops.host.extras import require

        of_task = () if task is None else ("scipy", "sklearn")
        require("lada distill", "train", "accelerate", *of_task)  # which what follows imports
        from lada_ops.distill.command import Settings, run

        with redirect_stdout(sys.stderr):  # the trainer's log is no result
            report = run(
                Settings(
                    teacher=teacher,
                    folder=folder,
                    task=task,
                    data=data,
                    texts=texts,
                    train_file=train_file,
                    dev_file=dev_file,
                    preset=preset,
                    ratio=ratio,
                    method=method,
                    block=pair("--block", block),
                    order=order,
                    embedding_keep=embedding_keep,
                    pooling=pooling,
                    labels=labels,
                    epochs=epochs,
                    batch_size=batch_size,
                    accumulate=accumulate,
                    learning_rate=learning_rate,
                    dropout=dropout,
                    max_length=max_length,
                    patience=patience,
                    save_steps=save_steps,
                    bf16=bf16,
                    seed=seed,
                    overwrite=overwrite,
                    quiet=as_json,
                )
            )
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
    folder: Annotated[str, typer.Argument(help="The student.")],
    teacher: Annotated[str, typer.Option(help="The dense model that it was made of.")],
    task: Task,
    data: Data,
    dev_file: Annotated[
        str | None, typer.Option(help="Another than dev.tsv; mnli's own is dev_matched_1k.tsv.")
    ] = None,
    shapes: Annotated[str, typer.Option(help="Batch x length, with commas.")] = "1x16,1x128,8x128",
    rounds: Annotated[int, typer.Option(help="Timed rounds per shape.")] = 15,
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's own choice.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a student costs and is worth beside its teacher.

    Size in three accountings, work, the task's scores, loyalty to the teacher, accuracy on texts
    changed to fool another BERT, and latency, measured in one run.
    """
    with errors():
        from lada_cli import tables
        from lada_ops.evaluate.evaluation import evaluate as evaluated

        sizes = {shape: pair("--shapes", shape) for shape in shapes.split(",")}
        for option, count in (("--rounds", rounds), ("--threads", threads)):
            if count is not None:
                number(option, str(count))
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
