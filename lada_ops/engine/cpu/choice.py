"""Whether a weight is faster multiplied out on this CPU: measured where in doubt, remembered."""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ...host.environment import device_slug
from ...host.user_tables import user_folder
from ...modules.packed_linear import Source, pack_linears

TOKENS = (16, 128, 512)
_ROUNDS = 7
_CLEAR = 0.5  # of the dense weight's bytes: what stores less was never seen slower
_LEAST = 1e-3  # of ratios that are believed, and one over it the most
_logger = logging.getLogger("lada_ops")


class Choice(NamedTuple):
    """How linears that share x are packed: multiplied out or as they are, and why."""

    dense: bool
    why: str


def choose(sources: Sequence[Source], dtype: torch.dtype) -> Choice:
    """Whether linears that share x are faster multiplied out, over the token counts in `TOKENS`.

    Measured side by side where they store more than half of the dense weights; the ratio is
    remembered in the user's cache folder, by CPU, instruction set, threads, dtype and weights.
    """
    if all(isinstance(s, nn.Linear) for s in sources):
        return Choice(False, "dense")
    dense_values = sum(s.in_features * s.out_features for s in sources)
    stored = sum(p.numel() for s in sources for n, p in s.named_parameters() if n != "bias")
    if stored <= _CLEAR * dense_values:
        return Choice(False, "compressed")
    path, key = user_folder().parent / f"cpu-{device_slug('cpu')}.json", _key(sources, dtype)
    known = _read(path)
    if key not in known:
        known = _read(path) | {key: _measured_ratio(sources, dtype)}
        _write(path, known)
    ratio = known[key]
    if ratio < 1:
        return Choice(True, f"multiplied out, measured {1 / ratio:.2f} times as fast as compressed")
    return Choice(False, f"compressed, measured {ratio:.2f} times as fast as dense")


def _measured_ratio(sources: Sequence[Source], dtype: torch.dtype) -> float:
    """Time of dense over time of compressed, the geometric mean over `TOKENS`."""
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


def _checked(known: Any) -> dict[str, float]:
    if not isinstance(known, dict):
        raise ValueError(f"{type(known).__name__}; expected an object")
    for key, ratio in known.items():
        if type(ratio) not in (int, float) or not _LEAST <= ratio <= 1 / _LEAST:
            raise ValueError(f"{key!r} is {ratio!r}; expected {_LEAST} to {1 / _LEAST}")
    return known


def _write(path: Path, known: dict[str, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            file = Path(folder) / path.name
            file.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
            os.replace(file, path)
    except OSError as error:
        _logger.warning("cannot remember what was measured: %s", error)
