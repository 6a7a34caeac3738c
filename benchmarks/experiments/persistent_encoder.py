"""Experiment: all layers of a low-rank BERT encoder in one launch, for one sentence.

As many programs as there are multiprocessors stay for the whole encoder and wait for each other
between its phases, eight a layer. LayerNorms are no phases of their own: whoever reads their input
computes them anew, and queries, keys and values never leave the chip.

Verdict: not kept. It is right, and no program reads or writes in a phase what another one writes
in it: tests/benchmarks/test_persistent_encoder.py runs it in the interpreter, whole by one program,
and phase by phase by several in any order. But it pays eight barriers of the whole device a layer,
and replayed graphs of the package's fused layers four or five launches, so it can win only where a
barrier costs little more than half the gap between two launches of a graph. Whether it does on some
GPU is not measured yet; where there is one, this measures it:
``python -m benchmarks.experiments.persistent_encoder``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor, nn

from lada_ops import LowRankLinear
from lada_ops.encoders import encoder_linears

from .persistent_kernel import persistent_encoder_kernel

RESULTS = Path(__file__).parents[1] / "results"
PHASES = 8  # of a layer
_TILES = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64, "BLOCK_S": 32}


class PersistentEncoder:
    """The encoder of a `low_rank_bert`."""

    def __init__(self, model: Any) -> None:
        config, layers = model.config, [*model.encoder.layer]

        def stacked(name: str, attribute: str) -> Tensor:
            tensors = [getattr(layer.get_submodule(name), attribute).detach() for layer in layers]
            return torch.stack(tensors)

        def factors(*names: str) -> list[Tensor]:
            for name in names:
                assert isinstance(layers[0].get_submodule(name), LowRankLinear)
            return [torch.cat([stacked(name, a) for name in names], 1) for a in ("v", "u", "bias")]

        qkv = factors(*(f"attention.self.{name}" for name in ("query", "key", "value")))
        out = factors("attention.output.dense")
        up, down = factors("intermediate.dense"), factors("output.dense")
        norms = [
            stacked(f"{name}.LayerNorm", attribute)
            for name in ("attention.output", "output")
            for attribute in ("weight", "bias")
        ]
        self.tensors = [*qkv, *out, *up, *down, *norms]
        self.layers, self.features = len(layers), config.hidden_size
        self.hidden, self.eps = config.intermediate_size, config.layer_norm_eps
        self.ranks = {
            "R_QKV": qkv[1].shape[2],
            "R_QKV_PADDED": max(16, triton.next_power_of_2(qkv[1].shape[2])),
            "R_OUT": out[1].shape[2],
            "R_UP": up[1].shape[2],
            "R_DOWN": down[1].shape[2],
        }
        self.head = config.hidden_size // config.num_attention_heads

    @property
    def phases(self) -> int:
        return PHASES * self.layers + 1

    def buffers(self, x: Tensor) -> list[Tensor]:
        """What an `encode` of x (length, features) writes to, x's own place last."""
        widest = max(3 * self.ranks["R_QKV"], *self.ranks.values())
        widths = self.features, self.features, widest, self.hidden
        return [x.new_empty(len(x), width) for width in widths]

    def encode_(self, x: Tensor, buffers: list[Tensor], programs: int, *phases: int) -> Tensor:
        """x (length, features) becomes the encoder's output; by default of all phases.

        programs: no more than the device holds at once, where there is more than one phase.
        """
        begin, end = phases or (0, self.phases)
        kernel: Any = persistent_encoder_kernel
        kernel[(programs,)](
            *(x, *buffers, *self.tensors),
            torch.zeros(1, dtype=torch.int32, device=x.device),
            *(begin, end, self.layers, len(x), self.features, self.hidden, self.eps),
            **self.ranks,
            HEAD=self.head,
            GELU="gelu" if x.dtype == torch.float32 else "gelu_poly",
            **_TILES,
            num_warps=8,
        )
        return x


def low_rank_bert(config: Any, ratio: float, dtype: torch.dtype, device: Any) -> nn.Module:
    """A random BertModel of which every linear of the encoder has 1 / ratio of its weights."""
    from transformers import BertModel

    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False).eval()
    for name, linear in encoder_linears(model).items():
        sizes = linear.in_features, linear.out_features
        rank = max(8, int(linear.weight.numel() / ratio / sum(sizes)) // 8 * 8)
        model.set_submodule(name, LowRankLinear(*sizes, rank))
    return model.to(device, dtype)


def main() -> int:
    import copy

    from transformers import BertConfig

    import lada_ops
    from lada_ops.environment import device_slug
    from lada_ops.latency import Candidate, GraphClock, collect, compare, write_json

    if not torch.cuda.is_available():
        print("not measured: there is no GPU")
        return 1
    device = torch.device("cuda")
    programs = torch.cuda.get_device_properties(device).multi_processor_count
    model = low_rank_bert(BertConfig(), 5, torch.float16, device)
    encoder, comparisons = PersistentEncoder(model), []
    fused = lada_ops.optimize(copy.deepcopy(model))
    for length in (16, 32, 128):
        x = torch.randn(length, 768, device=device, dtype=torch.float16)
        buffers = encoder.buffers(x)
        want = copy.deepcopy(model).double().get_submodule("encoder")(x.double()[None])[0][0]

        def persistent(x: Tensor = x, buffers: list[Tensor] = buffers) -> Tensor:
            return encoder.encode_(x.clone(), buffers, programs)

        def layers(x: Tensor = x) -> Tensor:
            return fused.get_submodule("encoder")(x[None])[0][0]

        candidates = [
            Candidate("fused layers", [layers], want),
            Candidate("one launch", [persistent], want),
        ]
        clock = GraphClock(device)
        label = f"bert_base low rank 5x 1x{length}"
        comparisons.append(compare(candidates, baseline="fused layers", label=label, clock=clock))
    write_json(RESULTS / device_slug(device) / "persistent_encoder.json", collect(comparisons))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
