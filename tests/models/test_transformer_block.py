"""Norms, without the rest of a block."""

import jax.numpy as jnp
import numpy as np
import pytest

from shatter.models.transformer_block import norm
from shatter.models.transformer_config import TransformerConfig


@pytest.mark.slow
def test_the_offset_of_a_norm_is_added_in_float32():
    """In bfloat16, 1 + 0.003 is 1."""
    rng = np.random.default_rng(0)
    config = TransformerConfig(5, 6, norm="rms", norm_offset=True, norm_epsilon=0.01)
    x = jnp.array(rng.standard_normal((50, 16)), jnp.bfloat16)
    scale = jnp.full(16, 0.003, jnp.bfloat16)
    found = norm(config, "any").apply({"params": {"scale": scale}}, x)
    assert found.dtype == jnp.bfloat16
    exact = np.asarray(x, float)
    exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 0.01)
    scaled = exact * (1 + float(scale[0]))
    off = np.abs(np.asarray(found, float) - scaled) / np.abs(scaled)
    assert off.max() < 2**-8  # half a step of bfloat16
    assert np.any(found != jnp.array(exact, jnp.bfloat16))
