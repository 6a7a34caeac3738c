"""The README's table: one model on one machine, in at most eight rows."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.markdown import machine, read_result
from benchmarks.readme.embeddings import quality_table

DEVICE = "AMD_EPYC"
HEADLINE = "headline.png"
BUCKET = "1x128"  # of the picture: one request, as online serving gets them
BARS = {  # models of the picture, and their names in it
    "dense": "dense,\neager",
    "dense, optimized": "dense,\noptimized",
    "low_rank 5x": "low rank 5x,\nfp32",
    "low_rank 5x bf16": "low rank 5x,\nbf16",
    "low_rank 5x int8": "low rank 5x,\nint8",
}
ROWS = (*BARS, "low_rank 2.5x", "block_sparse 5x int8", "sparse_low_rank 5x int8")


def headline_table(results: Path) -> str:
    """Sizes, scores and speed-ups of the chosen models, and the scores after distillation."""
    demo = json.loads((results / DEVICE / "demo.json").read_text())
    return f"""{demo["model"]} on {machine(demo["environment"])}, without any training. Sizes are \
those of the encoder's linears and of the whole model, cosine that to the dense model's \
embeddings, Spearman's correlation that on {demo["text"]}. Last columns: times as fast as dense in \
eager mode, by batch x length.

{quality_table(demo, ROWS)}
{_dense_alone(results / DEVICE / "rivals_minilm_2t.json")}{_distilled(results)}"""


def _dense_alone(path: Path) -> str:
    """Sentence on the dense model served in bf16 and int8, which costs no compression."""
    from benchmarks.rivals.result import cells

    if not path.exists():
        return ""
    header, rows = cells(path)
    speed, cosine = header.index(BUCKET), header.index("cosine")
    engines = {row[0]: row for row in rows}
    bf16, int8 = (engines[f"lada engine {precision}"] for precision in ("bf16", "int8"))
    return (
        f"The dense model, optimized in bf16 and int8: {bf16[speed]} and {int8[speed]} times as "
        f"fast at {BUCKET}, the worst token's cosine {bf16[cosine]} and {int8[cosine]}. "
    )


def _distilled(results: Path) -> str:
    """Sentence on Spearman's correlation after distillation, in float32."""
    contents = filter(None, map(read_result, sorted(results.glob("*/embedder.json"))))
    models = next(contents, {"models": []})["models"]
    scores = {row["name"].split()[-1]: row["spearman"] for row in models if _plain(row["name"])}
    if not scores:
        return ""
    listed = ", ".join(f"{score:.3f} at {ratio}" for ratio, score in scores.items())
    return f"After distillation on sentences without labels, Spearman is {listed}.\n"


def _plain(name: str) -> bool:
    return name.startswith("distilled") and name.endswith("x")
