"""Linears of a Hugging Face encoder, found by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from ..modules.compressed_linear import CompressedLinear
from ..modules.packed_linear import PackedLinear

_BERT = (  # bert, roberta, xlm-roberta, camembert, electra, ernie, roformer, mpnet, deberta
    r"encoder\.layer\.\d+\.(attention\.(self\.(query|key|value|in_proj|pos_proj|pos_q_proj"
    r"|query_proj|key_proj|value_proj|pos_key_proj|pos_query_proj)|attn\.(q|k|v|o)|output\.dense)"
    r"|(intermediate|output)\.dense)"
)
_ALBERT = (
    r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+"
    r"\.(attention\.(query|key|value|dense)|ffn|ffn_output)"
)
_DISTILBERT = r"transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])"
_MODERNBERT = r"layers\.\d+\.(attn\.(Wqkv|Wo)|mlp\.(Wi|Wo))"

ENCODER_LINEARS = rf"(^|\.)({_BERT}|{_ALBERT}|{_DISTILBERT}|{_MODERNBERT})$"

_WRAPPED = "base_layer", "original_module"  # peft adapters' names for the module they wrap


def encoder_linears(model: nn.Module, layers: str | None = None) -> dict[str, nn.Linear]:
    """`nn.Linear`s of the model's encoder by name, in module order.

    layers: regular expression searched in the names; by default `ENCODER_LINEARS`.
    Subclasses of `nn.Linear` are left out: they compute more than a weight and a bias.

    Raises ValueError if no linear matches (the message names some that exist), on an invalid
    expression, and on a matching linear inside an unmerged adapter, such as peft's LoRA.
    """
    try:
        pattern = re.compile(ENCODER_LINEARS if layers is None else layers)
    except (re.error, TypeError) as error:
        raise ValueError(f"layers={layers!r} is no regular expression: {error}") from None
    linears = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    named = {name: m for name, m in model.named_modules() if pattern.search(name)}
    for name, module in named.items():
        if any(isinstance(getattr(module, wrapped, None), nn.Module) for wrapped in _WRAPPED):
            package = type(module).__module__.partition(".")[0]
            raise ValueError(
                f"{name} is an unmerged adapter, {package}'s {type(module).__name__}; expected an "
                "nn.Linear, as merge_and_unload() gives it"
            )
    matching = {name: m for name, m in linears.items() if name in named}
    if not matching:
        _refuse_converted(model, named)
        some = ", ".join(list(linears)[:5]) or "none at all"
        raise ValueError(
            f"no encoder linear found in {type(model).__name__}; "
            f"layers={layers!r} matches none of its nn.Linear modules ({some}"
            f"{', ...' if len(linears) > 5 else ''})"
        )
    return matching


def _refuse_converted(model: nn.Module, named: Mapping[str, nn.Module]) -> None:
    """Raise ValueError if the matching modules were compressed or optimized already."""
    for name, module in named.items():
        kind, whole = type(module).__name__, type(model).__name__
        if isinstance(module, PackedLinear):
            raise ValueError(
                f"{whole} is optimized: {name} is a {kind}; expected lada_ops.restore of it first"
            )
        if isinstance(module, CompressedLinear):
            raise ValueError(
                f"{whole} is compressed already: {name} is a {kind}; expected the dense model that "
                "it came from, or layers that are left dense"
            )
