"""Inspection of shipped launches: a row of machine-code figures and a roofline bound for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .catalogue import Shipped
from .compile import CompileError, compile_launch
from .gate import faults
from .targets import Target


def inspect(launches: Iterable[Shipped], target: Target) -> Iterator[dict[str, Any]]:
    """Rows of JSON values, one per launch, compiled for `target`, which need not be present.

    ``bound_us`` bounds the whole op, of which a launch may be a part, by the peak rates of the
    target's GPU. Figures are None where the launch does not compile; figures of loops also where
    there is no such loop, and on AMD, whose code is not parsed.
    """
    for shipped in launches:
        call, launch = shipped.call, shipped.launch
        row: dict[str, Any] = {
            "kernel": launch.name,
            "stem": call.stem,
            "tokens": call.tokens,
            "k": call.k,
            "n": call.n,
            "weight": call.weight,
            "epilogue": call.epilogue,
            "gradient": call.gradient,
            "dtype": str(call.dtype).removeprefix("torch."),
            "tiles": launch.tiles,
            **dict.fromkeys(
                (
                    *("registers", "spills", "shared_kib", "occupancy"),
                    *("issue_per_tensor", "instructions_per_element"),
                )
            ),
        }
        try:
            binary = compile_launch(launch, target)
        except CompileError as error:
            row["faults"] = [str(error)]
        else:
            row |= {
                "registers": binary.registers,
                "spills": binary.spills,
                "shared_kib": binary.shared / 1024,
                "occupancy": binary.occupancy,
                "issue_per_tensor": binary.issue_per_tensor,
                "instructions_per_element": binary.instructions_per_element,
                "faults": faults(binary, shipped.limits),
            }
        work = call.work
        yield row | {
            "gflop": work.flops / 1e9,
            "mbyte": work.bytes / 1e6,
            "bound_us": work.seconds(target.ceilings) * 1e6,
            "bound_by": work.bound(target.ceilings),
        }
