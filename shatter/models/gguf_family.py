"""The names of tensors and settings in GGUF files beside those of Hugging Face folders."""

import re
from collections.abc import Mapping

from shatter.models.families import FAMILIES, Family
from shatter.models.fields import SIZE
from shatter.models.transformer_config import FIELDS

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
"""The architectures that are read, and the family of folders that each is."""

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""The names of tensors in folders, without block and ending, and in GGUF files."""
_GEMMA3_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}

FREQUENCIES = "rope_freqs.weight"
"""The tensor by which Llama 3 divides its rotary frequencies; it belongs to the config."""

KEYS = {
    "max_position_embeddings": ("context_length", SIZE),
    "hidden_size": ("embedding_length", SIZE),
    "num_hidden_layers": ("block_count", SIZE),
    "intermediate_size": ("feed_forward_length", SIZE),
    "num_attention_heads": ("attention.head_count", SIZE),
    "rms_norm_eps": ("attention.layer_norm_rms_epsilon", FIELDS["norm_epsilon"]),
}
"""Name in config.json -> key after the name of the architecture, and its type; all are required."""


def gguf_family(architecture: str) -> Family:
    """Returns a family whose tensors and sizes have the names of GGUF files.

    Args:
      architecture: a key of `ARCHITECTURES`.
    """
    family = FAMILIES[ARCHITECTURES[architecture]]
    names = _NAMES | (_GEMMA3_NAMES if architecture == "gemma3" else {})
    tensors = tuple(
        tensor._replace(name=_gguf_name(tensor.name, names)) for tensor in family.tensors
    )
    fields = {
        ours: (f"{architecture}.{KEYS[theirs][0]}" if theirs in KEYS else theirs,)
        for ours, (theirs, *_) in family.fields.items()
    }
    passed_over = (FREQUENCIES,)
    return family._replace(prefix="", tensors=tensors, passed_over=passed_over, fields=fields)


def _gguf_name(name: str, names: Mapping[str, str]) -> str:
    match = re.fullmatch(r"(?:model\.layers\.(\{layer\})\.)?(.+)\.(weight|bias)", name)
    assert match is not None
    block = "" if match[1] is None else f"blk.{match[1]}."
    return f"{block}{names[match[2]]}.{match[3]}"
