"""What training gives an embedder back: ``python -m benchmarks.embedder``.

The real MiniLM is distilled on sentences without labels by `lada distill`, as anyone would, at each
ratio, and compared with the dense one. A student that is there is not made again; a run that was
cut off goes on where it was.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated

import typer
from transformers import AutoTokenizer

from benchmarks.compression_table import TRAIN_FILES
from lada_ops.cli import app as lada
from lada_ops.demo import demo_texts, embed, full_batches, model_folder, quality
from lada_ops.engine.optimize import optimize
from lada_ops.environment import device_slug
from lada_ops.folder import load_model
from lada_ops.latency import collect, compare_models, write_json
from lada_ops.tasks.glue import TASKS, read_split

RESULTS = Path(__file__).parent / "results"
OPTIONS = ("--bf16", "--epochs", "2")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="A folder with glue/.")],
    work: Annotated[Path, typer.Option(help="Where students and checkpoints are kept.")],
    ratios: Annotated[str, typer.Option(help="With commas.")] = "2.5,5,10",
    results: Annotated[Path, typer.Option(help="Writes DIR/<device>/embedder.json.")] = RESULTS,
) -> None:
    """Make the students that are missing, and compare all of them with the dense model."""
    sentences = unlabelled(data)
    work.mkdir(parents=True, exist_ok=True)
    (work / "sentences.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    students = {f"distilled {ratio}x": work / f"embedder-{ratio}x" for ratio in ratios.split(",")}
    for ratio, folder in zip(ratios.split(","), students.values(), strict=True):
        if not folder.exists():
            texts = str(work / "sentences.txt")
            lada(
                ["distill", model_folder(), "--texts", texts, "--ratio", ratio, "--out",
                 str(folder), *OPTIONS],
                standalone_mode=False,
            )  # fmt: skip
    texts = demo_texts(data / "glue" / "stsb")
    tokenizer, dense = AutoTokenizer.from_pretrained(model_folder()), load_model(model_folder())
    want = embed(dense, tokenizer, texts.held_out)
    loaded = {name: load_model(str(folder)) for name, folder in students.items()}
    served = {name: optimize(copy.deepcopy(model)) for name, model in loaded.items()}
    rows = [quality("dense", dense, want, want, texts)]
    for name, model in served.items():
        got = embed(model, tokenizer, texts.held_out)
        rows.append(quality(name, loaded[name], got, want, texts))
    batches = full_batches(tokenizer, texts.held_out, dense.device)
    found = {
        "options": OPTIONS,
        "sentences": len(sentences),
        "models": rows,
        **collect(compare_models(dense, served, batches, references=loaded).values()),
    }
    write_json(results / device_slug() / "embedder.json", found)


def unlabelled(data: Path) -> list[str]:
    """The sentences of the training sets in the folder `data`, each once."""
    splits = [read_split(data, t, "train", TRAIN_FILES.get(t.name)) for t in TASKS.values()]
    return list(dict.fromkeys(text for split in splits for texts in split.texts for text in texts))


if __name__ == "__main__":
    app()
