"""The README's results, written from the committed result files: ``python -m benchmarks.readme``.

No figure of the README is typed by hand, and a test holds the README against these files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.markdown import machine, measured, speedup, table
from benchmarks.readme.compression import compression_section
from benchmarks.readme.plots import LATENCY, RATIOS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
START = "<!-- results: written by benchmarks/readme, do not edit -->\n"
END = "<!-- end of results -->"


def rendered(readme: str) -> str:
    """The README's text with its results as the committed files have them."""
    before, rest = readme.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}{results()}{END}{after}"


def results() -> str:
    """What was measured, kind by kind, on every device, in Markdown."""
    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir())
    found = [section(folder) for section in SECTIONS for folder in folders]
    if not any(folder.name.startswith("NVIDIA") for folder in folders):
        found.append(
            "**On a GPU:** not measured yet. The Triton kernels are proven in the interpreter, and "
            "their machine code is held to limits for sm_90 and compiles clean for sm_80, 86, 89, "
            "100, 120 and gfx942; no more.\n"
        )
    return "\n".join(f"{text.rstrip()}\n" for text in found if text)


def demo_section(folder: Path) -> str:
    """The real model without training."""
    demo = measured(folder / "demo.json")
    if demo is None:
        return ""
    dtype = demo["comparisons"][0]["timings"][0]["dtype"]
    return f"""**The real {demo["model"]}**, without training, in {dtype} on \
{machine(demo["environment"])}. Cosine is that of sentence embeddings to the dense model's, \
Spearman's correlation that on the dev set of {demo["text"]}; calibrated on \
{demo["calibration_tokens"]:,} tokens of its training set, of which {demo["sequence_tokens"]:,} \
went from layer to compressed layer. The last columns are times as fast as dense in eager mode, by \
batch x length: medians of ratios within a round; on a CPU compressed models run as \
`lada_ops.optimize` makes them. **Bold: slower than dense.**

{quality_table(demo)}"""


def embedder_section(folder: Path) -> str:
    """The real model after training."""
    found = measured(folder / "embedder.json")
    if found is None:
        return ""
    return f"""**The same model, distilled** by `lada distill all-MiniLM-L6-v2 --texts \
sentences.txt --ratio R {" ".join(found["options"])}` on {found["sentences"]:,} sentences without \
labels, of GLUE's training sets and a treebank of English from the web; timed on \
{machine(found["environment"])}; the rest as above.

{quality_table(found)}"""


def bert_section(folder: Path) -> str:
    """Whole models beside their peers, and two pictures of BERT-base."""
    content = measured(folder / "bert.json")
    if content is None:
        return ""
    top = content["ceilings"]
    here = folder.relative_to(ROOT)
    return f"""**A BERT-base**, its weights random, on {machine(content["environment"])}: speed \
only. Beside ours, in the same run: torch.compile, at its best here, of the dense model, of the \
same low-rank factors as two linears each, and of a dense model with as few weights, for which \
heads and feed-forward are cut; and torch's own block-sparse tensors.

{speed_table(content["comparisons"], "bert_base ")}
**The real MiniLM beside the same peers**, speed only: the smaller dense one is cut \
without regard to what its weights say.

{speed_table(content["comparisons"], "minilm ")}
{missing(content["comparisons"])}\
Latency of BERT-base by batch and length; of ours, those of the peers' ratio:

![Latency by batch and length]({here / LATENCY})

How much sooner BERT-base may get: the dashed line is the least time for its work at \
{top["flops_per_second"] / 1e9:,.0f} GFLOP/s, which a matrix product of torch reaches on this \
machine, and {top["bytes_per_second"] / 1e9:,.0f} GB/s, which a copy does. Points above it beat \
those two rates.

![Speed-up by compression ratio]({here / RATIOS})
"""


def traffic_section(folder: Path) -> str:
    """Requests of real lengths, and cold starts, if they were measured."""
    found = measured(folder / "traffic.json")
    if found is None:
        return ""
    padding = ", ".join(
        f"{100 * traffic['padding']:.0f} % at {traffic['batch']}" for traffic in found["traffic"]
    )
    rows = [
        [
            f"{traffic['batch']}, {served['name']}",
            *(f"{1e3 * served[f'p{p}_seconds']:.1f}" for p in (50, 95, 99)),
            f"{served['sentences_per_second']:.0f}",
            speedup(served["speedup"]),
        ]
        for traffic in found["traffic"]
        for served in traffic["models"]
    ]
    starts = [
        [
            name,
            *(f"{start[part]:.2f}" for part in ("imports", "load", "optimize", "first", "next")),
            f"{start['peak_bytes'] / 1e6:.0f}",
        ]
        for name, start in found["cold_starts"].items()
    ]
    columns = ("imports", "load", "optimize", "first answer", "next", "peak, MB")
    first = found["traffic"][0]
    return f"""**At real lengths**, the real MiniLM on {first["requests"]} requests of each size, \
on {machine(found["environment"])}; texts drawn from GLUE's dev sets and padded to the longest of \
a request, as tokenizers do (padding: {padding}). Latency in ms over the requests, each the median \
of its {first["rounds"]} rounds; texts a second, one request after the other; times as fast as \
dense in eager mode. **Bold: slower.**

{table(["texts a request", "p50", "p95", "p99", "texts/s", "speed-up"], rows)}
{missing(found["traffic"])}\
A cold start, in seconds of a process of its own that answers 8x128 twice:

{table(["", *columns], starts)}
"""


RIVALS = {
    "rivals_bert_base_1t": "BERT-base, 1 thread",
    "rivals_bert_base_2t": "BERT-base, 2 threads",
    "rivals_bert_large_1t": "BERT-large, 1 thread",
    "rivals_bert_large_2t": "BERT-large, 2 threads",
    "rivals_minilm_1t": "the real MiniLM, 1 thread",
    "rivals_minilm_2t": "the real MiniLM, 2 threads",
}


def rivals_section(folder: Path) -> str:
    """Our engine beside other runtimes, as far as it was measured."""
    from benchmarks.rivals.result import markdown

    paths = {folder / f"{name}.json": title for name, title in RIVALS.items()}
    paths = {path: title for path, title in paths.items() if path.exists()}
    if not paths:
        return ""
    where = json.loads(next(iter(paths)).read_text())["environments"][0]
    intro = f"""**Beside other runtimes** on {machine(where, threads=False)}: how many times as \
fast the engine is as the best of onnxruntime and OpenVINO on the same low-rank factors (5x) in \
the same precision. Whole encoders, each in a process of its own, interleaved with eager; with \
them torch's int8 dynamic quantization. **Bold: slower.**

{lead_table(paths)}
All of them, as times as fast as eager fp32; those with a ratio run compressed weights, the others \
dense ones. The weights of BERT-base and BERT-large are random: speed only. Cosine is that of the \
worst token to eager fp32 with the same weights.
"""
    tables = [
        f"<details><summary>{title[0].upper()}{title[1:]}</summary>\n\n{markdown(path)}\n</details>\n"
        for path, title in paths.items()
    ]
    return "\n".join([intro, *tables])


def lead_table(paths: Mapping[Path, str]) -> str:
    """The engine over the best other runtime, by model and precision."""
    from benchmarks.rivals.result import SHAPES, lead

    rows = [
        [f"{title}, {precision}", *(speedup(leads.get(shape)) for shape in SHAPES)]
        for path, title in paths.items()
        for precision, leads in lead(path, "low_rank", 5).items()
    ]
    return table(["", *SHAPES], rows)


def quality_table(demo: Mapping[str, Any]) -> str:
    labels = [comparison["label"] for comparison in demo["comparisons"]]
    header = ["", "linears, MB", "whole, MB", "cosine", "Spearman", *labels]
    rows = [
        [
            row["name"],
            f"{row['linears_bytes'] / 1e6:.1f}",
            f"{row['model_bytes'] / 1e6:.1f}",
            f"{row['cosine_mean']:.3f}",
            f"{row['spearman']:.3f}",
            *speedups(demo["comparisons"], row["name"]),
        ]
        for row in demo["models"]
    ]
    reasons = missing(demo["comparisons"])
    return table(header, rows) + (f"\n{reasons}" if reasons else "")


def speed_table(comparisons: Sequence[Mapping[str, Any]], prefix: str) -> str:
    """Speed-ups of all models over the comparisons whose label starts with `prefix`."""
    chosen = [c for c in comparisons if c["label"].startswith(prefix)]
    names = dict.fromkeys(t["name"] for comparison in chosen for t in comparison["timings"])
    header = ["", *(c["label"].removeprefix(prefix) for c in chosen)]
    return table(header, [[name, *speedups(chosen, name)] for name in names])


def missing(comparisons: Iterable[Mapping[str, Any]]) -> str:
    """A paragraph of what they have no times of, and why; nothing where all were timed."""
    reasons = {
        f"{name} ({why})": None
        for comparison in comparisons
        for name, why in comparison.get("missing", {}).items()
    }
    return f"Missing: {'; '.join(reasons)}.\n\n" if reasons else ""


def speedups(comparisons: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    found = ({t["name"]: t["speedup_median"] for t in c["timings"]} for c in comparisons)
    return [speedup(ratios.get(name)) for ratios in found]


SECTIONS: tuple[Callable[[Path], str], ...] = (
    demo_section,
    embedder_section,
    partial(compression_section, root=ROOT),
    bert_section,
    traffic_section,
    rivals_section,
)

if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
