"""A tuned table: what each way to compute an op took on one GPU, and the JSON file it lives in.

Every entry holds the dense product's time beside ours, taken in the same run: only the ratio of the
two can be compared with that of another table. A file with anything wrong in it, tiles that no
kernel can have among it, is refused as a whole; `tuning` then says so once, and default tiles and
rules stand in for it.
"""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .weight_names import Weight

FORMAT_VERSION = 1
WAYS = ("one_launch", "two_launches", "weights_left", "split", "dense")
EPILOGUES = ("plain", "fused", "norm")
DTYPES = ("bfloat16", "float16", "float32")
# of tiles: tensor cores take 16 at least, a program has 1024 threads at most; others: 16 to 256
_LIMITS = {"num_warps": (1, 32), "num_stages": (1, 16)}


@dataclass(frozen=True)
class TileConfig:
    """Tile of one program: BLOCK_M rows of x, BLOCK_N columns of y, BLOCK_K terms per step.

    Powers of two; a sparse weight asks for more, see `check_block_tiles`.
    pdl: whether launches are programmatic dependent ones, which sm_90 and newer can.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    pdl: bool = False

    def kwargs(self) -> dict[str, Any]:
        """The fields as keyword arguments of a kernel launch."""
        fields = asdict(self)
        return pdl_kwargs(fields.pop("pdl")) | fields


def check_block_tiles(owner: str, tiles: TileConfig, block_rows: int, block_cols: int) -> None:
    """Raise ValueError unless a tile lies in one block row, and a step takes whole blocks."""
    for name, size, right, expected in (
        ("BLOCK_N", tiles.BLOCK_N, block_rows % tiles.BLOCK_N == 0, f"a divisor of {block_rows}"),
        ("BLOCK_K", tiles.BLOCK_K, tiles.BLOCK_K % block_cols == 0, f"a multiple of {block_cols}"),
    ):
        if not right:
            raise ValueError(
                f"{owner}: {name} is {size} for blocks of {block_rows}x{block_cols}; "
                f"expected {expected}"
            )


def pdl_kwargs(pdl: bool) -> dict[str, Any]:
    """Keyword arguments of a launch: whether the kernel is to wait, and that it may start early.

    The second is an option that backends without it refuse.
    """
    return {"PDL": pdl} | ({"launch_pdl": True} if pdl else {})


@dataclass(frozen=True)
class Way:
    """One way to compute an op: its name, and the tiles of its kernel.

    ``tiles`` is None for the kernel's default tiles, and where no kernel of ours runs.
    """

    name: str
    tiles: TileConfig | None = None

    @property
    def pdl(self) -> bool:
        """Whether its kernels are launched as programmatic dependent ones."""
        return self.tiles is not None and self.tiles.pdl


class Key(NamedTuple):
    """What an entry is about, but for the number of tokens.

    x (M, k) of dtype; y (M, n); weight as `lada_kernels.weight_names` has it; epilogue as
    `lada_kernels.epilogue.epilogue_kind` does.
    """

    dtype: str
    k: int
    n: int
    weight: str
    epilogue: str


class Measured(NamedTuple):
    """The time of one way, in microseconds per call, and the tiles that took it."""

    us: float
    tiles: TileConfig | None = None


@dataclass(frozen=True)
class Entry:
    """Ways measured side by side, "dense" among them; environment: an index into the table's."""

    ways: dict[str, Measured]
    environment: int


class TableError(ValueError):
    """A file that is no tuned table: `path`, and in `reason` what is wrong with it."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)} is no tuned table: {reason}")
        self.path = Path(path)
        self.reason = reason


@dataclass
class Table:
    """The entries of one op on one GPU under one minor version of Triton.

    entries: key -> tokens (a power of two) -> entry. environments: what entries were measured in,
    each as `lada_ops.host.environment.environment` tells it.
    """

    stem: str
    device: str
    triton: str
    environments: list[dict[str, Any]] = field(default_factory=list)
    entries: dict[Key, dict[int, Entry]] = field(default_factory=dict)

    @staticmethod
    def name(device: str, triton: str) -> str:
        """The name of the table's file, in a folder named after the op."""
        return f"{device}-triton{triton}.json"

    def add(
        self, key: Key, tokens: int, ways: dict[str, Measured], environment: dict[str, Any]
    ) -> None:
        """Enter what was measured, in the place of what was there."""
        if environment not in self.environments:
            self.environments.append(environment)
        index = self.environments.index(environment)
        self.entries.setdefault(key, {})[tokens] = Entry(ways, index)

    def to_dict(self) -> dict[str, Any]:
        """The content of the file, in an order that does not depend on that of measuring."""
        entries = [
            {
                **key._asdict(),
                "tokens": tokens,
                "environment": entry.environment,
                "ways": {
                    name: {"us": m.us} | ({} if m.tiles is None else {"tiles": asdict(m.tiles)})
                    for name, m in entry.ways.items()
                },
            }
            for key, by_tokens in sorted(self.entries.items())
            for tokens, entry in sorted(by_tokens.items())
        ]
        return {
            "format": FORMAT_VERSION,
            "stem": self.stem,
            "device": self.device,
            "triton": self.triton,
            "environments": self.environments,
            "entries": entries,
        }

    @classmethod
    def read(cls, path: str | os.PathLike[str], stem: str, device: str, triton: str) -> "Table":
        """The table in `path`, every field checked.

        Raises TableError where something is missing, of another type or out of range, or where the
        table is not that of this op, device and Triton; OSError where there is no such file.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            _check(isinstance(content, dict), "not a JSON object")
            for name, want in (
                ("format", FORMAT_VERSION),
                ("stem", stem),
                ("device", device),
                ("triton", triton),
            ):
                got = content.get(name)
                right = type(got) is type(want) and got == want
                _check(right, f"{name} is {got!r}; expected {want!r}")
            _check_keys("the table", content, set(cls(stem, device, triton).to_dict()))
            table = cls(stem, device, triton, content["environments"])
            _check(
                isinstance(table.environments, list)
                and all(isinstance(e, dict) for e in table.environments)
                and all(map(_is_scalar, (v for e in table.environments for v in e.values()))),
                "environments is not a list of objects with text, finite numbers, true, false or "
                "null",
            )
            _check(isinstance(content["entries"], list), "entries is not a list")
            for index, item in enumerate(content["entries"]):
                table._read_entry(f"entry {index}", item)
        except (ValueError, RecursionError) as error:  # of the JSON, of UTF-8, or ours
            raise TableError(path, str(error)) from error
        return table

    def _read_entry(self, where: str, item: Any) -> None:
        _check_keys(where, item, {*Key._fields, "tokens", "environment", "ways"})
        for name, known in (("dtype", DTYPES), ("epilogue", EPILOGUES)):
            _check(
                item[name] in known, f"{where}: {name} is {item[name]!r}; expected one of {known}"
            )
        weight = _weight(f"{where}: weight", item["weight"], self.stem)
        for name in ("k", "n"):
            _check_size(f"{where}: {name}", item[name])
        _check_power(f"{where}: tokens", item["tokens"])
        index = item["environment"]
        _check(
            type(index) is int and 0 <= index < len(self.environments),
            f"{where}: environment is {index!r}; there are {len(self.environments)}",
        )
        _check(isinstance(item["ways"], dict), f"{where}: ways is not an object")
        _check("dense" in item["ways"], f"{where}: ways has no 'dense' to compare with")
        ways = {name: _measured(f"{where}: {name}", way) for name, way in item["ways"].items()}
        for name, way in ways.items():
            _check(name in WAYS, f"{where}: way {name!r}; expected one of {WAYS}")
            if way.tiles is not None and weight.rows:
                check_block_tiles(f"{where}: {name}", way.tiles, weight.rows, weight.cols)
        by_tokens = self.entries.setdefault(Key(*(item[name] for name in Key._fields)), {})
        _check(item["tokens"] not in by_tokens, f"{where} is there twice")
        by_tokens[item["tokens"]] = Entry(ways, index)


def _measured(where: str, item: Any) -> Measured:
    _check(isinstance(item, dict), f"{where} is not an object")
    _check_keys(where, item, {"us", *(["tiles"] if "tiles" in item else [])})
    us = item["us"]
    _check(
        type(us) in (int, float) and 0 < us < 1e12,
        f"{where}: us is {us!r}; expected a positive number of microseconds",
    )
    if "tiles" not in item:
        return Measured(float(us))
    tiles = item["tiles"]
    _check(isinstance(tiles, dict), f"{where}: tiles is not an object")
    not_yet = {"pdl"} - set(tiles)  # in tables that are older than it
    _check_keys(f"{where}: tiles", tiles, set(TileConfig.__annotations__) - not_yet)
    for name, value in tiles.items():
        if name == "pdl":
            _check(type(value) is bool, f"{where}: pdl is {value!r}; expected true or false")
            continue
        least, most = _LIMITS.get(name, (16, 256))
        _check_size(f"{where}: {name}", value)
        _check(least <= value <= most, f"{where}: {name} is {value}; expected {least} to {most}")
        if name != "num_stages":
            _check_power(f"{where}: {name}", value)
    return Measured(float(us), TileConfig(**tiles))


def _weight(where: str, name: Any, stem: str) -> Weight:
    _check(isinstance(name, str), f"{where} is {name!r}; expected a name")
    weight = Weight.parse(name)
    _check(
        (weight.stem, weight.name) == (stem, name),
        f"{where} is {name!r}, of {weight.stem}; expected one of {stem}, such as {weight.name}",
    )
    return weight


def _is_scalar(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, str | int)
        or (isinstance(value, float) and math.isfinite(value))
    )


def _check(right: bool, reason: str) -> None:
    if not right:
        raise ValueError(reason)


def _check_keys(where: str, item: Any, want: set[str]) -> None:
    got = set(item) if isinstance(item, dict) else type(item).__name__
    _check(got == want, f"{where} has {got}; expected {want}")


def _check_size(where: str, size: Any) -> None:
    _check(type(size) is int and size > 0, f"{where} is {size!r}; expected a positive integer")


def _check_power(where: str, size: Any) -> None:
    _check_size(where, size)
    _check(size & (size - 1) == 0, f"{where} is {size}; expected a power of two")
