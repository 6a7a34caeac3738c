"""Section on our engine beside other runtimes, from the files ``rivals_*.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.markdown import details, machine, source, speedup, table

TITLES = {
    "rivals_bert_base_1t": "BERT-base, 1 thread",
    "rivals_bert_base_2t": "BERT-base, 2 threads",
    "rivals_bert_large_1t": "BERT-large, 1 thread",
    "rivals_bert_large_2t": "BERT-large, 2 threads",
    "rivals_minilm_1t": "all-MiniLM-L6-v2, 1 thread",
    "rivals_minilm_2t": "all-MiniLM-L6-v2, 2 threads",
}


def rivals_section(folder: Path) -> str:
    """Our lead over the best other runtime, then every runtime, folded away by model."""
    from benchmarks.rivals.result import markdown

    paths = {folder / f"{name}.json": title for name, title in TITLES.items()}
    paths = {path: title for path, title in paths.items() if path.exists()}
    if not paths:
        return ""
    environment = json.loads(next(iter(paths)).read_text())["environments"][0]
    intro = f"""### Other runtimes

Whole encoders on {machine(environment, threads=False)}, each in a process of its own, interleaved \
with eager mode. The weights of BERT-base and BERT-large are random: speed only. \
{source("python -m benchmarks.rivals", *paths)}

Times as fast as the best of onnxruntime and OpenVINO on the same low-rank factors (5x) in the \
same precision:

{lead_table(paths)}
Times as fast as eager mode in fp32; rows with a ratio run compressed weights, the others dense \
ones. Cosine: the worst token's, to eager mode in fp32 with the same weights.
"""
    return "\n".join([intro, *(details(title, markdown(path)) for path, title in paths.items())])


def lead_table(paths: Mapping[Path, str]) -> str:
    """Our engine's speed-up over the best other runtime, by model and precision."""
    from benchmarks.rivals.result import SHAPES, lead

    rows = [
        [f"{title}, {precision}", *(speedup(leads.get(shape)) for shape in SHAPES)]
        for path, title in paths.items()
        for precision, leads in lead(path, "low_rank", 5).items()
    ]
    return table(["", *SHAPES], rows)
