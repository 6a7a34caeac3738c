"""NVIDIA's machine code as nvdisasm prints it: instructions, and the loops they form."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_TENSOR = ("HGMMA", "HMMA", "UTCHMMA")


@dataclass(frozen=True)
class Code:
    """Opcodes with their modifiers in the order of their addresses; the spans of inner loops."""

    opcodes: tuple[str, ...]
    spans: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.opcodes)

    def count(self, *opcodes: str) -> int:
        """Instructions whose opcode, modifiers aside, is one of `opcodes`."""
        return sum(opcode.split(".")[0] in opcodes for opcode in self.opcodes)

    @property
    def tensor(self) -> int:
        """Tensor-core instructions."""
        return self.count(*_TENSOR)

    @property
    def async_copies(self) -> int:
        """Copies from global to shared memory that nobody waits for, TMA's included."""
        return self.count("LDGSTS", "UTMALDG")

    @property
    def copy_bits(self) -> set[int]:
        """How much a thread copies with one LDGSTS: one of each size that occurs."""
        return {_bits(opcode) for opcode in self.opcodes if opcode.startswith("LDGSTS")}

    @property
    def stored_bytes(self) -> int:
        """What a thread writes to global memory if it runs every instruction once."""
        return sum(_bits(o) for o in self.opcodes if o.startswith("STG.")) // 8

    @property
    def loops(self) -> list[Code]:
        """The innermost ones."""
        return [Code(self.opcodes[first:end]) for first, end in self.spans]

    @property
    def tensor_loops(self) -> list[Code]:
        """The innermost loops that hold tensor-core instructions."""
        return [loop for loop in self.loops if loop.tensor]

    @property
    def reductions(self) -> list[Code]:
        """The inner tensor loops that neither store nor sum up rows: those over K."""
        return [loop for loop in self.tensor_loops if not loop.count("STG", "SHFL")]

    @property
    def epilogue(self) -> Code | None:
        """What writes the output: the inner loop with the stores, else all behind the last loop."""
        storing = [loop for loop in self.loops if loop.stored_bytes]
        if storing:
            return max(storing, key=len)
        pairs = zip(self.loops, self.spans, strict=True)
        last = max((end for loop, (_, end) in pairs if loop.tensor), default=0)
        tail = Code(self.opcodes[last:])
        return tail if tail.stored_bytes else None

    def tensor_work(self, threads: int) -> int:
        """FLOPs of the program's tensor-core instructions, each run once by all its threads.

        Instructions whose opcode does not tell their shape (sm_100) count as none.
        """
        flops = 0
        for opcode in self.opcodes:
            if match := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)\.", opcode):  # of four warps
                rows, cols, depth = map(int, match.groups())
                flops += 2 * rows * cols * depth * threads // 128
            elif match := re.match(r"HMMA\.(\d\d)(\d)(\d+)\.", opcode):  # of a warp
                rows, cols, depth = map(int, match.groups())
                flops += 2 * rows * cols * depth * threads // 32
        return flops


def parse(text: str) -> Code:
    """The code in what ``nvdisasm -c`` prints."""
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
    # a jump to itself is where a program's end is padded to
    loops = {(labels[goal], at + 1) for at, goal in jumps if labels.get(goal, at) < at}
    inner = (
        (first, end)
        for first, end in loops
        if not any(first <= f and e <= end and (f, e) != (first, end) for f, e in loops)
    )
    return Code(tuple(opcodes), tuple(sorted(inner)))


def _bits(opcode: str) -> int:
    """Width of a memory access; an opcode without one moves 32 bits."""
    match = re.search(r"\.[US]?(8|16|32|64|128|256)$", opcode)
    return int(match[1]) if match else 32
