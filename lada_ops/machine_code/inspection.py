"""What is shipped, as rows of figures: its machine code, and the least time its work takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .catalogue import Shipped
from .compile import CompileError, compile_launch
from .gate import faults
from .targets import Target


def inspect(launches: Iterable[Shipped], target: Target) -> Iterator[dict[str, Any]]:
    """A row of JSON values for each launch, compiled for `target`, which need not be present.

    ``bound_us`` is an estimate for the whole op, of which a launch may be a part, from the peak
    figures of the target's GPU. Figures are None where the launch does not compile, and those that
    are read from loops where there is no such loop or, as on AMD, no such reading.
    """
    for shipped in launches:
        case, launch = shipped.case, shipped.launch
        row: dict[str, Any] = {
            "kernel": launch.name,
            "stem": case.stem,
            "tokens": case.tokens,
            "k": case.k,
            "n": case.n,
            "weight": case.weight,
            "epilogue": case.epilogue,
            "gradient": case.gradient,
            "dtype": str(case.dtype).removeprefix("torch."),
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
        work = case.work
        yield row | {
            "gflop": work.flops / 1e9,
            "mbyte": work.bytes / 1e6,
            "bound_us": work.seconds(target.ceilings) * 1e6,
            "bound_by": work.bound(target.ceilings),
        }
