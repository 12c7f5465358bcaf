"""Attention, plain and fused, without the rest of a block."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.models import TransformerConfig, transformer
from shatter.models.attention import plain_attention
from shatter.models.rope import Rope


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
    found = plain_attention(query, *by_head, jnp.ones((1, 32, 32), bool), 16)
    assert found.dtype == jnp.bfloat16
    assert np.abs(scores).max() > 50
    np.testing.assert_allclose(np.asarray(found, float), mix(scores), atol=0.02)
    rounded = np.asarray(jnp.array(scores, jnp.bfloat16), float)
    assert np.abs(mix(rounded) - mix(scores)).max() > 0.05


def test_the_fused_kernel_needs_half_precision():
    with pytest.raises(ValueError, match="fused_attention needs dtype 'bfloat16', found None"):
        TransformerConfig(5, 6, fused_attention=True)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="the fused kernel needs an NVIDIA GPU")
@pytest.mark.parametrize("window", [None, 24])
def test_the_fused_kernel_gives_the_plain_logits_and_gradients(window: int | None):
    """Of members at once, with padding left, right and everywhere."""
    plain = TransformerConfig(
        *(31, 64, 128, 2),
        num_kv_heads=2,
        rope=Rope(),
        window=window,
        full_layers=() if window is None else (1,),
        dtype="bfloat16",
    )
    fused = dataclasses.replace(plain, fused_attention=True)
    params = jax.vmap(transformer(plain).init)(jax.random.split(jax.random.key(0), 3))
    tokens = jax.random.randint(jax.random.key(1), (4, 64), 0, 31)
    columns = jnp.arange(64)
    valid = jnp.stack([columns >= 0, columns < 50, columns >= 20, columns < 0])

    def run(config: TransformerConfig, lift=jax.vmap):
        def loss(params):
            logits = transformer(config).apply(params, tokens, valid=valid)
            return jnp.sum(jnp.where(valid[..., None], jnp.sin(logits), 0.0)), logits

        (_, logits), gradient = jax.jit(lift(jax.value_and_grad(loss, has_aux=True)))(params)
        return np.asarray(jnp.where(valid[..., None], logits, 0.0)), gradient

    (found, found_gradient), (expected, gradient) = run(fused), run(plain)
    np.testing.assert_allclose(found, expected, atol=0.05)
    for one, other in zip(*map(jax.tree.leaves, (found_gradient, gradient)), strict=True):
        assert np.all(np.isfinite(one))
        assert np.linalg.norm(one - other) <= 0.05 * np.linalg.norm(other) + 1e-3
    in_turn = run(fused, lambda function: lambda params: jax.lax.map(function, params))
    np.testing.assert_allclose(found, in_turn[0], atol=0.02)
