"""Tables of the README and the page of results: ``python -m benchmarks.readme``.

All figures come from the committed result files, and a test holds both pages against them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.readme.compression import compression_section
from benchmarks.readme.embeddings import demo_section, embedder_section
from benchmarks.readme.headline import headline_table
from benchmarks.readme.rivals import rivals_section
from benchmarks.readme.speed import bert_section, ops_section, traffic_section

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
PAGE = RESULTS / "README.md"
START = "<!-- results: written by benchmarks/readme, do not edit -->\n"
END = "<!-- end of results -->"
SECTIONS: tuple[Callable[[Path], str], ...] = (
    demo_section,
    embedder_section,
    compression_section,
    bert_section,
    traffic_section,
    rivals_section,
    ops_section,
)
INTRO = """# Results

Written by `python -m benchmarks.readme` from the result files beside it: do not edit. How to \
measure: [benchmarks/README.md](../README.md).

Speed is given as times as fast as the dense model in eager mode, by batch x length. Models are \
timed side by side in one run, in rounds of changing order: a figure is the median of the \
ratios within a round. A model whose output is wrong gets no time. On a CPU, compressed models run \
as `lada_ops.optimize` makes them. **Bold: slower.** Linears and whole: stored MB of the encoder's \
linears and of the model. Cosine: sentence embeddings to those of the dense model, mean.
"""
GPU = """## GPU

{measured}An experiment that ran all layers of a low-rank encoder in one persistent launch was \
removed (commit 99650d9 holds it): it is right in the interpreter, but pays eight barriers of the \
whole device a layer where a replayed CUDA graph pays four or five launches. It can win only where \
a barrier costs little more than half the gap between two launches of a graph.
"""
NOT_MEASURED = """**On a GPU: not measured yet.** The Triton kernels are proven in the \
interpreter, and their machine code is held to limits for sm_90 and compiles clean for sm_80, 86, \
89, 100, 120 and gfx942; no more.

"""


def rendered(readme: str) -> str:
    """The README's text with its table as the committed files have it."""
    before, rest = readme.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}{headline_table(RESULTS)}{END}{after}"


def page() -> str:
    """The page of results: all that was measured, device by device."""
    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir())
    devices = [text for folder in folders if (text := device(folder))]
    on_gpu = any(folder.name.startswith("NVIDIA") for folder in folders)
    return "\n".join([INTRO, *devices, GPU.format(measured="" if on_gpu else NOT_MEASURED)])


def device(folder: Path) -> str:
    """The sections of one device; empty where nothing of theirs was measured."""
    sections = [text for section in SECTIONS if (text := section(folder))]
    if not sections:
        return ""
    title = f"## {folder.name.replace('_', ' ')}\n"
    return "\n".join([title, *(f"{text.rstrip()}\n" for text in sections)])


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
    PAGE.write_text(page())
