"""Tuned table: the measured times of the variants of an op on one GPU, and its JSON file.

Every entry holds the time of the dense product beside ours, measured in the same run: only their
ratio can be compared with that of another table. A file with any error in it, such as tiles that no
kernel can have, is refused as a whole; `tuning` then warns once and falls back to rules and default
tiles.
"""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .variants import EPILOGUES, VARIANTS, TileConfig, check_block_tiles
from .weight_names import WeightName

FORMAT_VERSION = 1
DTYPES = ("bfloat16", "float16", "float32")
# tensor cores take tiles of at least 16, and a program has at most 1024 threads
_TILE_LIMITS = (16, 256)
_LIMITS = {"num_warps": (1, 32), "num_stages": (1, 16)}


class Key(NamedTuple):
    """Key of an entry, the number of tokens aside.

    x (M, k) of dtype; y (M, n); weight as named by `lada_kernels.weight_names`; epilogue as spelled
    by `EpilogueKind`.
    """

    dtype: str
    k: int
    n: int
    weight: str
    epilogue: str


class Measured(NamedTuple):
    """Time of a variant, in microseconds per call, and the tiles it was measured with."""

    us: float
    tiles: TileConfig | None = None


@dataclass(frozen=True)
class Entry:
    """Variants measured side by side, "dense" among them; environment: index in the table."""

    variants: dict[str, Measured]
    environment: int


class TableError(ValueError):
    """Error in a table's file: its `path`, and the `reason` for which it is refused."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)} is no tuned table: {reason}")
        self.path = Path(path)
        self.reason = reason


@dataclass
class Table:
    """Entries of one op on one GPU under one minor version of Triton.

    entries: key -> tokens (a power of two) -> entry. environments: machine and software of the
    measurements, as returned by `lada_ops.host.environment.environment`.
    """

    stem: str
    device: str
    triton: str
    environments: list[dict[str, Any]] = field(default_factory=list)
    entries: dict[Key, dict[int, Entry]] = field(default_factory=dict)

    @staticmethod
    def name(device: str, triton: str) -> str:
        """Name of the table's file, in a folder named after the op."""
        return f"{device}-triton{triton}.json"

    def add(
        self, key: Key, tokens: int, variants: dict[str, Measured], environment: dict[str, Any]
    ) -> None:
        """Add an entry, or replace the one with this key and number of tokens."""
        if environment not in self.environments:
            self.environments.append(environment)
        index = self.environments.index(environment)
        self.entries.setdefault(key, {})[tokens] = Entry(variants, index)

    def to_dict(self) -> dict[str, Any]:
        """JSON content of the file, sorted by key and tokens."""
        entries = [
            {
                **key._asdict(),
                "tokens": tokens,
                "environment": entry.environment,
                "ways": {
                    name: {"us": m.us} | ({} if m.tiles is None else {"tiles": asdict(m.tiles)})
                    for name, m in entry.variants.items()
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
        """Table in the file `path`, every field checked.

        Raises TableError if a field is missing, of a wrong type or out of range, or if the table is
        of another op, device or Triton; OSError if the file cannot be read.
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
        except (ValueError, RecursionError) as error:  # JSON, UTF-8, or a failed check
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
        variants = {name: _measured(f"{where}: {name}", m) for name, m in item["ways"].items()}
        for name, variant in variants.items():
            _check(name in VARIANTS, f"{where}: way {name!r}; expected one of {VARIANTS}")
            if variant.tiles is not None and weight.rows:
                check_block_tiles(f"{where}: {name}", variant.tiles, weight.rows, weight.cols)
        by_tokens = self.entries.setdefault(Key(*(item[name] for name in Key._fields)), {})
        _check(item["tokens"] not in by_tokens, f"{where} is there twice")
        by_tokens[item["tokens"]] = Entry(variants, index)


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
    missing = {"pdl"} - set(tiles)  # older tables lack it
    _check_keys(f"{where}: tiles", tiles, set(TileConfig.__annotations__) - missing)
    for name, value in tiles.items():
        if name == "pdl":
            _check(type(value) is bool, f"{where}: pdl is {value!r}; expected true or false")
            continue
        least, most = _LIMITS.get(name, _TILE_LIMITS)
        _check_size(f"{where}: {name}", value)
        _check(least <= value <= most, f"{where}: {name} is {value}; expected {least} to {most}")
        if name != "num_stages":
            _check_power(f"{where}: {name}", value)
    return Measured(float(us), TileConfig(**tiles))


def _weight(where: str, name: Any, stem: str) -> WeightName:
    _check(isinstance(name, str), f"{where} is {name!r}; expected a name")
    weight = WeightName.parse(name)
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
