"""`lada compress` and `lada info`: a model compressed, and a compressed model described."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import Json, Method, Model, app, command, errors, note, pair, show


@app.command(
    epilog="Example: lada compress ./my-bert --ratio 5 --calibration texts.txt --out ./my-bert-5x"
)
def compress(
    model: Model,
    folder: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    ratio: Annotated[
        float, typer.Option(help="Stored bytes of the encoder's linears, dense over compressed.")
    ] = 5.0,
    method: Annotated[Method, typer.Option(help="Format of the compressed weights.")] = "low_rank",
    block: Annotated[
        str, typer.Option(help="Sparse blocks, out x in; tall ones are fast.")
    ] = "128x16",
    calibration: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text like the model's own, a sentence a line: keeps accuracy."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Linears, as a regular expression; by default the encoder's."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the contents of the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Compress the encoder of MODEL without training and save it like any other model.

    Load the result with `import lada_ops` and `AutoModel.from_pretrained(DIR)`.
    """
    with errors():
        import lada_ops
        from lada_cli import tables
        from lada_ops.compression.copying import kept_files
        from lada_ops.compression.folder import load_model, save_model
        from lada_ops.compression.pretrained import compression_of
        from lada_ops.data.texts import read_lines
        from lada_ops.host.files import check_target

        check_target(folder, overwrite)  # before the work, not after
        lines = None if calibration is None else read_lines(calibration, "--calibration")
        dense = load_model(model)
        kept_files(model, folder)
        if compression_of(dense) is not None:
            raise ValueError(
                f"{model} is compressed already; expected the dense model it came from"
            )
        report = lada_ops.compress(
            dense,
            ratio,
            method,
            calibration=lines,
            block=pair("--block", block),
            layers=layers,
        )
        save_model(dense, model, folder, overwrite)
        show(report.to_dict() | {"folder": str(folder)}, as_json, tables.report)
        next_one = command("lada", "bench", folder, "--against", model)
        note(f"The model is in {folder}; next: {next_one}")


@app.command(epilog="Example: lada info ./my-bert-5x")
def info(
    folder: Annotated[str, typer.Argument(help="Compressed model.")],
    as_json: Json = False,
) -> None:
    """Show format, costs and errors of each compressed layer, and how this CPU would run it."""
    with errors():
        from lada_cli import tables
        from lada_ops.compression.folder import load_config, load_model
        from lada_ops.compression.pretrained import compression_of
        from lada_ops.engine.optimize import optimize, paths

        found = compression_of(load_config(folder))
        if found is None:
            raise ValueError(f"{folder} is a dense model; expected one that lada compressed")
        model = optimize(load_model(folder, "cpu").float())
        show(found[1].to_dict() | {"cpu_paths": paths(model)}, as_json, tables.report)
        note(f"Next: {command('lada', 'bench', folder)}")
