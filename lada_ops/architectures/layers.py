"""Submodule names of the supported Hugging Face encoder layers, and arguments of their models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
)
from transformers.utils.generic import ModelOutput


class RelativePositionBias(NamedTuple):
    """Encoder's submodule with the biases, and its method that maps hidden states to them.

    The method returns (batch, heads, length, length), which depends on key minus query position.
    """

    module: str
    method: str


@dataclass(frozen=True)
class LayerNames:
    """Submodule names of an encoder layer that computes `layer_ref`.

    qkv: three linears, or a single merged one. output_norm: None in pre-norm layers, which have an
    input_norm before attention. gated: the feed-forward is a GLU. returns_tuple: the layer returns
    a tuple with the hidden states. positions: the layer's argument for position information.
    position_bias, rotary: where the encoder keeps relative position biases, or its RoPE module.
    """

    qkv: tuple[str, ...]
    attention_output: str
    attention_norm: str
    intermediate: str
    output: str
    output_norm: str | None = None
    input_norm: str | None = None
    gated: bool = False
    returns_tuple: bool = False
    positions: str | None = None
    position_bias: RelativePositionBias | None = None
    rotary: str | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        return *self.qkv, self.attention_output, self.intermediate, self.output

    @property
    def norms(self) -> tuple[str, ...]:
        names = self.input_norm, self.attention_norm, self.output_norm
        return tuple(name for name in names if name is not None)


_BERT = LayerNames(
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    intermediate="intermediate.dense",
    output="output.dense",
    output_norm="output.LayerNorm",
)
_DISTILBERT = LayerNames(
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    intermediate="ffn.lin1",
    output="ffn.lin2",
    output_norm="output_layer_norm",
)
_MPNET = LayerNames(
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    attention_output="attention.attn.o",
    attention_norm="attention.LayerNorm",
    intermediate="intermediate.dense",
    output="output.dense",
    output_norm="output.LayerNorm",
    returns_tuple=True,
    positions="position_bias",
    position_bias=RelativePositionBias("relative_attention_bias", "compute_position_bias"),
)
_MODERNBERT = LayerNames(
    qkv=("attn.Wqkv",),
    attention_output="attn.Wo",
    attention_norm="mlp_norm",
    intermediate="mlp.Wi",
    output="mlp.Wo",
    input_norm="attn_norm",
    gated=True,
    positions="position_embeddings",
    rotary="rotary_emb",
)
LAYERS = {  # by class name; layers of other classes may have these names and compute otherwise
    "BertLayer": _BERT,
    "RobertaLayer": _BERT,
    "XLMRobertaLayer": _BERT,
    "CamembertLayer": _BERT,
    "ElectraLayer": _BERT,
    "TransformerBlock": _DISTILBERT,
    "MPNetLayer": _MPNET,
    "ModernBertEncoderLayer": _MODERNBERT,
}
FIXED_ROPE_TYPES = ("default", "linear", "yarn", "llama3")
"""RoPE types whose cos and sin depend on the position alone, not on the length of the input."""


@dataclass(frozen=True)
class Architecture:
    """Model made of `embeddings`, an encoder, and at most a final norm and a pooler.

    inputs: arguments of the embeddings besides input_ids. output: class of the model's output.
    """

    inputs: tuple[str, ...]
    output: type[ModelOutput]


_EMBEDDED = ("token_type_ids", "position_ids", "inputs_embeds")
_BERT_MODEL = Architecture(_EMBEDDED, BaseModelOutputWithPoolingAndCrossAttentions)
MODELS = {
    "BertModel": _BERT_MODEL,
    "RobertaModel": _BERT_MODEL,
    "XLMRobertaModel": _BERT_MODEL,
    "CamembertModel": _BERT_MODEL,
    "ElectraModel": Architecture(_EMBEDDED, BaseModelOutputWithPastAndCrossAttentions),
    "DistilBertModel": Architecture(_EMBEDDED[1:], BaseModelOutput),
    "MPNetModel": Architecture(_EMBEDDED[1:], BaseModelOutputWithPooling),
    "ModernBertModel": Architecture(_EMBEDDED[2:], BaseModelOutput),
}
