"""Measured ceilings of the device: copy bandwidth, matmul rate, time of a graph node."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lada_ops.latency import Clock, Rotation
from lada_ops.machine_code.roofline import Ceilings

SAMPLES = 15


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, clock: Clock, quick: bool = False
) -> dict[str, Any]:
    """Bytes and FLOPs per second, seconds per graph node, and bytes of the L2 cache.

    quick: tiny operands, whose rates mean nothing, for dry runs.
    """
    length, side = (2**30, 8192) if device.type == "cuda" else (2**28, 2048)
    if quick:
        length, side = 2**22, 256
    source = torch.empty(length, dtype=torch.uint8, device=device).random_(0, 256)
    target = torch.empty_like(source)
    # random, since products of zeros draw less power and run faster
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    word = torch.zeros(1, device=device)

    def seconds(call: Callable[[], Tensor], calls: int = 1) -> float:
        rotation = Rotation([call] * calls)
        rotation()
        times = [clock.sample(itertools.repeat(rotation), 1)[0] for _ in range(SAMPLES)]
        return min(times)

    # first, since new CPU threads take a second to spread over the cores
    flops = 2 * side**3 / seconds(lambda: torch.mm(a, b, out=product))
    return {
        "bytes_per_second": 2 * length / seconds(lambda: target.copy_(source)),
        "flops_per_second": flops,
        "graph_node_seconds": seconds(lambda: word.add_(1), calls=1000),
        "l2_bytes": l2_bytes(device),
    }


def l2_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).L2_cache_size


def of_row(row: dict[str, Any]) -> Ceilings:
    return Ceilings(row["flops_per_second"], row["bytes_per_second"])
