"""`Watch`: detection of changes in an encoder after its engine was built."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .masks import UnsupportedCall

if TYPE_CHECKING:
    from lada_kernels.cpu.native import Regions

PLAIN_ATTENTION = ("eager", "sdpa")
"""Attention implementations of transformers that compute what the engines do."""
_ATTENTION = "_attn_implementation_internal"  # in vars(config): the property takes longer
_SETTINGS = "is_decoder", "sliding_window"  # attributes of a config that models read in each call
_IRRELEVANT = {  # attributes of transformers' modules that do not change inference
    *("training", "gradient_checkpointing", "chunk_size_feed_forward", "seq_len_dim", "layer_idx"),
    *("elementwise_affine", "is_cross_attention"),
}
_logger = logging.getLogger("lada_ops")


class _Structure(NamedTuple):
    """Submodules, tensors, attributes and classes of an encoder, by name."""

    submodules: dict[str, nn.Module | None]
    tensors: dict[str, Tensor | None]  # parameters and buffers
    attributes: dict[str, Any]  # of modules and the config
    classes: dict[str, type]


class _Snapshot(NamedTuple):
    """Live containers of the encoder, and their expected contents, in the order of comparison."""

    children: list[dict[str, Any]]  # submodules of each module
    submodules: list[dict[str, Any]]  # expected
    holders: list[ValuesView[Any]]  # parameters and buffers of each module
    ids: list[int]  # expected; == of tensors is elementwise
    namespaces: list[dict[str, Any]]  # one for each attribute
    names: list[str]
    attributes: list[Any]  # expected
    modules: list[nn.Module]
    classes: list[type]  # expected
    settings: dict[str, Any]  # attributes of the config
    tensors: list[Tensor]
    marks: list[int]  # addresses of the tensors, and versions where the engine has views
    regions: Regions | None  # memory of the tensors and of their copies


class Watch:
    """Detector of changes in an encoder after `optimize`.

    It compares submodules, parameters, buffers, forwards and the config; and the classes and
    numbers, such as a norm's eps, of the modules that hold any of these. Changes outside of them,
    such as a patched method of a class, go unnoticed.

    modules: the modules that an engine replaces, by name. model: the model around them, of which
    only class and config are compared. by_value: compare tensors with copies of their values, for
    an engine with copies; otherwise compare address and version, for an engine with views.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        config: Any,
        by_value: bool,
        model: nn.Module | None = None,
    ) -> None:
        self._modules, self._config = dict(modules), config
        outer = {} if model is None else {type(model).__name__: model}
        self._owners = {n: m for n, m in modules.items() if any(map(len, _contents(m)))} | outer
        self._places = [*self._attributes()]
        self._attention = getattr(config, _ATTENTION, None)
        self._expected = self._structure()
        tensors = _tensors(self._expected.tensors.values())
        self._copies = [_bytes(t).clone().numpy() for t in tensors] if by_value else None
        self._warned = False
        self._snapshot: _Snapshot | None = self._new_snapshot()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_snapshot": None}  # a copy has other addresses

    def check(self) -> None:
        """Raise UnsupportedCall if the encoder was changed; the first time, warn as well."""
        if not self.changed():
            return
        if not self._warned:
            self._warned = True
            _logger.warning(
                "%s was changed after lada_ops.optimize: its encoder runs by its own modules, "
                "which is slower; call lada_ops.restore, and lada_ops.optimize again",
                self._first_change(),
            )
        raise UnsupportedCall

    def changed(self) -> bool:
        """True if the encoder was changed, so that the engine's results no longer hold."""
        snapshot = self._snapshot = self._snapshot or self._new_snapshot()
        attention = snapshot.settings.get(_ATTENTION)
        if (
            snapshot.children != snapshot.submodules
            or [*map(id, chain.from_iterable(snapshot.holders))] != snapshot.ids
            or [*map(dict.get, snapshot.namespaces, snapshot.names)] != snapshot.attributes
            or [*map(type, snapshot.modules)] != snapshot.classes
            or (attention != self._attention and attention not in PLAIN_ATTENTION)
        ):
            return True
        marks = self._marks(snapshot.tensors)
        if self._copies is None:
            return marks != snapshot.marks
        if marks != snapshot.marks:  # moved, as into shared memory
            if not all(map(_comparable, snapshot.tensors, self._copies)):
                return True
            from lada_kernels.cpu.native import Regions

            snapshot = self._snapshot = snapshot._replace(
                marks=marks, regions=Regions(marks, self._copies)
            )
        assert snapshot.regions is not None
        return not snapshot.regions.equal()

    def _attributes(self) -> Iterator[tuple[str, Any, str]]:
        """Name, owner and attribute name of each attribute that is compared."""
        for name, module in self._modules.items():
            yield f"{name}.forward", module, "forward"
        for name, module in self._owners.items():
            for attribute, value in vars(module).items():
                number = isinstance(value, int | float) and not attribute.startswith("_")
                compared = number and attribute not in _IRRELEVANT and name in self._modules
                if compared or attribute == "config":
                    yield f"{name}.{attribute}", module, attribute
        for attribute in _SETTINGS if self._config is not None else ():
            yield f"config.{attribute}", self._config, attribute

    def _structure(self) -> _Structure:
        """Present structure of the encoder."""
        submodules, tensors = {}, {}
        for name, module in self._modules.items():
            submodules |= {f"{name}.{child}": value for child, value in module._modules.items()}
            for held in (module._parameters, module._buffers):
                tensors |= {f"{name}.{leaf}": value for leaf, value in held.items()}
        attributes = {name: vars(owner).get(leaf) for name, owner, leaf in self._places}
        classes = {f"{name}.__class__": type(module) for name, module in self._owners.items()}
        return _Structure(submodules, tensors, attributes, classes)

    def _new_snapshot(self) -> _Snapshot:
        modules, expected = self._modules.values(), self._expected
        tensors = [*_tensors(expected.tensors.values())]
        submodules: dict[str, dict[str, Any]] = defaultdict(dict)
        for path, module in expected.submodules.items():
            name, _, child = path.rpartition(".")
            submodules[name][child] = module
        return _Snapshot(
            [self._modules[name]._modules for name in submodules],
            [*submodules.values()],
            [held.values() for m in modules for held in (m._parameters, m._buffers) if held],
            [*map(id, expected.tensors.values())],
            [vars(owner) for _, owner, _ in self._places],
            [attribute for _, _, attribute in self._places],
            [*expected.attributes.values()],
            [*self._owners.values()],
            [*expected.classes.values()],
            {} if self._config is None else vars(self._config),
            tensors,
            self._marks(tensors) if self._copies is None else [-1],
            None,
        )

    def _marks(self, tensors: Sequence[Tensor]) -> list[int]:
        marks = [*map(Tensor.data_ptr, tensors)]
        if self._copies is None:
            marks += [t._version for t in tensors if not t.is_inference()]
        return marks

    def _first_change(self) -> str:
        """Name of the first submodule, tensor, attribute or class that was changed."""
        for now, before in zip(self._structure(), self._expected, strict=True):
            for name in now | before:
                if name not in now or not _same(now[name], before.get(name)):
                    return name
        held = [name for name, t in self._expected.tensors.items() if [*_tensors([t])]]
        for name, copy in zip(held, self._copies or (), strict=False):
            tensor = self._expected.tensors[name]
            assert tensor is not None
            if not _comparable(tensor, copy) or not _bytes(tensor).equal(torch.from_numpy(copy)):
                return name
        return "the attention implementation"


def _contents(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._modules, module._parameters, module._buffers


def _same(one: Any, other: Any) -> bool:
    return one is other or (not isinstance(one, Tensor) and one == other)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor) and value.numel())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _comparable(tensor: Tensor, copy: Any) -> bool:
    """True if the tensor's memory can be compared with the copy's, byte by byte."""
    fits = tensor.is_cpu and tensor.is_contiguous() and tensor.nbytes == copy.nbytes
    return fits and tensor.data_ptr() != 0
