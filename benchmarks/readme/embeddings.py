"""Sections on sentence embeddings: size, quality and speed of the real MiniLM."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import machine, missing, read_result, source, speedups, table

DEMO = "demo.png"


def demo_section(folder: Path) -> str:
    """The real model, compressed without training, from ``demo.json``."""
    path = folder / "demo.json"
    demo = read_result(path)
    if demo is None:
        return ""
    dtype = demo["comparisons"][0]["timings"][0]["dtype"]
    return f"""### {demo["model"]}, without training

The trained model in {dtype} on {machine(demo["environment"])}. Spearman's correlation is that on \
the dev set of {demo["text"]}; calibrated on {demo["calibration_tokens"]:,} tokens of its training \
set, {demo["sequence_tokens"]:,} of them for the sequential fit of the layers. \
{source("lada demo --data path/to/glue/stsb", path)}

{quality_table(demo)}
![Speed-up of each model by batch and length]({folder.name}/{DEMO})
"""


def embedder_section(folder: Path) -> str:
    """The real model, compressed and distilled, from ``embedder.json``."""
    path = folder / "embedder.json"
    content = read_result(path)
    if content is None:
        return ""
    return f"""### all-MiniLM-L6-v2, distilled

Students made by `lada distill all-MiniLM-L6-v2 --texts sentences.txt --ratio R \
{" ".join(content["options"])}` on {content["sentences"]:,} sentences without labels, from GLUE's \
training sets and a treebank of English from the web, timed on {machine(content["environment"])}. \
Spearman's correlation is that on the dev set of STS-B. \
{source("python -m benchmarks.accuracy.embedders --data DATA --work build/embedder", path)}

{quality_table(content)}"""


def quality_table(content: Mapping[str, Any], names: Container[str] | None = None) -> str:
    """Size, cosine, Spearman's correlation and speed-ups: a row per model, or those in `names`."""
    comparisons = content["comparisons"]
    labels = [comparison["label"] for comparison in comparisons]
    rows = [
        [
            row["name"],
            f"{row['linears_bytes'] / 1e6:.1f}",
            f"{row['model_bytes'] / 1e6:.1f}",
            f"{row['cosine_mean']:.3f}",
            f"{row['spearman']:.3f}",
            *speedups(comparisons, row["name"]),
        ]
        for row in content["models"]
        if names is None or row["name"] in names
    ]
    reasons = missing(comparisons)
    header = ["", "linears, MB", "whole, MB", "cosine", "Spearman", *labels]
    return table(header, rows) + (f"\n{reasons}" if reasons else "")
