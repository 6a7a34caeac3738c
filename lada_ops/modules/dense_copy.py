"""Cached dense weight beside a compressed one, for token counts at which dense is faster."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor

KeepDense: TypeAlias = bool | Literal["auto"]


def check_keep_dense(owner: str, keep: object) -> None:
    """Raise ValueError unless `keep` is True, False or "auto"."""
    if not (isinstance(keep, bool) or keep == "auto"):
        raise ValueError(f"{owner}: keep_dense {keep!r}; expected True, False or 'auto'")


class DenseCopy:
    """Cache of a weight computed from other tensors, recomputed after they have changed.

    Copies and pickles of a module start without it, and no state dict has it.
    """

    def __init__(self) -> None:
        self._sources: list[tuple[weakref.ref[Tensor], object]] = []
        self._weight: Tensor | None = None

    def get(self, tensors: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """Result of `compute` for `tensors` as they are now."""
        if self._weight is None or not self._is_current(tensors):
            self.drop()  # frees the old one first
            self._weight = compute()
            self._sources = [(weakref.ref(t), _state(t)) for t in tensors]
        return self._weight

    def _is_current(self, tensors: Sequence[Tensor]) -> bool:
        # a new tensor may have the address and version of one that was freed
        return len(tensors) == len(self._sources) and all(
            source() is t and state == _state(t)
            for t, (source, state) in zip(tensors, self._sources, strict=True)
        )

    def drop(self) -> None:
        """Free the memory."""
        self._weight, self._sources = None, []

    @property
    def nbytes(self) -> int:
        """Bytes of the cached weight; 0 without one."""
        return 0 if self._weight is None else self._weight.nbytes

    def __deepcopy__(self, memo: dict[int, Any]) -> DenseCopy:
        return DenseCopy()

    def __reduce__(self) -> tuple[type[DenseCopy], tuple[()]]:
        return DenseCopy, ()


def _state(t: Tensor) -> tuple[Any, ...]:
    """State that differs whenever the tensor's values, dtype or place may have changed."""
    # tensors of inference mode count no versions, and cannot change in place outside of it
    version = 0 if t.is_inference() else t._version
    return t.data_ptr(), version, t.dtype, t.device
