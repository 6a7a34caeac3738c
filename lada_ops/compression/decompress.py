"""`decompress`: dense linears in the place of compressed ones."""

from __future__ import annotations

from torch import nn

from ..engine.record import optimized_part
from ..modules.checks import check_module
from ..modules.compressed_linear import CompressedLinear
from .pretrained import forget_compression
from .replacement import replaced_modules


def decompress(model: nn.Module) -> list[str]:
    """Replace every compressed module by an `nn.Linear`, in place, all or nothing.

    Its weight (out, in) is the compressed one multiplied out: what compression took away stays
    away. The config of the model is that of a dense one again.
    Returns the names of the modules changed.

    Raises ValueError, the model unchanged, where the model or a part of it is optimized, and on a
    module with an activation, since an `nn.Linear` has none.
    """
    check_module("decompress", model)
    part = optimized_part(model)
    if part is not None:
        raise ValueError(
            f"decompress: {part or 'the model'} is optimized; expected lada_ops.restore first"
        )
    linears: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, CompressedLinear):
            continue
        if module.activation != "none":
            raise ValueError(
                f"decompress: {name} has activation {module.activation!r}; expected 'none', since "
                "an nn.Linear has none"
            )
        linears[name] = module.to_linear()
    with replaced_modules(model, linears):
        forget_compression(model)
    return list(linears)
