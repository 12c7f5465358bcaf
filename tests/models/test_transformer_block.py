"""Norms and attention, without the rest of a block."""

import jax.numpy as jnp
import numpy as np

from shatter.models.transformer_block import _attention, norm
from shatter.models.transformer_config import TransformerConfig


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


def test_softmax_of_half_precision_is_in_float32():
    """Scores are about 60, where bfloat16 has steps of 1/4."""
    rng = np.random.default_rng(0)
    query, keys, values = (
        jnp.array(scale * rng.standard_normal((1, 32, 2, 16)), jnp.bfloat16)
        for scale in (4.0, 4.0, 1.0)
    )
    exact = [np.asarray(x, float) for x in (query, keys, values)]
    scores = np.einsum("bths,buhs->bhtu", *exact[:2]) / 4

    def mix(scores: np.ndarray) -> np.ndarray:
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return np.einsum("bhtu,buhs->bths", shares, exact[2])

    by_head = (jnp.swapaxes(x, 1, 2) for x in (keys, values))  # the order of axes in the cache
    found = _attention(query, *by_head, jnp.ones((1, 32, 32), bool))
    assert found.dtype == jnp.bfloat16
    assert np.abs(scores).max() > 50
    np.testing.assert_allclose(np.asarray(found, float), mix(scores), atol=0.02)
    rounded = np.asarray(jnp.array(scores, jnp.bfloat16), float)
    assert np.abs(mix(rounded) - mix(scores)).max() > 0.05
