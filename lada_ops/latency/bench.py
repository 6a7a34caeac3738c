"""Work of `lada bench`: a compressed model, as loaded and as optimized, beside its dense one."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from ..compression.batches import longest
from ..compression.decompress import decompress
from ..compression.folder import load_model
from ..compression.pretrained import compression_of
from ..engine.optimize import DTYPES, fast_dtypes, optimize
from . import Comparison, collect, compare_served
from .cold import cold_start
from .traffic import throughput

COMPRESSED = "compressed"  # name of the model as it was loaded
MAX_LENGTH = 512
SLOW = "this CPU has no instructions for it"
NO_LIBRARY = "the native library is not built here, see the README"
SEED = 0


@dataclass(frozen=True)
class ServedModels:
    """Dense model and the ways to serve a compressed one, to be compared.

    folder: of the compressed model. models: name -> model. references: name of an optimized model
    -> the model before `optimize`. missing: name -> reason why there is no such model, for the
    record.
    """

    folder: str
    dense: PreTrainedModel
    models: Mapping[str, PreTrainedModel]
    references: Mapping[str, PreTrainedModel]
    missing: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: str, against: str | None = None) -> ServedModels:
        """Models of the compressed model in `folder`: as loaded, and optimized in each dtype.

        against: folder of the dense model; None decompresses the compressed one.

        Raises ValueError where `folder` holds a dense model, or as `of_models` does.
        """
        model = load_model(folder)
        if compression_of(model) is None:
            raise ValueError(f"{folder} is a dense model; expected one that lada compressed")
        if against is None:
            dense = copy.deepcopy(model)
            decompress(dense)
        else:
            dense = load_model(against)
        return cls.of_models(folder, dense, model)

    @classmethod
    def of_models(cls, folder: str, dense: PreTrainedModel, model: PreTrainedModel) -> ServedModels:
        """Models of `model`, loaded from `folder`: as loaded, and optimized in each dtype.

        Raises ValueError where `dense` is compressed too, or of another class or dtype than
        `model`.
        """
        if compression_of(dense) is not None:
            raise ValueError(
                f"{folder} was to be compared with a compressed model; expected the dense one that "
                "it was made of"
            )
        if (type(dense), dense.dtype) != (type(model), model.dtype):
            raise ValueError(
                f"{folder} was to be compared with a {type(dense).__name__} in {dense.dtype}; "
                f"expected {type(model).__name__} in {model.dtype}: only like is compared"
            )
        models, references, missing = {COMPRESSED: model}, {}, {}
        fast = fast_dtypes()
        for dtype in (model.dtype,) if model.device.type == "cuda" else DTYPES:
            name = f"optimized, {str(dtype).removeprefix('torch.')}"
            if model.device.type == "cpu" and dtype not in fast:
                missing[name] = SLOW if fast else NO_LIBRARY
                continue
            try:
                models[name] = optimize(copy.deepcopy(model), dtype)
            except (TypeError, ValueError) as error:
                missing[name] = str(error)
            else:
                references[name] = model
        return cls(folder, dense, models, references, missing)

    def shapes(
        self, sizes: Mapping[str, tuple[int, int]], rounds: int, threads: int | None = None
    ) -> dict[str, Any]:
        """Comparisons on full batches of random tokens, as `collect` gives them.

        sizes: label -> (batch, length).
        """
        self.check_sizes(sizes)
        vocabulary = self.dense.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(SEED)
        batches = {}
        for label, size in sizes.items():
            ids = torch.randint(1, vocabulary, size, generator=generator, device="cpu")
            ids = ids.to(self.dense.device)
            batches[label] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return collect(self._compared(batches, rounds, threads).values())

    def check_sizes(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Raise ValueError where a length exceeds the models' number of positions."""
        for label, (_, length) in sizes.items():
            if length > longest(self.dense):
                raise ValueError(
                    f"--shapes: {label}; expected lengths up to the model's {longest(self.dense)}"
                )

    def traffic(
        self,
        lines: Sequence[str],
        batches: Sequence[int],
        requests: int,
        rounds: int,
        threads: int | None = None,
    ) -> dict[str, Any]:
        """Latency percentiles and throughput of requests of random `lines`, as JSON.

        Each batch size has `requests` requests. A request is padded to its longest text; texts are
        truncated to 512 tokens, or to fewer where the model has fewer positions.
        """
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        draw = random.Random(SEED)
        traffic, comparisons = [], []
        for batch in batches:
            inputs = {}
            for i in range(requests):
                encoded = tokenizer(
                    draw.choices(lines, k=batch),
                    padding=True,
                    truncation=True,
                    max_length=min(MAX_LENGTH, longest(self.dense)),
                    return_tensors="pt",
                )
                inputs[f"{batch} texts, request {i + 1}"] = dict(encoded.to(self.dense.device))
            masks = [request["attention_mask"] for request in inputs.values()]
            compared = list(self._compared(inputs, rounds, threads).values())
            comparisons += compared
            lengths = torch.cat([mask.sum(1) for mask in masks]).double()
            traffic.append(
                {
                    "batch": batch,
                    "requests": requests,
                    "rounds": rounds,
                    "median_length": float(lengths.median()),
                    "longest": int(lengths.max()),
                    "padding": 1 - float(lengths.sum()) / sum(mask.numel() for mask in masks),
                    "models": [load.to_dict() for load in throughput(compared, masks)],
                    "missing": dict(compared[0].missing),
                }
            )
        return {"environment": collect(comparisons)["environment"], "traffic": traffic}

    def cold_starts(self, threads: int | None = None) -> dict[str, dict[str, float]]:
        """Cold start of a process that serves each model, by the model's name."""
        threads = threads or torch.get_num_threads()
        dtypes = {COMPRESSED: None} | {
            name: name.removeprefix("optimized, ") for name in self.references
        }
        return {
            name: asdict(cold_start(self.folder, dtype, threads=threads))
            for name, dtype in dtypes.items()
        }

    def _compared(
        self, batches: Mapping[str, Mapping[str, Any]], rounds: int, threads: int | None
    ) -> dict[str, Comparison]:
        comparisons = compare_served(
            *(self.dense, self.models, batches, self.references),
            may_miss=self.references,
            rounds=rounds,
            threads=threads,
        )
        return {
            label: replace(comparison, missing={**self.missing, **comparison.missing})
            for label, comparison in comparisons.items()
        }
