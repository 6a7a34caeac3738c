"""Choice between a compressed weight and its dense product on this CPU: measured and cached."""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ...host.environment import device_slug
from ...host.files import write_whole
from ...host.user_tables import user_folder
from ...modules.packed_linear import Source, pack_linears

TOKENS = (16, 128, 512)
_ROUNDS = 7
_CLEAR = 0.5  # share of the dense weight's values up to which compressed was never slower
_LEAST = 1e-3  # smallest plausible ratio; its inverse is the largest
_logger = logging.getLogger("lada_ops")


class Choice(NamedTuple):
    """Weight that linears of the same input are packed with: dense or compressed, and the reason.

    dense is False for linears that were dense already.
    """

    dense: bool
    why: str


def choose(sources: Sequence[Source], dtype: torch.dtype) -> Choice:
    """Faster weight for linears of the same input: their dense product, or as they are.

    Where they store more than half as many values as the dense weight, both are timed side by side
    at the token counts `TOKENS`. The ratio is cached in the user's cache folder by CPU, instruction
    set, threads, dtype and weights.
    """
    if all(isinstance(s, nn.Linear) for s in sources):
        return Choice(False, "dense")
    dense_values = sum(s.in_features * s.out_features for s in sources)
    stored = sum(p.numel() for s in sources for n, p in s.named_parameters() if n != "bias")
    if stored <= _CLEAR * dense_values:
        return Choice(False, "compressed")
    path, key = user_folder().parent / f"cpu-{device_slug('cpu')}.json", _key(sources, dtype)
    ratios = _read(path)
    if key not in ratios:
        measured = _measured_ratio(sources, dtype)
        ratios = _read(path) | {key: measured}  # others may have written in the meantime
        _write(path, ratios)
    ratio = ratios[key]
    if ratio < 1:
        return Choice(True, f"multiplied out, measured {1 / ratio:.2f} times as fast as compressed")
    return Choice(False, f"compressed, measured {ratio:.2f} times as fast as dense")


def _measured_ratio(sources: Sequence[Source], dtype: torch.dtype) -> float:
    """Time of dense over time of compressed, geometric mean over `TOKENS`."""
    from lada_kernels.cpu.linear import packed_linear_fwd

    candidates = [pack_linears(sources, dtype, dense) for dense in (True, False)]
    ratios = []
    for tokens in TOKENS:
        x = torch.randn(tokens, sources[0].in_features, dtype=torch.float32, device="cpu")
        x = x.to(candidates[0].io_dtype)
        for _ in range(_ROUNDS):
            times = []
            for packed in candidates:
                start = time.perf_counter()
                packed_linear_fwd(packed, x)
                times.append(time.perf_counter() - start)
            ratios.append((tokens, times[0] / times[1]))
    medians = [statistics.median(r for t, r in ratios if t == tokens) for tokens in TOKENS]
    return math.prod(medians) ** (1 / len(medians))


def _key(sources: Sequence[Source], dtype: torch.dtype) -> str:
    from lada_kernels.cpu import native

    best = native.best()
    name = "none" if best is None else best[0]
    return ", ".join([name, f"{native.threads()} threads", str(dtype), *map(repr, sources)])


def _read(path: Path) -> dict[str, float]:
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _logger.warning("%s is ignored and written anew: %s", path, error)
        return {}


def _checked(content: Any) -> dict[str, float]:
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__}; expected an object")
    for key, ratio in content.items():
        if type(ratio) not in (int, float) or not _LEAST <= ratio <= 1 / _LEAST:
            raise ValueError(f"{key!r} is {ratio!r}; expected {_LEAST} to {1 / _LEAST}")
    return content


def _write(path: Path, ratios: dict[str, float]) -> None:
    try:
        write_whole(path, json.dumps(ratios, indent=1, sort_keys=True))
    except OSError as error:
        _logger.warning("cannot remember what was measured: %s", error)
