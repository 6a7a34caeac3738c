"""What is known of transformers' encoders: where their layers keep what, and what is around."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
)
from transformers.utils.generic import ModelOutput


@dataclass(frozen=True)
class LayerNames:
    """Submodules of a layer that computes what `layer_ref` does.

    qkv: three linears, or one that is all three. output_norm: None where norms come first; then
    input_norm is the one before attention. gated: whether the feed-forward is. in_tuple: whether
    the layer's output comes in one. positions: argument that tells the layer of positions.
    """

    qkv: tuple[str, ...]
    out: str
    attention_norm: str
    up: str
    down: str
    output_norm: str | None = None
    input_norm: str | None = None
    gated: bool = False
    in_tuple: bool = False
    positions: str | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        return *self.qkv, self.out, self.up, self.down

    @property
    def norms(self) -> tuple[str, ...]:
        every = self.input_norm, self.attention_norm, self.output_norm
        return tuple(name for name in every if name is not None)


_BERT = LayerNames(
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    output_norm="output.LayerNorm",
)
_DISTILBERT = LayerNames(
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    output_norm="output_layer_norm",
)
_MPNET = LayerNames(
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    out="attention.attn.o",
    attention_norm="attention.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    output_norm="output.LayerNorm",
    in_tuple=True,
    positions="position_bias",
)
_MODERNBERT = LayerNames(
    qkv=("attn.Wqkv",),
    out="attn.Wo",
    attention_norm="mlp_norm",
    up="mlp.Wi",
    down="mlp.Wo",
    input_norm="attn_norm",
    gated=True,
    positions="position_embeddings",
)
LAYERS = {  # by the class of the layer; others of these names are not known to compute the same
    "BertLayer": _BERT,
    "RobertaLayer": _BERT,
    "XLMRobertaLayer": _BERT,
    "CamembertLayer": _BERT,
    "ElectraLayer": _BERT,
    "TransformerBlock": _DISTILBERT,
    "MPNetLayer": _MPNET,
    "ModernBertEncoderLayer": _MODERNBERT,
}
BIASED = {"MPNetLayer": ("relative_attention_bias", "compute_position_bias")}
"""Layers whose encoder adds to the scores what its method makes of its module's weights and x's
size: (batch, heads, length, length), which depends on the distance of query and key alone."""
ROTATED = {"ModernBertEncoderLayer": "rotary_emb"}
"""Layers whose queries and keys are turned by angles that a module of their encoder knows."""
FIXED_ROTATIONS = ("default", "linear", "yarn", "llama3")
"""Kinds of such angles that depend on the position alone, not on how long the text is."""


@dataclass(frozen=True)
class ModelKind:
    """A model that is `embeddings`, the encoder, and perhaps a norm and a pooler.

    inputs: what the embeddings take beside ids. output: what the model returns.
    """

    inputs: tuple[str, ...]
    output: type[ModelOutput]


_EMBEDDED = ("token_type_ids", "position_ids", "inputs_embeds")
_BERT_MODEL = ModelKind(_EMBEDDED, BaseModelOutputWithPoolingAndCrossAttentions)
MODELS = {
    "BertModel": _BERT_MODEL,
    "RobertaModel": _BERT_MODEL,
    "XLMRobertaModel": _BERT_MODEL,
    "CamembertModel": _BERT_MODEL,
    "ElectraModel": ModelKind(_EMBEDDED, BaseModelOutputWithPastAndCrossAttentions),
    "DistilBertModel": ModelKind(_EMBEDDED[1:], BaseModelOutput),
    "MPNetModel": ModelKind(_EMBEDDED[1:], BaseModelOutputWithPooling),
    "ModernBertModel": ModelKind(_EMBEDDED[2:], BaseModelOutput),
}
