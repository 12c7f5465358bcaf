"""Attention within a window: what a token sees, and that the rest of the model works with it."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.models import (
    LoraConfig,
    Rope,
    TransformerConfig,
    init_lora,
    merge_lora,
    select_layers,
    transformer,
    with_lora,
)

CONFIG = TransformerConfig(
    vocab_size=7,
    max_length=9,
    width=8,
    num_layers=2,
    num_heads=2,
    norm="rms",
    gated=True,
    rope=Rope(50.0),
    qk_norm=True,
    post_norms=True,
    norm_offset=True,
    scaled_embedding=True,
    attention_size=3,
    window=3,
    tied=True,
)
DEEP = dataclasses.replace(CONFIG, num_layers=5, full_layers=(1, 4), local_theta=5.0)
TOKENS = np.array([[1, 2, 3, 4, 5, 6, 0, 3, 2], [0, 6, 5, 4, 1, 1, 2, 5, 3]])


def random_like(tree: Any, seed: int, scale: float = 0.4) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.array(scale * rng.standard_normal(leaf.shape)), tree)


def random_params(config: TransformerConfig) -> Any:
    return random_like(jax.eval_shape(transformer(config).init, jax.random.key(0)), 0)


@pytest.mark.slow
@pytest.mark.parametrize(("rope", "longest"), [(CONFIG.rope, 9), (None, 2**31 - 1)])
def test_a_window_as_long_as_the_text_is_none(float64: None, rope: Rope | None, longest: int):
    """A shorter one is not."""
    config = dataclasses.replace(CONFIG, rope=rope)
    params = random_params(config)
    expected, found, shorter = (
        np.asarray(jax.jit(transformer(own).apply)(params, TOKENS))
        for own in (dataclasses.replace(config, window=window) for window in (None, longest, 8))
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(shorter[:, :8], expected[:, :8], atol=1e-12)
    assert np.abs(shorter[:, 8] - expected[:, 8]).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("full_layers", "seen"),
    [pytest.param((), 5, marks=pytest.mark.slow), ((0,), 9)],
    ids=["two windows", "one window"],
)
def test_what_a_token_sees(float64: None, full_layers: tuple[int, ...], seen: int):
    """Two blocks with windows of three tokens pass on what is four tokens back, not five."""
    config = dataclasses.replace(CONFIG, full_layers=full_layers)
    params = random_params(config)
    run = jax.jit(transformer(config).apply)
    before = np.asarray(run(params, TOKENS[:1]))[0]
    for column in range(9):
        changed = TOKENS[:1].copy()
        changed[0, column] = (changed[0, column] + 1) % 7
        moved = np.abs(np.asarray(run(params, changed))[0] - before).max(axis=-1)
        is_seen = (np.arange(9) >= column) & (np.arange(9) < column + seen)
        np.testing.assert_array_equal(moved > 1e-9, is_seen)


@pytest.mark.slow
def test_the_window_counts_tokens_and_not_padding(float64: None):
    """Decoding after prompts that are padded on the right is that of the texts alone."""
    params, lm = random_params(DEEP), transformer(DEEP)
    run = jax.jit(lm.apply)
    texts = [TOKENS[0, :7], TOKENS[1, [0, 1, 5, 6, 7]]]
    tokens, valid = np.full((2, 9), 6), np.zeros((2, 9), bool)
    tokens[0, :7], valid[0, :7] = texts[0], True
    columns = [0, 1, 6, 7, 8]
    tokens[1, columns], valid[1, columns] = texts[1], True
    full = np.asarray(run(params, tokens, valid=valid))
    cache, pieces = lm.init_cache(2, 9), []
    step = jax.jit(lambda cache, x, valid: lm.decode(params, cache, x, valid=valid))
    for start in range(0, 9, 3):
        piece = slice(start, start + 3)
        logits, cache = step(cache, tokens[:, piece], valid[:, piece])
        pieces.append(logits)
    cached = np.concatenate(pieces, axis=1)
    for row, text in enumerate(texts):
        padded = np.concatenate([text, np.zeros(9 - len(text), int)])[None]
        alone = run(params, np.repeat(padded, 2, axis=0), valid=np.arange(9) < [[len(text)]] * 2)
        expected = np.asarray(alone)[0, : len(text)]
        np.testing.assert_allclose(full[row, valid[row]], expected, atol=1e-12)
        np.testing.assert_allclose(cached[row, valid[row]], expected, atol=1e-12)


def test_some_of_the_blocks():
    assert select_layers(DEEP, 0, 5) == DEEP
    lower, upper = select_layers(DEEP, 0, 2), select_layers(DEEP, 2, 5)
    assert (lower.num_layers, lower.full_layers) == (2, (1,))
    assert (upper.num_layers, upper.full_layers) == (3, (2,))
    assert dataclasses.replace(upper, num_layers=5, full_layers=(1, 4)) == DEEP


@pytest.mark.slow
def test_scanned_remade_and_stacked_it_is_the_same_model(float64: None):
    """Gradients of adapters of two members, by vmap and remat, and one after the other."""
    lora = LoraConfig(rank=2, targets=("query", "value", "gate", "mlp_out"))
    params = random_params(DEEP)
    draw = partial(init_lora, params=params, lora=lora)
    shapes = jax.eval_shape(jax.vmap(draw), jax.random.split(jax.random.key(0)))
    own = random_like(shapes, 1)
    weights = np.random.default_rng(2).normal(size=(2, 9, 7))

    def loss(place, config, own):
        logits = transformer(config).apply(place(params, own, lora), TOKENS)
        return jnp.sum(weights * jax.nn.log_softmax(logits))

    one = jax.jit(jax.value_and_grad(partial(loss, merge_lora, DEEP)))
    expected = [one(jax.tree.map(lambda leaf, m=m: leaf[m], own)) for m in range(2)]
    remat = dataclasses.replace(DEEP, remat=True, unrolled_layers=1)
    found = jax.jit(jax.vmap(jax.value_and_grad(partial(loss, with_lora, remat))))(own)
    for m in range(2):
        jax.tree.map(
            lambda a, b, m=m: np.testing.assert_allclose(a[m], b, atol=1e-9), found, expected[m]
        )
    assert np.abs(expected[0][0] - expected[1][0]) > 0.1
