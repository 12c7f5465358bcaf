"""Families of pretrained models: how they name the tensors and the fields of our transformer."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from shatter.models.fused import fused_kernels, places_of_parts
from shatter.models.transformer_config import TransformerConfig


class Tensor(NamedTuple):
    """A tensor of a family's files, and the leaf of our parameters that holds its values.

    Attributes:
      name: its name in the files; `{layer}` stands for the number of the block.
      path: the path of our leaf, which is stacked over layers if the name has `{layer}`.
      kind: how the files store it: "vector" flattened, "table" with the axes of our leaf, "linear"
        as a matrix [out, in], "conv" as a matrix [in, out].
      part: the part of a fused leaf that it holds (`fused.py`); None = the whole leaf.
      inputs: how many leading axes of our kernel (of one layer) are inputs.
    """

    name: str
    path: str
    kind: Literal["vector", "table", "linear", "conv"]
    part: str | None = None
    inputs: int = 1


class Family(NamedTuple):
    """How the folders of a family's models are written.

    Attributes:
      architecture: the name of the family's class in the library transformers.
      prefix: the start of the tensors' names, which files saved without a head leave out.
      tensors: all tensors; a model has those whose path is in its parameters.
      passed_over: the ends of the names of buffers in older files, which are not read.
      fields: field of our config -> its names in config.json; the first one is written.
      defaults: field of our config -> its value if config.json does not have it.
      fixed: field of our config -> its value in every model of the family.
      required: key of config.json -> the only value that our forward pass supports.
      other_parts: the starts of the names of tensors of parts that do not read text.
    """

    architecture: str
    prefix: str
    tensors: tuple[Tensor, ...]
    passed_over: tuple[str, ...]
    fields: Mapping[str, tuple[str, ...]]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    required: Mapping[str, Any]
    other_parts: tuple[str, ...] = ()


_GPT2_BLOCK = "transformer.h.{layer}."
_GPT2_TENSORS = (
    Tensor("transformer.wte.weight", "token_embedding/embedding", "table"),
    Tensor("transformer.wpe.weight", "position_embedding/embedding", "table"),
    Tensor(_GPT2_BLOCK + "ln_1.weight", "blocks/attention_norm/scale", "vector"),
    Tensor(_GPT2_BLOCK + "ln_1.bias", "blocks/attention_norm/bias", "vector"),
    Tensor(_GPT2_BLOCK + "attn.c_attn.weight", "blocks/qkv/kernel", "conv"),
    Tensor(_GPT2_BLOCK + "attn.c_attn.bias", "blocks/qkv/bias", "vector"),
    Tensor(_GPT2_BLOCK + "attn.c_proj.weight", "blocks/attention_out/kernel", "conv", inputs=2),
    Tensor(_GPT2_BLOCK + "attn.c_proj.bias", "blocks/attention_out/bias", "vector"),
    Tensor(_GPT2_BLOCK + "ln_2.weight", "blocks/mlp_norm/scale", "vector"),
    Tensor(_GPT2_BLOCK + "ln_2.bias", "blocks/mlp_norm/bias", "vector"),
    Tensor(_GPT2_BLOCK + "mlp.c_fc.weight", "blocks/mlp_in/kernel", "conv"),
    Tensor(_GPT2_BLOCK + "mlp.c_fc.bias", "blocks/mlp_in/bias", "vector"),
    Tensor(_GPT2_BLOCK + "mlp.c_proj.weight", "blocks/mlp_out/kernel", "conv"),
    Tensor(_GPT2_BLOCK + "mlp.c_proj.bias", "blocks/mlp_out/bias", "vector"),
    Tensor("transformer.ln_f.weight", "final_norm/scale", "vector"),
    Tensor("transformer.ln_f.bias", "final_norm/bias", "vector"),
    Tensor("lm_head.weight", "head/kernel", "linear"),
)

_LLAMA_BLOCK = "model.layers.{layer}."
_LLAMA_ATTENTION = _LLAMA_BLOCK + "self_attn."
_LLAMA_MLP = _LLAMA_BLOCK + "mlp."
_LLAMA_TENSORS = (
    Tensor("model.embed_tokens.weight", "token_embedding/embedding", "table"),
    Tensor(_LLAMA_BLOCK + "input_layernorm.weight", "blocks/attention_norm/scale", "vector"),
    Tensor(_LLAMA_ATTENTION + "q_proj.weight", "blocks/qkv/kernel", "linear", "query"),
    Tensor(_LLAMA_ATTENTION + "k_proj.weight", "blocks/qkv/kernel", "linear", "key"),
    Tensor(_LLAMA_ATTENTION + "v_proj.weight", "blocks/qkv/kernel", "linear", "value"),
    Tensor(_LLAMA_ATTENTION + "q_proj.bias", "blocks/qkv/bias", "vector", "query"),
    Tensor(_LLAMA_ATTENTION + "k_proj.bias", "blocks/qkv/bias", "vector", "key"),
    Tensor(_LLAMA_ATTENTION + "v_proj.bias", "blocks/qkv/bias", "vector", "value"),
    Tensor(_LLAMA_ATTENTION + "q_norm.weight", "blocks/query_norm/scale", "vector"),
    Tensor(_LLAMA_ATTENTION + "k_norm.weight", "blocks/key_norm/scale", "vector"),
    Tensor(_LLAMA_ATTENTION + "o_proj.weight", "blocks/attention_out/kernel", "linear", inputs=2),
    Tensor(_LLAMA_ATTENTION + "o_proj.bias", "blocks/attention_out/bias", "vector"),
    Tensor(_LLAMA_BLOCK + "post_attention_layernorm.weight", "blocks/mlp_norm/scale", "vector"),
    Tensor(_LLAMA_MLP + "gate_proj.weight", "blocks/mlp_in/kernel", "linear", "gate"),
    Tensor(_LLAMA_MLP + "up_proj.weight", "blocks/mlp_in/kernel", "linear", "up"),
    Tensor(_LLAMA_MLP + "gate_proj.bias", "blocks/mlp_in/bias", "vector", "gate"),
    Tensor(_LLAMA_MLP + "up_proj.bias", "blocks/mlp_in/bias", "vector", "up"),
    Tensor(_LLAMA_MLP + "down_proj.weight", "blocks/mlp_out/kernel", "linear"),
    Tensor(_LLAMA_MLP + "down_proj.bias", "blocks/mlp_out/bias", "vector"),
    Tensor("model.norm.weight", "final_norm/scale", "vector"),
    Tensor("lm_head.weight", "head/kernel", "linear"),
)

_GEMMA3_NORMS = {
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
_GEMMA3_TENSORS = (
    *(tensor for tensor in _LLAMA_TENSORS if tensor.path != "blocks/mlp_norm/scale"),
    *(
        Tensor(f"{_LLAMA_BLOCK}{theirs}.weight", f"blocks/{ours}/scale", "vector")
        for theirs, ours in _GEMMA3_NORMS.items()
    ),
)

_GPT2 = Family(
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    tensors=_GPT2_TENSORS,
    passed_over=(".attn.bias", ".attn.masked_bias"),
    fields={
        "vocab_size": ("vocab_size",),
        "max_length": ("n_positions", "max_position_embeddings", "n_ctx"),
        "width": ("n_embd", "hidden_size"),
        "num_layers": ("n_layer", "num_hidden_layers"),
        "num_heads": ("n_head", "num_attention_heads"),
        "mlp_width": ("n_inner",),
        "activation": ("activation_function",),
        "norm_epsilon": ("layer_norm_epsilon",),
        "tied": ("tie_word_embeddings",),
        "bos": ("bos_token_id",),
        "eos": ("eos_token_id",),
    },
    defaults={
        "mlp_width": None,
        "activation": "gelu_new",
        "norm_epsilon": 1e-5,
        "tied": True,
        "bos": 50256,
        "eos": 50256,
    },
    fixed={"norm": "layer", "gated": False, "head_bias": False},
    required={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
)

_LLAMA = Family(
    architecture="LlamaForCausalLM",
    prefix="model.",
    tensors=_LLAMA_TENSORS,
    passed_over=(".rotary_emb.inv_freq",),
    fields={
        "vocab_size": ("vocab_size",),
        "max_length": ("max_position_embeddings",),
        "width": ("hidden_size",),
        "num_layers": ("num_hidden_layers",),
        "num_heads": ("num_attention_heads",),
        "num_kv_heads": ("num_key_value_heads",),
        "head_size": ("head_dim",),
        "mlp_width": ("intermediate_size",),
        "activation": ("hidden_act",),
        "norm_epsilon": ("rms_norm_eps",),
        "qkv_bias": ("attention_bias",),
        "attention_out_bias": ("attention_bias",),
        "mlp_bias": ("mlp_bias",),
        "tied": ("tie_word_embeddings",),
        "bos": ("bos_token_id",),
        "eos": ("eos_token_id",),
    },
    defaults={
        "num_kv_heads": None,
        "head_size": None,
        "activation": "silu",
        "norm_epsilon": 1e-6,
        "qkv_bias": False,
        "attention_out_bias": False,
        "mlp_bias": False,
        "tied": False,
        "bos": 1,
        "eos": 2,
    },
    fixed={"norm": "rms", "gated": True, "head_bias": False},
    required={},
)


def _without(table: Mapping[str, Any], *fields: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in fields}


_QWEN2 = _LLAMA._replace(
    architecture="Qwen2ForCausalLM",
    fields=_without(_LLAMA.fields, "qkv_bias", "attention_out_bias", "mlp_bias"),
    defaults=_without(_LLAMA.defaults, "num_kv_heads") | {"bos": None, "eos": None},
    fixed={**_LLAMA.fixed, "qkv_bias": True, "attention_out_bias": False, "mlp_bias": False},
)
_QWEN3 = _LLAMA._replace(
    architecture="Qwen3ForCausalLM",
    fields=_without(_LLAMA.fields, "mlp_bias"),
    defaults=_without(_LLAMA.defaults, "num_kv_heads")
    | {"head_size": 128, "bos": None, "eos": None},
    fixed={**_LLAMA.fixed, "mlp_bias": False, "qk_norm": True},
)
_GEMMA3 = Family(
    architecture="Gemma3ForCausalLM",
    prefix="model.",
    tensors=_GEMMA3_TENSORS,
    passed_over=(".rotary_emb.inv_freq",),
    fields=_without(_LLAMA.fields, "mlp_bias")
    | {
        "activation": ("hidden_activation",),
        "attention_size": ("query_pre_attn_scalar",),
        "window": ("sliding_window",),
    },
    defaults={
        "vocab_size": 262_208,
        "max_length": 131_072,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_size": 256,
        "activation": "gelu_pytorch_tanh",
        "norm_epsilon": 1e-6,
        "qkv_bias": False,
        "attention_out_bias": False,
        "tied": True,
        "attention_size": 256,
        "window": 4096,
        "bos": 2,
        "eos": 1,
    },
    fixed={
        **_LLAMA.fixed,
        "mlp_bias": False,
        "qk_norm": True,
        "post_norms": True,
        "norm_offset": True,
        "scaled_embedding": True,
    },
    required={
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
)
# The part that reads text of a model of text and images.
_GEMMA3_OF_IMAGES = _GEMMA3._replace(
    prefix="language_model.model.",
    tensors=tuple(
        tensor._replace(name=f"language_model.{tensor.name}") for tensor in _GEMMA3_TENSORS
    ),
    other_parts=("vision_tower.", "multi_modal_projector."),
)

FAMILIES: dict[str, Family] = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3_OF_IMAGES,
}
"""Families by the `model_type` of config.json."""


def family_of(config: TransformerConfig) -> str:
    """Returns the family whose files can hold a transformer, if any can.

    Args:
      config: the configuration of the transformer.

    Returns:
      A key of `FAMILIES`.
    """
    if config.rope is None:
        return "gpt2"
    if config.norm_offset:
        return "gemma3_text"
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.qkv_bias and not config.attention_out_bias else "llama"


def part_of(tensor: Tensor, config: TransformerConfig) -> slice:
    """Returns the entries of a fused leaf that a tensor holds, on the leaf's second last axis.

    Args:
      tensor: a tensor of a family.
      config: the configuration of the transformer.

    Returns:
      A slice; that of the whole axis for a tensor that is not a part.
    """
    if tensor.part is None:
        return slice(None)
    return places_of_parts(fused_kernels(config))[tensor.part].entries


def stored_shape(tensor: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a tensor in the files.

    Args:
      tensor: a tensor of a family.
      shape: the shape of its part of our leaf, for one layer.

    Returns:
      A shape of one or two axes.
    """
    if tensor.kind == "table":
        return shape
    if tensor.kind == "vector":
        return (math.prod(shape),)
    matrix = (math.prod(shape[: tensor.inputs]), math.prod(shape[tensor.inputs :]))
    return matrix if tensor.kind == "conv" else matrix[::-1]
