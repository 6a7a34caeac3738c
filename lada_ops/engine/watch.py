"""`Watch`: whether the modules of an encoder still are what its engine was made of."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .masks import NotForEngine

if TYPE_CHECKING:
    from lada_kernels.cpu.native import Regions

PLAIN_ATTENTION = ("eager", "sdpa")
"""Implementations of attention in transformers that compute what the engines do."""
_ATTENTION = "_attn_implementation_internal"  # in vars of a config, whose properties take longer
_SETTINGS = "is_decoder", "sliding_window"  # of a config, that models look up in each call
_IDLE = {  # attributes of modules in transformers that make no difference in inference
    *("training", "gradient_checkpointing", "chunk_size_feed_forward", "seq_len_dim", "layer_idx"),
    *("elementwise_affine", "is_cross_attention"),
}
_logger = logging.getLogger("lada_ops")


class _Found(NamedTuple):
    """Constituents of an encoder, by name."""

    submodules: dict[str, nn.Module | None]
    tensors: dict[str, Tensor | None]  # parameters and buffers
    attributes: dict[str, Any]  # of modules and the config
    classes: dict[str, type]


class _View(NamedTuple):
    """Places that each call looks at, and what it found there."""

    children: list[dict[str, Any]]  # submodules of each module
    submodules: list[dict[str, Any]]
    holders: list[ValuesView[Any]]  # parameters and buffers of each module
    ids: list[int]  # since == of tensors is elementwise
    namespaces: list[dict[str, Any]]  # for each attribute
    names: list[str]
    attributes: list[Any]
    modules: list[nn.Module]
    classes: list[type]
    settings: dict[str, Any]  # attributes of the config
    tensors: list[Tensor]
    marks: list[int]
    regions: Regions | None


class Watch:
    """Notice of what was changed in an encoder after `optimize`: submodules, parameters, buffers,
    forwards, configs; of modules that hold any of these, classes and numbers, such as a norm's eps.

    modules: by name, those that an engine computes for. model: what they are in, of which class and
    config count. by_value: whether the engine has copies of their tensors, which are held to the
    values that they had, or views, held to memory and version.

    Not noticed is what is changed outside them, such as functions and methods of classes.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        config: Any,
        by_value: bool,
        model: nn.Module | None = None,
    ) -> None:
        self._modules, self._config = dict(modules), config
        around = {} if model is None else {type(model).__name__: model}
        self._owners = {n: m for n, m in modules.items() if any(map(len, _held(m)))} | around
        self._places = [*self._attributes()]
        self._attention = getattr(config, _ATTENTION, None)
        self._expected = self._found()
        tensors = _tensors(self._expected.tensors.values())
        self._copies = [_bytes(t).clone().numpy() for t in tensors] if by_value else None
        self._told = False
        self._view: _View | None = self._looked()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_view": None}  # a copy lies elsewhere

    def check(self) -> None:
        """Raise NotForEngine, after one warning in all, where something was changed."""
        if not self.changed():
            return
        if not self._told:
            self._told = True
            _logger.warning(
                "%s was changed after lada_ops.optimize: its encoder runs by its own modules, "
                "which is slower; call lada_ops.restore, and lada_ops.optimize again",
                self._which(),
            )
        raise NotForEngine

    def changed(self) -> bool:
        """Whether the engine would compute something else than the modules say."""
        view = self._view = self._view or self._looked()
        attention = view.settings.get(_ATTENTION)
        if (
            view.children != view.submodules
            or [*map(id, chain.from_iterable(view.holders))] != view.ids
            or [*map(dict.get, view.namespaces, view.names)] != view.attributes
            or [*map(type, view.modules)] != view.classes
            or (attention != self._attention and attention not in PLAIN_ATTENTION)
        ):
            return True
        marks = self._marks(view.tensors)
        if self._copies is None:
            return marks != view.marks
        if marks != view.marks:  # moved, as into shared memory
            if not all(map(_alike, view.tensors, self._copies)):
                return True
            from lada_kernels.cpu.native import Regions

            view = self._view = view._replace(marks=marks, regions=Regions(marks, self._copies))
        assert view.regions is not None
        return not view.regions.equal()

    def _attributes(self) -> Iterator[tuple[str, Any, str]]:
        """Name, owner and attribute of each that counts."""
        for name, module in self._modules.items():
            yield f"{name}.forward", module, "forward"
        for name, module in self._owners.items():
            for attribute, value in vars(module).items():
                number = isinstance(value, int | float) and not attribute.startswith("_")
                counts = number and attribute not in _IDLE and name in self._modules
                if counts or attribute == "config":
                    yield f"{name}.{attribute}", module, attribute
        for attribute in _SETTINGS if self._config is not None else ():
            yield f"config.{attribute}", self._config, attribute

    def _found(self) -> _Found:
        """The encoder as it is now."""
        submodules, tensors = {}, {}
        for name, module in self._modules.items():
            submodules |= {f"{name}.{child}": value for child, value in module._modules.items()}
            for held in (module._parameters, module._buffers):
                tensors |= {f"{name}.{leaf}": value for leaf, value in held.items()}
        attributes = {name: vars(owner).get(leaf) for name, owner, leaf in self._places}
        classes = {f"{name}.__class__": type(module) for name, module in self._owners.items()}
        return _Found(submodules, tensors, attributes, classes)

    def _looked(self) -> _View:
        modules, expected = self._modules.values(), self._expected
        tensors = [*_tensors(expected.tensors.values())]
        submodules: dict[str, dict[str, Any]] = defaultdict(dict)
        for path, module in expected.submodules.items():
            name, _, child = path.rpartition(".")
            submodules[name][child] = module
        return _View(
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

    def _which(self) -> str:
        """The name of the first that was changed."""
        for now, before in zip(self._found(), self._expected, strict=True):
            for name in now | before:
                if name not in now or not _same(now[name], before.get(name)):
                    return name
        held = [name for name, t in self._expected.tensors.items() if [*_tensors([t])]]
        for name, copy in zip(held, self._copies or (), strict=False):
            tensor = self._expected.tensors[name]
            assert tensor is not None
            if not _alike(tensor, copy) or not _bytes(tensor).equal(torch.from_numpy(copy)):
                return name
        return "the attention implementation"


def _held(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._modules, module._parameters, module._buffers


def _same(one: Any, other: Any) -> bool:
    return one is other or (not isinstance(one, Tensor) and one == other)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor) and value.numel())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _alike(tensor: Tensor, copy: Any) -> bool:
    """Whether bytes of the tensor's memory can be compared with those of the copy."""
    fits = tensor.is_cpu and tensor.is_contiguous() and tensor.nbytes == copy.nbytes
    return fits and tensor.data_ptr() != 0
