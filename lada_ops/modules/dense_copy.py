"""The dense weight that a module may keep beside its compressed one, for where dense is faster."""

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
    """A product of tensors that is made when it is asked for, and again once they have changed.

    No copy of a module takes it along, and no state dict or pickle holds it.
    """

    def __init__(self) -> None:
        self._made_from: list[tuple[weakref.ref[Tensor], object]] = []
        self._weight: Tensor | None = None

    def get(self, tensors: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """What `make` returned for `tensors` as they are now."""
        if self._weight is None or not self._is_of(tensors):
            self.drop()  # frees the old one first
            self._weight = make()
            self._made_from = [(weakref.ref(t), _state(t)) for t in tensors]
        return self._weight

    def _is_of(self, tensors: Sequence[Tensor]) -> bool:
        # another tensor may have the address of one that is gone, and its version
        return len(tensors) == len(self._made_from) and all(
            made_from() is t and state == _state(t)
            for t, (made_from, state) in zip(tensors, self._made_from, strict=True)
        )

    def drop(self) -> None:
        """Free the memory."""
        self._weight, self._made_from = None, []

    @property
    def nbytes(self) -> int:
        """What it takes now."""
        return 0 if self._weight is None else self._weight.nbytes

    def __deepcopy__(self, memo: dict[int, Any]) -> DenseCopy:
        return DenseCopy()

    def __reduce__(self) -> tuple[type[DenseCopy], tuple[()]]:
        return DenseCopy, ()


def _state(t: Tensor) -> tuple[Any, ...]:
    """Changes whenever the tensor's values may have, or its dtype or place."""
    # tensors made under inference_mode count no versions, and cannot change in place outside it
    version = 0 if t.is_inference() else t._version
    return t.data_ptr(), version, t.dtype, t.device
