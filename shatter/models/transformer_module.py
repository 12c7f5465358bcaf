"""The flax module of the transformer, and the cache of keys and values that it reads and writes."""

from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from shatter.models.partitions import spread_rows
from shatter.models.rope import Rope, cos_sin
from shatter.models.transformer_block import Block, norm
from shatter.models.transformer_config import TransformerConfig
from shatter.types import Array


class Cache(NamedTuple):
    """Keys and values of the tokens so far.

    Attributes:
      keys: `[layers, B, heads of keys, slots, head size]`, the order in which attention reads them,
        so that no step of decoding transposes the cache. None in `apply`, which keeps nothing.
      values: like the keys.
      valid: bool `[B, slots]`, true on slots with a token that is not padding.
      length: int `[]`, the number of slots in use.
    """

    keys: Array | None
    values: Array | None
    valid: Array
    length: Array


class Transformer(nn.Module):
    """Embeddings, blocks, the final norm and the head.

    Attributes:
      config: the configuration of the transformer.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, inputs: Array, valid: Array, cache: Cache
    ) -> tuple[Array, Array, Array, Cache]:
        """Computes the logits of tokens that follow those in the cache.

        Args:
          inputs: int `[B, t]`, tokens, or float `[B, t, D]`, what enters the first block.
          valid: bool `[B, t]`, false on padding.
          cache: the tokens before.

        Returns:
          The logits `[B, t, V]`, the features `[B, t, D]`, the output of the last block
          `[B, t, D]` and the cache with the new tokens.
        """
        config = self.config
        positions, attend, in_use = _positions_and_attention(config, valid, cache)
        embed = nn.Embed(config.vocab_size, config.width, config.dtype, name="token_embedding")
        is_text = inputs.ndim == 2
        x, turn = self._embed(embed, _fill_padding(inputs, valid)) if is_text else inputs, None
        if config.rope is not None:
            turn = _turns(config, positions)
        elif is_text:
            position_embedding = nn.Embed(
                config.max_length, config.width, config.dtype, name="position_embedding"
            )
            x = x + position_embedding(positions)
        blocks = nn.scan(
            _block(config),
            variable_axes={"params": 0, "lora": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.num_layers,
            unroll=config.num_layers if config.num_layers <= config.unrolled_layers else 1,
        )(config, name="blocks")
        rows = spread_rows(x).reshape(-1, config.width)
        carry = (rows, cache.keys, cache.values)
        layers = jnp.arange(config.num_layers)
        (rows, keys, values), _ = blocks(carry, layers, cache.length, attend, turn)
        features = norm(config, "final_norm")(rows)
        logits = self._logits(embed, features)
        logits, features, rows = (y.reshape(*valid.shape, -1) for y in (logits, features, rows))
        return logits, features, rows, Cache(keys, values, in_use, cache.length + valid.shape[1])

    def _embed(self, embed: nn.Embed, tokens: Array) -> Array:
        """Returns the embeddings of tokens; of a narrow table only the rows read are widened."""
        table, config = embed.embedding, self.config
        if config.dtype is None or table.dtype.itemsize >= jnp.dtype(config.dtype).itemsize:
            x = cast(Array, embed(tokens))
        else:
            x = table[tokens].astype(config.dtype)
        if embed.has_variable("params", "embedding_scale"):  # see narrow.py
            scale: Array = embed.get_variable("params", "embedding_scale")
            x = x * scale[tokens][..., None].astype(config.dtype)
        return x * jnp.asarray(config.width**0.5, x.dtype) if config.scaled_embedding else x

    def _logits(self, embed: nn.Embed, features: Array) -> Array:
        """Returns the logits of rows of features, in float32 or wider where a dtype is set."""
        config = self.config
        dtype = None if config.dtype is None else jnp.promote_types(config.dtype, jnp.float32)
        product = partial(jax.lax.dot_general, preferred_element_type=dtype)
        if config.tied:
            table = embed.embedding.astype(features.dtype)
            logits = product(features, table, (((features.ndim - 1,), (1,)), ((), ())))
            return _scaled(logits, embed, "embedding_scale")
        head = nn.Dense(
            config.vocab_size,
            use_bias=config.head_bias,
            dtype=config.dtype,
            dot_general=lambda x, y, numbers, precision=None: product(x, y, numbers),
            name="head",
        )
        return _scaled(head(features), head, "kernel_scale")


def _scaled(logits: Array, module: nn.Module, name: str) -> Array:
    """Multiplies logits `[..., V]` by the scales of a vocabulary of integers, if there are any."""
    if not module.has_variable("params", name):
        return logits
    scale: Array = module.get_variable("params", name)
    return logits * jnp.expand_dims(scale, tuple(range(logits.ndim - 1)))


def _block(config: TransformerConfig) -> Any:
    """Returns the class of the blocks, which says what the backward pass computes again.

    Where blocks are scanned, every residual is written to memory in the forward pass and read in
    the backward pass. Therefore only products are kept, and norms, activations and the softmax are
    computed again: it takes half the memory and no more time. An unrolled program is left to the
    compiler.
    """
    if config.remat:
        return nn.remat(Block, prevent_cse=False)
    if config.num_layers > config.unrolled_layers:
        return nn.remat(Block, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable)
    return Block


def _positions_and_attention(
    config: TransformerConfig, valid: Array, cache: Cache
) -> tuple[Array, Array, Array]:
    """Returns what follows from which tokens are padding.

    Returns:
      The positions `[B, t]` of the new tokens; bool `[B, t, slots]`, which slots each of them
      attends to, or with a window `[2, B, t, slots]`, first of the blocks with the window; bool
      `[B, slots]`, the valid slots with the new tokens among them.
    """
    so_far = jnp.sum(cache.valid, axis=1, keepdims=True) + jnp.cumsum(valid, axis=1)
    positions = jnp.clip(so_far - 1, 0, config.max_length - 1)
    slots = jnp.arange(cache.valid.shape[1])
    in_use = jax.lax.dynamic_update_slice_in_dim(cache.valid, valid, cache.length, axis=1)
    own_slot = cache.length + jnp.arange(valid.shape[1])
    causal = slots[None, :] <= own_slot[:, None]
    # Padding before all text attends to itself, because a softmax over nothing would be NaN.
    itself = slots[None, :] == own_slot[:, None]
    attend = causal[None] & (in_use[:, None, :] | (itself[None] & (so_far == 0)[..., None]))
    if config.window is not None:
        # The window counts valid tokens, so that padding moves nothing, wherever it is.
        distance = so_far[:, :, None] - jnp.cumsum(in_use, axis=1)[:, None, :]
        attend = jnp.stack([attend & (distance < config.window), attend])
    return positions, attend, in_use


def _turns(config: TransformerConfig, positions: Array) -> tuple[Array, Array]:
    """Returns what `cos_sin` does, or with a window the same stacked as Block reads it."""
    assert config.rope is not None
    turn = cos_sin(config.rope, positions, config.size_of_head)
    if config.window is None:
        return turn
    rope = config.rope if config.local_theta is None else Rope(config.local_theta)
    local = cos_sin(rope, positions, config.size_of_head)
    return jnp.stack([local[0], turn[0]]), jnp.stack([local[1], turn[1]])


def _fill_padding(tokens: Array, valid: Array) -> Array:
    """Replaces padding by the last valid token before it, or 0, so that its ids are never read."""
    columns = jnp.where(valid, jnp.arange(tokens.shape[1]), -1)
    latest = jax.lax.cummax(columns, axis=1)
    filled = jnp.take_along_axis(tokens, jnp.maximum(latest, 0), axis=1)
    return jnp.where(latest < 0, 0, filled)
