"""Tiny transformers that several tests share."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shatter.models import Rope, TransformerConfig, transformer


def llama(**fields: Any) -> TransformerConfig:
    """Returns a config with the norms, the gates and the missing biases of the Llama family."""
    kinds = {"norm": "rms", "activation": "silu", "gated": True, "rope": Rope()}
    biases = ("qkv_bias", "attention_out_bias", "mlp_bias", "head_bias")
    return TransformerConfig(**(kinds | dict.fromkeys(biases, False) | fields))


CONFIG = TransformerConfig(
    vocab_size=5, max_length=6, width=8, num_layers=2, num_heads=2, mlp_width=24
)
LLAMA = llama(
    vocab_size=5,
    max_length=6,
    width=8,
    num_heads=4,
    num_kv_heads=2,
    head_size=6,
    mlp_width=10,
    # Of its three frequencies one is high, one between and one low.
    rope=Rope(4.9, "llama3", 8.0, 1.0, 2.0, 16),
)
QWEN3 = dataclasses.replace(
    LLAMA,
    num_kv_heads=1,
    rope=Rope(100.0, "linear", 3.0),
    qkv_bias=True,
    qk_norm=True,
    tied=True,
    norm_epsilon=0.1,
)
GEMMA3 = dataclasses.replace(
    QWEN3,
    activation="gelu",
    post_norms=True,
    norm_offset=True,
    scaled_embedding=True,
    attention_size=3,
    window=2,
    full_layers=(1,),
    local_theta=7.0,
)
CONFIGS = {
    "didactic": CONFIG,
    "gpt2": dataclasses.replace(CONFIG, activation="gelu_exact", tied=True, norm_epsilon=0.1),
    "llama": LLAMA,
    "qwen3": QWEN3,
    "gemma3": GEMMA3,
}
LMS = {name: transformer(config) for name, config in CONFIGS.items()}
LM = LMS["didactic"]
DOCUMENTS = np.array([[0, 3, 1, 4, 2, 2], [4, 4, 0, 2, 1, 3], [2, 0, 1, 1, 3, 0]])
# Compilation takes most of the time, so most tests share a program of three rows, eight columns.
jitted = {name: jax.jit(lm.apply) for name, lm in LMS.items()}
jitted_apply = jitted["didactic"]


@functools.cache
def shapes_of(config: TransformerConfig):
    return jax.eval_shape(transformer(config).init, jax.random.key(0))


def random_params(config: TransformerConfig, seed: int = 0):
    """Returns parameters without zeros and ones, so that biases and norms matter."""
    shapes = shapes_of(config)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.array(0.5 * rng.standard_normal(leaf.shape)), shapes)


def pad(columns: list[int], fill: int = 0) -> tuple[jax.Array, jax.Array]:
    """Returns DOCUMENTS in eight columns, two of which are padding."""
    valid = np.isin(np.arange(8), columns, invert=True)
    tokens = np.full((3, 8), fill)
    tokens[:, valid] = DOCUMENTS
    return jnp.array(tokens), jnp.broadcast_to(valid, tokens.shape)


def apply(params, documents: np.ndarray, name: str = "didactic") -> np.ndarray:
    """Returns the logits `[3, 6, V]` of three documents of six tokens."""
    tokens = jnp.pad(jnp.array(documents), ((0, 0), (0, 2)))
    valid = jnp.broadcast_to(jnp.arange(8) < 6, (3, 8))
    return np.asarray(jitted[name](params, tokens, valid=valid))[:, :6]
