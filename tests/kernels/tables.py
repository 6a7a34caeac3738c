"""Tuned tables made by hand."""

import json

from lada_kernels import tuning
from lada_kernels.table import Key, Measured, Table
from lada_kernels.variants import TileConfig

STEM, DEVICE = "low_rank_linear", "NVIDIA_H200"
KEY = Key("bfloat16", 768, 3072, "r128", "fused")
TILES = TileConfig(64, 64, 64, 4, 3)
OTHERS = TileConfig(128, 64, 64, 8, 3)


def table(**variants):
    """A table with one entry, at 2048 tokens: variant -> microseconds, or those and tiles."""
    made = Table(STEM, DEVICE, tuning.TRITON)
    return with_entry(made, 2048, **variants)


def with_entry(made, tokens, key=KEY, **variants):
    measured = {
        name: Measured(*variant) if isinstance(variant, tuple) else Measured(variant)
        for name, variant in variants.items()
    }
    made.add(key, tokens, measured, {"gpu": "NVIDIA H200"})
    return made


def path_in(folder, triton=tuning.TRITON):
    return folder / STEM / Table.name(DEVICE, triton)


def write(made, folder, triton=tuning.TRITON):
    path = path_in(folder, triton)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made.to_dict() if isinstance(made, Table) else made))
    return path
