"""`Watch`: whether the modules of an encoder still are what its engine was made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .masks import NotForEngine

if TYPE_CHECKING:
    from lada_kernels.cpu.native import Regions

PLAIN_ATTENTION = ("eager", "sdpa")
"""Implementations of attention in transformers that compute what the engines do."""
_logger = logging.getLogger("lada_ops")


class _View(NamedTuple):
    """Places that each call looks at, and what it found there."""

    members: list[dict[str, Any]]  # submodules, parameters and buffers of each module
    namespaces: list[dict[str, Any]]  # attributes of each module, perhaps with a forward
    tensors: list[Tensor]
    ids: list[int]
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
        self._attention = getattr(config, "_attn_implementation", None)
        self._expected = self._found()
        tensors = [*_tensors(self._expected.values())]
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
        found = chain(
            chain.from_iterable(map(dict.values, view.members)),
            map(dict.get, view.namespaces, repeat("forward")),
        )
        if [*map(id, found)] != view.ids:
            return True
        attention = getattr(self._config, "_attn_implementation", None)
        if attention != self._attention and attention not in PLAIN_ATTENTION:
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

    def _found(self) -> dict[str, Any]:
        """By name, submodules, parameters, buffers and then forwards, as they are now."""
        found: dict[str, Any] = {}
        for name, module in self._modules.items():
            for members in _members(module):
                found |= {f"{name}.{member}": value for member, value in members.items()}
        for name, module in self._modules.items():
            found[f"{name}.forward"] = vars(module).get("forward")
        return found

    def _looked(self) -> _View:
        members = [members for m in self._modules.values() for members in _members(m) if members]
        tensors = [*_tensors(self._expected.values())]
        marks = self._marks(tensors) if self._copies is None else [-1]
        namespaces = [vars(module) for module in self._modules.values()]
        ids = [*map(id, self._expected.values())]
        return _View(members, namespaces, tensors, ids, marks, None)

    def _marks(self, tensors: Sequence[Tensor]) -> list[int]:
        marks = [*map(Tensor.data_ptr, tensors)]
        if self._copies is None:
            marks += [t._version for t in tensors if not t.is_inference()]
        return marks

    def _which(self) -> str:
        """The name of the first that was changed."""
        now = self._found()
        for name, before in self._expected.items():
            if now.get(name) is not before:
                return name
        held = [name for name, t in self._expected.items() if [*_tensors([t])]]
        for name, copy in zip(held, self._copies or (), strict=False):
            tensor = now[name]
            if not _alike(tensor, copy) or not _bytes(tensor).equal(torch.from_numpy(copy)):
                return name
        return "a parameter, or the attention implementation,"


def _members(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._modules, module._parameters, module._buffers


def _tensors(values: Any) -> filter[Tensor]:
    return filter(lambda value: isinstance(value, Tensor) and value.numel() > 0, values)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _alike(tensor: Tensor, copy: Any) -> bool:
    """Whether bytes of the tensor's memory can be compared with those of the copy."""
    fits = tensor.is_cpu and tensor.is_contiguous() and tensor.nbytes == copy.nbytes
    return fits and tensor.data_ptr() != 0
