"""Rows of the accuracy table with invented figures."""

from typing import Any


def model(accuracy: float, megabytes: float, robust: bool = True) -> dict[str, Any]:
    linears = {
        "nonzeros": round(megabytes * 2.5e5),
        "masked_bytes": round(megabytes * 1e6),
        "stored_bytes": round(megabytes * 2e6),
    }
    row = {"scores": {"accuracy": accuracy}, "linears": linears, "label_loyalty": 0.95}
    return row | ({"robustness": {"after_attack": 0.6}} if robust else {})


def row(
    method: str, ratio: float, accuracy: float, seed: int = 0, speedup: float = 2.0, **changes: Any
) -> dict[str, Any]:
    times = {"dense": 1.0, "compressed": 1.5, "optimized, float32": speedup}
    made = {
        "task": "sst2",
        "method": method,
        "ratio": ratio,
        "seed": seed,
        "batch": 32,
        "curve": [{"step": 10, "accuracy": 0.5}, {"step": 20, "accuracy": accuracy}],
        "models": [model(0.9, 40), model(accuracy, 40 / ratio)],
        "speedups": {"1x16": times, "1x128": times},
    }
    return made | changes
