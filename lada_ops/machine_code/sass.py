"""NVIDIA machine code (SASS), parsed from nvdisasm: instructions and innermost loops."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_TENSOR = ("HGMMA", "HMMA", "UTCHMMA")


@dataclass(frozen=True)
class Code:
    """Opcodes with modifiers by address, and the spans of innermost loops."""

    opcodes: tuple[str, ...]
    spans: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.opcodes)

    def count(self, *opcodes: str) -> int:
        """Number of instructions whose opcode, modifiers aside, is one of `opcodes`."""
        return sum(opcode.split(".")[0] in opcodes for opcode in self.opcodes)

    @property
    def tensor(self) -> int:
        """Number of tensor-core instructions."""
        return self.count(*_TENSOR)

    @property
    def async_copies(self) -> int:
        """Number of asynchronous copies from global to shared memory, TMA included."""
        return self.count("LDGSTS", "UTMALDG")

    @property
    def copy_bits(self) -> set[int]:
        """Distinct widths in bits of a thread's async copies (LDGSTS)."""
        return {_bits(opcode) for opcode in self.opcodes if opcode.startswith("LDGSTS")}

    @property
    def stored_bytes(self) -> int:
        """Bytes that a thread stores to global memory if it runs every instruction once."""
        return sum(_bits(o) for o in self.opcodes if o.startswith("STG.")) // 8

    @property
    def loops(self) -> list[Code]:
        """Innermost loops."""
        return [Code(self.opcodes[first:end]) for first, end in self.spans]

    @property
    def tensor_loops(self) -> list[Code]:
        """Innermost loops with tensor-core instructions."""
        return [loop for loop in self.loops if loop.tensor]

    @property
    def reductions(self) -> list[Code]:
        """K loops: the tensor loops that neither store nor reduce rows."""
        return [loop for loop in self.tensor_loops if not loop.count("STG", "SHFL")]

    @property
    def epilogue(self) -> Code | None:
        """Code that writes the output: the longest storing loop, else all behind the last loop."""
        storing = [loop for loop in self.loops if loop.stored_bytes]
        if storing:
            return max(storing, key=len)
        pairs = zip(self.loops, self.spans, strict=True)
        last = max((end for loop, (_, end) in pairs if loop.tensor), default=0)
        tail = Code(self.opcodes[last:])
        return tail if tail.stored_bytes else None

    def tensor_work(self, threads: int) -> int:
        """FLOPs of a program of `threads` whose tensor-core instructions run once each.

        Instructions whose opcode does not tell their shape (sm_100) count as 0.
        """
        flops = 0
        for opcode in self.opcodes:
            if match := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)\.", opcode):  # per warpgroup
                rows, cols, depth = map(int, match.groups())
                flops += 2 * rows * cols * depth * threads // 128
            elif match := re.match(r"HMMA\.(\d\d)(\d)(\d+)\.", opcode):  # per warp
                rows, cols, depth = map(int, match.groups())
                flops += 2 * rows * cols * depth * threads // 32
        return flops


def parse(text: str) -> Code:
    """Code parsed from the output of ``nvdisasm -c``."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        if match := _LABEL.match(line):
            labels[match[1]] = len(opcodes)
        elif match := _INSTRUCTION.match(line):
            opcode, operands = match.groups()
            if opcode.startswith("BRA") and (goal := re.search(r"\.L_\w+", operands)):
                jumps.append((len(opcodes), goal[0]))
            opcodes.append(opcode)
    # a jump to itself pads the end of a program
    loops = {(labels[goal], at + 1) for at, goal in jumps if labels.get(goal, at) < at}
    inner = (
        (first, end)
        for first, end in loops
        if not any(first <= f and e <= end and (f, e) != (first, end) for f, e in loops)
    )
    return Code(tuple(opcodes), tuple(sorted(inner)))


def _bits(opcode: str) -> int:
    """Bits of a memory access; 32 where the opcode has no width."""
    match = re.search(r"\.[US]?(8|16|32|64|128|256)$", opcode)
    return int(match[1]) if match else 32
