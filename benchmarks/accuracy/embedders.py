"""Quality and speed of distilled embedders: ``python -m benchmarks.accuracy.embedders``.

MiniLM is distilled on unlabelled sentences by `lada distill` at every ratio, and compared with the
dense model. Existing students are kept, and an interrupted run resumes. Training takes most of an
hour per ratio on two cores, timing a few minutes: train first, and time on a quiet machine.
"""

from __future__ import annotations

import copy
import gzip
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoTokenizer, PreTrainedModel

from lada_cli import app as lada
from lada_ops.compression.folder import load_model
from lada_ops.data.glue import TASKS, read_split
from lada_ops.data.texts import find_file
from lada_ops.demo import demo_texts, model_folder, served_name
from lada_ops.engine.optimize import fast_dtypes, optimize
from lada_ops.evaluate.embeddings import embed, full_batches, quality
from lada_ops.host.environment import device_slug
from lada_ops.host.files import write_json
from lada_ops.latency import collect, compare_models

RESULTS = Path(__file__).parents[1] / "results"
OPTIONS = ("--bf16", "--epochs", "2", "--batch-size", "64")
SHORTEST = 15  # characters, since many of SST-2's phrases are a word or two
TREEBANK = "# text = "  # before each sentence of a CoNLL-U file
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="Folder with glue/ and ud/en/.")],
    work: Annotated[Path, typer.Option(help="Folder of students and checkpoints.")],
    ratios: Annotated[str, typer.Option(help="Compression ratios, comma-separated.")] = "2.5,5,10",
    results: Annotated[Path, typer.Option(help="Writes DIR/<device>/embedder.json.")] = RESULTS,
) -> None:
    """Train the missing students, and compare all students with the dense model."""
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
    rows = [quality("dense", dense, want, want, texts.pairs)]
    # each model as it is served, and as it was before it was made ready for that
    served: dict[str, PreTrainedModel] = {}
    loaded: dict[str, PreTrainedModel] = {}
    dtypes = (torch.float32, *(fast_dtypes()[1:] if dense.device.type == "cpu" else ()))
    for student, folder in students.items():
        model = load_model(str(folder))
        for dtype in dtypes:
            name = served_name(student, dtype)
            served[name], loaded[name] = optimize(copy.deepcopy(model), dtype), model
            got = embed(served[name], tokenizer, texts.held_out)
            rows.append(quality(name, model, got, want, texts.pairs))
    batches = full_batches(tokenizer, texts.held_out, dense.device)
    results_of = {
        "options": OPTIONS,
        "sentences": len(sentences),
        "models": rows,
        **collect(compare_models(dense, served, batches, references=loaded).values()),
    }
    write_json(results / device_slug() / "embedder.json", results_of)


def unlabelled(data: Path) -> list[str]:
    """Distinct sentences of GLUE's training sets and the English web treebank.

    Sentences of STS-B's dev set, on which students are evaluated, are left out.
    """
    splits = [read_split(data, task, "train") for task in TASKS.values()]
    sentences = [text for split in splits for texts in split.texts for text in texts]
    for name in ("train", "dev", "test"):
        path = find_file(data / "ud" / "en" / f"{name}.conllu.gz")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            sentences += [
                line[len(TREEBANK) :].strip() for line in file if line.startswith(TREEBANK)
            ]
    held_out = {text for texts in read_split(data, TASKS["stsb"], "dev").texts for text in texts}
    return [
        text for text in dict.fromkeys(sentences) if len(text) >= SHORTEST and text not in held_out
    ]


if __name__ == "__main__":
    app()
