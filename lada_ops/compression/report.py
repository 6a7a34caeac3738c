"""Report of a compression: errors and costs per layer and in all, as numbers and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..formats.counts import Counts
from .plan import OBJECTIVES, LayerPlan, check_keys, is_size, listed


@dataclass(frozen=True)
class LayerReport:
    """Errors and costs of one compressed linear.

    objective: the objective of its fit, or "training". weight_error: ``||W - W'||_F / ||W||_F``.
    activation_error: ``||Y - Y'||_F / ||W X||_F`` over the calibration tokens, with Y and Y' the
    outputs for the inputs X, biases included; None without calibration. Both errors are None after
    training. dense, compressed: counts of weight and bias.
    """

    plan: LayerPlan
    objective: str
    weight_error: float | None
    activation_error: float | None
    dense: Counts
    compressed: Counts

    def __str__(self) -> str:
        errors = (("weight", self.weight_error), ("output", self.activation_error))
        found = [f"{what} error {error:.3f}" for what, error in errors if error is not None]
        return ", ".join([str(self.plan), *found])


@dataclass(frozen=True, repr=False)
class CompressionReport:
    """Reports of all compressed linears, by name.

    model_bytes_dense, model_bytes: of all tensors of the model, before and after. Printed, it shows
    sums and the first layers; `to_dict` holds all.
    """

    layers: Mapping[str, LayerReport]
    model_bytes_dense: int
    model_bytes: int

    @property
    def dense(self) -> Counts:
        """Summed counts of the linears before compression."""
        return sum((layer.dense for layer in self.layers.values()), Counts())

    @property
    def compressed(self) -> Counts:
        """Summed counts of the linears after compression."""
        return sum((layer.compressed for layer in self.layers.values()), Counts())

    @property
    def ratio(self) -> float:
        """Stored bytes of the linears, dense over compressed; 1 without linears."""
        if not self.layers:
            return 1.0
        return self.dense.stored_bytes / self.compressed.stored_bytes

    def __repr__(self) -> str:
        sizes = [
            f"{what} {dense / 1e6:.2f} to {compressed / 1e6:.2f} MB"
            for what, dense, compressed in (
                ("linears", self.dense.stored_bytes, self.compressed.stored_bytes),
                ("whole model", self.model_bytes_dense, self.model_bytes),
            )
        ]
        return f"<CompressionReport: {len(self.layers)} linears; {', '.join(sizes)}>"

    def __str__(self) -> str:
        return listed(self, self.layers)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model_bytes_dense": self.model_bytes_dense,
            "model_bytes": self.model_bytes,
            "ratio": self.ratio,
            "dense": asdict(self.dense),
            "compressed": asdict(self.compressed),
            "layers": {
                name: asdict(layer) | {"plan": layer.plan.to_dict()}
                for name, layer in self.layers.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionReport:
        """Report from `to_dict`; its sums are computed anew.

        Raises ValueError, which names the place, on unknown or missing keys and on values of
        another type or out of range.
        """
        where = "CompressionReport"
        sums = {"ratio", "dense", "compressed"}
        required = {"layers", "model_bytes_dense", "model_bytes"}
        check_keys(where, data, required, required | sums)
        if not isinstance(data["layers"], Mapping):
            raise ValueError(
                f"{where}: layers is {type(data['layers']).__name__}; expected an object"
            )
        if not data["layers"]:
            raise ValueError(f"{where}: layers is empty; expected at least one")
        for name in ("model_bytes_dense", "model_bytes"):
            _check_count(where, name, data[name], least=1)
        return cls(
            {
                name: _layer_report(f"{where}: layer {name!r}", layer)
                for name, layer in data["layers"].items()
            },
            data["model_bytes_dense"],
            data["model_bytes"],
        )


def _layer_report(where: str, data: Any) -> LayerReport:
    names = {f.name for f in fields(LayerReport)}
    check_keys(where, data, names, names)
    if data["objective"] not in (*OBJECTIVES, "training"):
        raise ValueError(
            f"{where}: objective {data['objective']!r}; expected one of {OBJECTIVES}, or 'training'"
        )
    for name in ("weight_error", "activation_error"):
        error = data[name]
        if error is not None and not (
            type(error) in (int, float) and 0 <= error <= sys.float_info.max
        ):
            raise ValueError(f"{where}: {name} {error!r}; expected a finite number from 0, or None")
    names = {f.name for f in fields(Counts)}
    for part in ("dense", "compressed"):
        check_keys(f"{where}: {part}", data[part], names, names)
        for name, count in data[part].items():
            _check_count(f"{where}: {part}", name, count, least=int(name == "stored_bytes"))
    return LayerReport(
        LayerPlan.from_dict(data["plan"], f"{where}: plan"),
        data["objective"],
        data["weight_error"],
        data["activation_error"],
        Counts(**data["dense"]),
        Counts(**data["compressed"]),
    )


def _check_count(where: str, name: str, count: Any, least: int) -> None:
    if not is_size(count, least):
        raise ValueError(f"{where}: {name} {count!r}; expected a whole number from {least}")
