"""`CompressionPlan`: format, rank and blocks of each compressed linear."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from ..approximation.blocks import Selection, check_selection
from ..formats.checks import check_rank
from ..formats.grid import check_block

Method = Literal["low_rank", "block_sparse", "sparse_low_rank"]
Objective = Literal["auto", "outputs", "activations", "scales", "fisher", "weights"]
METHODS: tuple[Method, ...] = get_args(Method)
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
PRINTED = 20
"""Layers that a printed plan or report shows."""


@dataclass(frozen=True)
class LayerPlan:
    """Format of one linear, with the rank of low-rank formats, block and density of sparse ones.

    Raises ValueError where a field is missing, superfluous, or does not fit the weight.
    """

    format: Method
    in_features: int
    out_features: int
    rank: int | None = None
    block: tuple[int, int] | None = None
    density: float | None = None

    def __post_init__(self) -> None:
        if self.format not in METHODS:
            raise ValueError(f"LayerPlan: format {self.format!r}; expected one of {METHODS}")
        low_rank, sparse = self.format != "block_sparse", self.format != "low_rank"
        for name, needed in (("rank", low_rank), ("block", sparse), ("density", sparse)):
            if (getattr(self, name) is not None) != needed:
                raise ValueError(
                    f"LayerPlan: {name} {getattr(self, name)!r} for format {self.format!r}; "
                    f"expected {'a value' if needed else 'None'}"
                )
        shape = self.out_features, self.in_features
        if not all(is_size(size) for size in shape):
            raise ValueError(
                f"LayerPlan: in_features {self.in_features!r}, out_features "
                f"{self.out_features!r}; expected whole numbers above 0"
            )
        if self.rank is not None:
            if not is_size(self.rank):
                raise ValueError(f"LayerPlan: rank {self.rank!r}; expected a whole number above 0")
            check_rank("LayerPlan", self.rank, shape)
        if self.block is not None:
            if not isinstance(self.block, list | tuple) or not all(map(is_size, self.block)):
                raise ValueError(
                    f"LayerPlan: block {self.block!r}; expected two whole numbers above 0"
                )
            object.__setattr__(self, "block", tuple(self.block))
            check_block("LayerPlan", self.block, shape)
        density = self.density
        if density is not None and (
            isinstance(density, bool)
            or not isinstance(density, int | float)
            or not 0 <= density <= 1
        ):
            raise ValueError(f"LayerPlan: density {self.density!r}; expected 0 to 1")

    def __str__(self) -> str:
        """Format and sizes, such as ``low_rank, rank 48``."""
        parts: list[str] = [self.format]
        if self.rank is not None:
            parts.append(f"rank {self.rank}")
        if self.block is not None:
            parts.append(f"{self.density:.1%} of {self.block[0]}x{self.block[1]}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Any, where: str = "LayerPlan") -> LayerPlan:
        """Plan from `to_dict`. Raises ValueError, which opens with `where`, on anything else."""
        known = {f.name for f in fields(cls)}
        check_keys(where, data, {"format", "in_features", "out_features"}, known)
        try:
            return cls(**data)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


@dataclass(frozen=True, repr=False)
class CompressionPlan:
    """Formats of all compressed linears; made by `plan` or by hand, kept as JSON.

    layers: module name -> LayerPlan. objective: the error that the fitted weights W' minimise; all
    but "weights" need calibration:

    - "weights": ``||W - W'||``;
    - "activations": ``||(W - W') X||`` over the inputs X (SVD-LLM);
    - "outputs": the same, weighted by its effect on the model's outputs (`LayerStatistics`);
    - "scales": ``||W - W'||`` with columns weighted by the norms of their inputs (Wanda, OATS);
    - "fisher": with rows weighted by the Fisher information of their outputs (FWSVD, Hsu et al.,
      ICLR 2022);
    - "auto": outputs if calibration is given, else weights.

    selection: criterion for blocks, as for `prune_blocks`: by size or by second order.
    """

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    objective: Objective = "auto"
    selection: Selection = "wanda"

    def __post_init__(self) -> None:
        check_objective("CompressionPlan", self.objective)
        check_selection("CompressionPlan", self.selection)
        if not isinstance(self.layers, Mapping):
            raise TypeError(
                f"CompressionPlan: layers is {type(self.layers).__name__}; expected a mapping"
            )
        for name, layer in self.layers.items():
            if not isinstance(layer, LayerPlan):
                raise TypeError(
                    f"CompressionPlan: layer {name!r} is {type(layer).__name__}; expected LayerPlan"
                )

    def __repr__(self) -> str:
        return (
            f"<CompressionPlan: {len(self.layers)} linears, fitted to {self.objective}, blocks by "
            f"{self.selection}>"
        )

    def __str__(self) -> str:
        return listed(self, self.layers)

    def to_dict(self) -> dict[str, Any]:
        return {
            "objective": self.objective,
            "selection": self.selection,
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionPlan:
        """Plan from `to_dict`. Raises ValueError on unknown or missing keys."""
        required = {"objective", "layers"}
        check_keys("CompressionPlan", data, required, required | {"selection"})
        if not isinstance(data["layers"], Mapping):
            raise ValueError(
                f"CompressionPlan: layers is {type(data['layers']).__name__}; expected an object"
            )
        layers = {
            name: LayerPlan.from_dict(layer, f"CompressionPlan: layer {name!r}")
            for name, layer in data["layers"].items()
        }
        return cls(layers, data["objective"], data.get("selection", cls.selection))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> CompressionPlan:
        """Plan from `to_json`. Raises ValueError on any other text."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"CompressionPlan: {error}; expected JSON") from None
        return cls.from_dict(data)


def check_objective(owner: str, objective: str) -> None:
    """Raise ValueError unless `objective` is one of OBJECTIVES."""
    if objective not in OBJECTIVES:
        raise ValueError(f"{owner}: objective {objective!r}; expected one of {OBJECTIVES}")


def is_size(value: Any, least: int = 1) -> bool:
    """True if `value` is an int from `least` to the largest int64."""
    return type(value) is int and least <= value < 2**63


def listed(whole: object, layers: Mapping[str, object]) -> str:
    """Text of `whole` in a line, and of its first `PRINTED` layers in a line each."""
    names = list(layers)[:PRINTED]
    lines = [repr(whole).strip("<>"), *(f"  {name}: {layers[name]}" for name in names)]
    left = len(layers) - len(names)
    return "\n".join([*lines, f"  and {left} more in .layers"] if left else lines)


def check_keys(where: str, data: Any, required: set[str], known: set[str]) -> None:
    """Raise ValueError unless `data` is a mapping with all `required` and only `known` keys."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: {type(data).__name__}; expected an object")
    missing, unknown = required - data.keys(), data.keys() - known
    if missing or unknown:
        raise ValueError(
            f"{where}: missing {sorted(missing)}, unknown {sorted(unknown, key=str)}; "
            f"expected {sorted(known)}"
        )
