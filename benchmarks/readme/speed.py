"""Sections on speed: whole models beside their peers, single ops, requests of real lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import (
    details,
    machine,
    missing,
    read_result,
    source,
    speedup,
    speedups,
    table,
)

LATENCY, RATIOS = "bert_base_latency.png", "bert_base_ratios.png"
OPS = ("low_rank_linear", "block_sparse_linear", "sparse_low_rank_linear", "low_rank_ffn")
PYTEST = "python -m pytest benchmarks --benchmark-only --results benchmarks/results"


def bert_section(folder: Path) -> str:
    """BERT-base and MiniLM beside their peers, with two pictures, from ``bert.json``."""
    path = folder / "bert.json"
    content = read_result(path)
    if content is None:
        return ""
    ceilings, comparisons = content["ceilings"], content["comparisons"]
    return f"""### Peers in torch

Speed only, on {machine(content["environment"])}. In the same run: torch.compile, at its best \
here, of the dense model, of the same low-rank factors as two linears each, and of a smaller dense \
model with as few weights (fewer heads, narrower feed-forward); and torch's own block-sparse \
tensors. {source(PYTEST, path)}

BERT-base with random weights:

{speed_table(comparisons, "bert_base ")}
all-MiniLM-L6-v2; the smaller dense model is cut without regard to its weights:

{speed_table(comparisons, "minilm ")}
{missing(comparisons)}\
Latency of BERT-base by batch and length, models at the peers' ratio:

![Latency by batch and length]({folder.name}/{LATENCY})

Speed-up of BERT-base by compression ratio. The dashed line is the roofline: the least time for \
the model's work at {ceilings["flops_per_second"] / 1e9:,.0f} GFLOP/s, which a matrix product of \
torch reaches on this machine, and {ceilings["bytes_per_second"] / 1e9:,.0f} GB/s, which a copy \
does. Points above it beat those two rates.

![Speed-up by compression ratio]({folder.name}/{RATIOS})
"""


def ops_section(folder: Path) -> str:
    """Single ops on the shapes of BERT-base, folded away by op, from ``<stem>.json``."""
    paths = {folder / f"{stem}.json": stem for stem in OPS}
    contents = {path: content for path in paths if (content := read_result(path))}
    if not contents:
        return ""
    environment = next(iter(contents.values()))["environment"]
    intro = f"""### Single ops

Times as fast as the dense product, on the shapes of BERT-base with random weights; M is the \
number of tokens. Up to 128 tokens, calls rotate through as many weights as fill the encoder, so \
that they come from memory as in the model. On {machine(environment)}. \
{source(PYTEST, *contents)}
"""
    tables = (details(paths[path], _ops_table(c["comparisons"])) for path, c in contents.items())
    return "\n".join([intro, *tables])


def traffic_section(folder: Path) -> str:
    """Requests of real lengths, and cold starts, from ``traffic.json``."""
    path = folder / "traffic.json"
    content = read_result(path)
    if content is None:
        return ""
    traffic = content["traffic"]
    padding = ", ".join(f"{100 * t['padding']:.0f} % at {t['batch']}" for t in traffic)
    rows = [
        [
            f"{size['batch']}, {served['name']}",
            *(f"{1e3 * served[f'p{p}_seconds']:.1f}" for p in (50, 95, 99)),
            f"{served['sentences_per_second']:.0f}",
            speedup(served["speedup"]),
        ]
        for size in traffic
        for served in size["models"]
    ]
    stages = ("imports", "load", "optimize", "first", "next")
    starts = [
        [
            name,
            *(f"{start[stage]:.2f}" for stage in stages),
            f"{start['peak_bytes'] / 1e6:.0f}",
        ]
        for name, start in content["cold_starts"].items()
    ]
    columns = ("imports", "load", "optimize", "first forward", "next", "peak, MB")
    return f"""### Requests of real lengths

all-MiniLM-L6-v2 on {traffic[0]["requests"]} requests of each size, on \
{machine(content["environment"])}; texts drawn from GLUE's dev sets and padded to the longest of a \
request, as tokenizers do (padding: {padding}). Latency in ms over the requests, each the median \
of its {traffic[0]["rounds"]} rounds; texts per second, one request after the other. \
{source("python -m benchmarks.traffic --data path/to/glue", path)}

{table(["texts a request", "p50", "p95", "p99", "texts/s", "speed-up"], rows)}
{missing(traffic)}\
Cold start: seconds of a fresh process that runs 8x128 twice, and its peak memory:

{table(["", *columns], starts)}"""


def speed_table(comparisons: Sequence[Mapping[str, Any]], prefix: str) -> str:
    """Speed-ups of all models over the comparisons whose label starts with `prefix`."""
    chosen = [c for c in comparisons if c["label"].startswith(prefix)]
    names = dict.fromkeys(t["name"] for comparison in chosen for t in comparison["timings"])
    header = ["", *(c["label"].removeprefix(prefix) for c in chosen)]
    return table(header, [[name, *speedups(chosen, name)] for name in names])


def _ops_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Speed-ups by shape: a row per comparison, a column per variant but the dense one."""
    variants = [timing["name"] for timing in comparisons[0]["timings"][1:]]
    rows = [[c["label"], *(speedups([c], name)[0] for name in variants)] for c in comparisons]
    return table(["", *variants], rows)
