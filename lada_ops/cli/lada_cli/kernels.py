"""Commands `lada tune` and `lada inspect`: tune kernels on this GPU, inspect them for any."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import Json, app, command, errors, note, number, show


@app.command(
    epilog="Examples: lada tune ./my-bert-5x --dtype bfloat16; "
    "lada tune --shapes 768x3072:r128:fused,768x768:128x16-d20"
)
def tune(
    model: Annotated[
        str | None, typer.Argument(help="Folder of a compressed model, to tune its linears.")
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            help="Linears instead of a model, comma-separated: IN x OUT:WEIGHT[:EPILOGUE]; the "
            "epilogue is plain, fused or norm."
        ),
    ] = None,
    tokens: Annotated[
        str,
        typer.Option(help="Tokens (batch x length), comma-separated, rounded up to powers of 2."),
    ] = "16,128,512,2048,8192",
    dtype: Annotated[
        str | None, typer.Option(help="Dtype; by default the model's, for shapes bfloat16.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Time limit in s; a second run resumes.")] = 1800.0,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for tables; by default the user's, which kernels read."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the fastest variant of each compressed linear on this GPU.

    Times all variants beside the dense product and saves the tables in the user's cache folder,
    where the kernels look them up.
    """
    with errors():
        from lada_cli import tables
        from lada_ops.compression.folder import load_model
        from lada_ops.host.user_tables import user_folder
        from lada_ops.tune import Bench, Case, cases_of
        from lada_ops.tune import tune as run_tuner

        sizes = [number("--tokens", text) for text in tokens.split(",")]
        if (model is None) == (shapes is None):
            raise ValueError("expected a compressed model's folder, or --shapes, and not both")
        if not budget > 0:
            raise ValueError(f"--budget: {budget:g}; expected seconds, more than 0")
        if shapes is not None:
            texts = shapes.split(",")
            cases = [Case.parse(text, m, dtype or "bfloat16") for m in sizes for text in texts]
            bench = Bench.of_gpu()
        else:
            assert model is not None
            bench = Bench.of_gpu()
            cases = cases_of(load_model(model, "cpu"), sizes, dtype)
            if not cases:
                raise ValueError(f"{model} is a dense model; expected one that lada compressed")
        summary = run_tuner(
            cases,
            folder or user_folder(),
            budget=budget,
            bench=bench,
            say=note,
        )
        show(summary.to_dict(), as_json, tables.tuning)
        if model is not None:
            note(f"Next: {command('lada', 'bench', model)}")


@app.command(epilog="Example: lada inspect low_rank_linear --target sm_80")
def inspect(
    stem: Annotated[str | None, typer.Argument(help="Op (low_rank_linear); default: all.")] = None,
    target: Annotated[
        str, typer.Option(help="GPU architecture; need not be this machine's.")
    ] = "sm_90",
    as_json: Json = False,
) -> None:
    """Compile the shipped kernels and show figures of their machine code.

    Registers, shared memory, occupancy, instruction issue over tensor-core cycles, faults, and the
    least time of the work by the GPU's data sheet. Measures nothing and needs no GPU.
    """
    with errors():
        from lada_cli import tables
        from lada_ops.host.progress import progress_bar
        from lada_ops.machine_code.catalogue import shipped
        from lada_ops.machine_code.inspection import inspect as rows_of
        from lada_ops.machine_code.targets import find_target

        gpu = find_target(target)
        launches = shipped(stem)
        with progress_bar() as bar:
            tracked = bar.track(launches, description="Compiling")
            rows = list(rows_of(tracked, gpu))
        results = {
            "target": gpu.name,
            "gpu": gpu.gpu,
            "teraflops": gpu.teraflops,
            "gigabytes_per_second": gpu.gigabytes_per_second,
            "rows": rows,
        }
        show(results, as_json, tables.inspection)
