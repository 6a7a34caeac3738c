"""`Watch`: whether the modules of an encoder still are what its engine was made of."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .masks import NotForEngine

if TYPE_CHECKING:
    from lada_kernels.cpu.native import Regions

PLAIN_ATTENTION = ("eager", "sdpa")
"""Implementations of attention in transformers that compute what the engines do."""
_ATTENTION = "_attn_implementation_internal"  # in vars of a config, whose properties take longer
_logger = logging.getLogger("lada_ops")


class _View(NamedTuple):
    """Places that each call looks at, and what it found there."""

    children: list[dict[str, Any]]  # submodules of each module
    submodules: list[Any]
    holders: list[dict[str, Any]]  # parameters and buffers of each module
    ids: list[int]  # since == of tensors is elementwise
    namespaces: list[dict[str, Any]]  # attributes of each module, perhaps with a forward
    forwards: list[Any]
    settings: dict[str, Any]  # attributes of the config
    tensors: list[Tensor]
    marks: list[int]
    regions: Regions | None


class Watch:
    """Notice of modules, parameters, buffers and forwards that were changed after `optimize`.

    modules: by name, those that an engine computes for. by_value: whether the engine has copies of
    their tensors, which are held to the values that they had, or views, held to memory and version.
    Other attributes, such as a norm's eps, are not looked at.
    """

    def __init__(self, modules: Mapping[str, nn.Module], config: Any, by_value: bool) -> None:
        self._modules, self._config = dict(modules), config
        self._attention = getattr(config, _ATTENTION, None)
        self._expected = self._found()
        tensors = _tensors(self._expected[1].values())
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
            [*_values(view.children)] != view.submodules
            or [*map(id, _values(view.holders))] != view.ids
            or [*map(dict.get, view.namespaces, repeat("forward"))] != view.forwards
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

    def _found(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """By name, submodules, tensors and forwards as they are now."""
        submodules, tensors, forwards = {}, {}, {}
        for name, module in self._modules.items():
            submodules |= {f"{name}.{child}": value for child, value in module._modules.items()}
            for held in (module._parameters, module._buffers):
                tensors |= {f"{name}.{leaf}": value for leaf, value in held.items()}
            forwards[f"{name}.forward"] = vars(module).get("forward")
        return submodules, tensors, forwards

    def _looked(self) -> _View:
        submodules, held, forwards = ([*found.values()] for found in self._expected)
        modules, tensors = self._modules.values(), [*_tensors(held)]
        return _View(
            [m._modules for m in modules if m._modules],
            submodules,
            [held for m in modules for held in (m._parameters, m._buffers) if held],
            [*map(id, held)],
            [vars(m) for m in modules],
            forwards,
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
                if name not in now or now[name] is not before.get(name):
                    return name
        held = [name for name, t in self._expected[1].items() if [*_tensors([t])]]
        for name, copy in zip(held, self._copies or (), strict=False):
            tensor = self._expected[1][name]
            if not _alike(tensor, copy) or not _bytes(tensor).equal(torch.from_numpy(copy)):
                return name
        return "the attention implementation"


def _values(dicts: Iterable[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, dicts))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor) and value.numel())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _alike(tensor: Tensor, copy: Any) -> bool:
    """Whether bytes of the tensor's memory can be compared with those of the copy."""
    fits = tensor.is_cpu and tensor.is_contiguous() and tensor.nbytes == copy.nbytes
    return fits and tensor.data_ptr() != 0
