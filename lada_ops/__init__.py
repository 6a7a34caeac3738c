"""Compressed BERTs that are actually fast: compress, swap in, measure.

Importing this package also registers its checkpoints with transformers, so that
``AutoModel.from_pretrained`` loads a compressed model. The rooms `distill`, `evaluate` and
`latency` are imported when they are first used.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from .compression.budget import plan
from .compression.calibration import layer_statistics
from .compression.compress import compress
from .compression.decompress import decompress
from .compression.plan import CompressionPlan, LayerPlan
from .compression.report import CompressionReport, LayerReport
from .compression.shrink import shrink
from .engine.capture import capture_graphs
from .engine.optimize import optimize, paths, restore
from .formats.bsr import Bsr
from .formats.counts import Counts
from .formats.low_rank import LowRank
from .formats.sparse_low_rank import SparseLowRank
from .modules.block_sparse_linear import BlockSparseLinear
from .modules.compressed_linear import keep_dense
from .modules.low_rank_ffn import LowRankFFN
from .modules.low_rank_linear import LowRankLinear
from .modules.sparse_low_rank_linear import SparseLowRankLinear
from .ops.block_sparse_linear import block_sparse_linear
from .ops.low_rank_ffn import low_rank_ffn
from .ops.low_rank_linear import low_rank_linear
from .ops.reference import Norm
from .ops.sparse_low_rank_linear import sparse_low_rank_linear

if TYPE_CHECKING:
    from . import distill, evaluate, latency

__all__ = [
    "BlockSparseLinear",
    "Bsr",
    "CompressionPlan",
    "CompressionReport",
    "Counts",
    "LayerPlan",
    "LayerReport",
    "LowRank",
    "LowRankFFN",
    "LowRankLinear",
    "Norm",
    "SparseLowRank",
    "SparseLowRankLinear",
    "block_sparse_linear",
    "capture_graphs",
    "compress",
    "decompress",
    "distill",
    "evaluate",
    "keep_dense",
    "latency",
    "layer_statistics",
    "low_rank_ffn",
    "low_rank_linear",
    "optimize",
    "paths",
    "plan",
    "restore",
    "shrink",
    "sparse_low_rank_linear",
]


def __getattr__(name: str) -> ModuleType:
    if name in ("distill", "evaluate", "latency"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
