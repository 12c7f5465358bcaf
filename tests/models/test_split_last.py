"""The cut below the last block's mlp_out: adapters there share the product with the vocabulary."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import documents, models
from shatter.models import LoraConfig, Rope, TransformerConfig, merge_lora, split_layers, with_lora

pytestmark = pytest.mark.slow  # takes long to compile

SIZES = {"vocab_size": 7, "max_length": 6, "width": 8, "num_heads": 2}
CONFIGS = {
    "GPT-2's": TransformerConfig(**SIZES, num_layers=2, tied=True),
    "Llama's": TransformerConfig(
        **SIZES, num_layers=2, rope=Rope(), norm="rms", gated=True, remat=True
    ),
    "Gemma's": TransformerConfig(
        **SIZES,
        num_layers=2,
        norm="rms",
        activation="gelu",
        gated=True,
        rope=Rope(1000.0),
        mlp_bias=False,
        qk_norm=True,
        post_norms=True,
        norm_offset=True,
        scaled_embedding=True,
        attention_size=5,
        window=2,
        full_layers=(1,),
        local_theta=10.0,
        tied=True,
    ),
    "layer norms behind the parts too": TransformerConfig(**SIZES, num_layers=1, post_norms=True),
    "one block, a head with a bias": TransformerConfig(**SIZES, num_layers=1, tied=False),
}
LORA = LoraConfig(rank=2, alpha=3.0, targets=("mlp_out",))
TOKENS = np.array([[1, 2, 3, 4, 5, 6], [0, 0, 6, 5, 4, 0]])
VALID = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]], bool)


def random_like(tree: Any, seed: int, scale: float) -> Any:
    """Drawn by numpy, because compiling jax's generator takes longer than all else here."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.array(scale * rng.standard_normal(leaf.shape)), tree)


def random_params(config: TransformerConfig) -> Any:
    """Returns weights of which none is 0 or 1, including biases and scales of norms."""
    shapes = jax.eval_shape(models.transformer(config).init, jax.random.key(0))
    scales = lambda path, leaf: leaf + 1.0 if path[-1].key == "scale" else leaf
    return jax.tree_util.tree_map_with_path(scales, random_like(shapes, 0, 0.4))


def random_adapters(params: Any) -> Any:
    draw = partial(models.init_lora, lora=LORA)
    return random_like(jax.eval_shape(draw, jax.random.key(2), params), 2, 0.5)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_whole_model_with_and_without_adapters(name: str, float64):
    config = CONFIGS[name]
    lm, parts = models.transformer(config), split_layers(config, config.num_layers)

    @jax.jit
    def whole(params, own):
        params = merge_lora(params, own, LORA)
        return lm.apply(params, TOKENS, valid=VALID), lm.features(params, TOKENS, valid=VALID)

    @jax.jit
    def in_parts(params, own):
        above = parts.upper_params(params)
        member = with_lora(above, own, LORA)
        hidden = parts.lower(params, TOKENS, valid=VALID)
        logits = parts.upper.apply(member, hidden, valid=VALID)
        features = parts.upper.features(member, hidden, valid=VALID)
        base = parts.upper.apply(above, hidden[0])  # any leading axes, and the base itself
        return hidden, logits, features, base

    params = random_params(config)
    own = random_adapters(jax.eval_shape(parts.upper_params, params))
    spread = lambda x: jnp.zeros((config.num_layers, *x.shape[1:])).at[-1].set(x[0])
    hidden, logits, features, base = in_parts(params, own)
    expected = whole(params, jax.tree.map(spread, own))
    expected_of_base, _ = whole(params, jax.tree.map(lambda x: jnp.zeros_like(spread(x)), own))
    assert hidden.shape == (2, 6, 8 + config.hidden_width)
    np.testing.assert_allclose(logits, expected[0], atol=1e-11)
    np.testing.assert_allclose(features, expected[1], atol=1e-11)
    np.testing.assert_allclose(base, expected_of_base[0], atol=1e-11)
    assert np.abs(logits[0] - base).max() > 0.01


@pytest.mark.parametrize("name", ["GPT-2's", "Llama's", "Gemma's"])
def test_gradients_of_adapters_are_those_above_a_cut_below_the_block(name: str, float64):
    config = CONFIGS[name]
    weights = np.random.default_rng(0).normal(size=(2, 6, 7))

    @partial(jax.jit, static_argnums=2)
    def gradient(params, own, layer):
        parts = split_layers(config, layer)
        above, hidden = parts.upper_params(params), parts.lower(params, TOKENS, valid=VALID)

        def total(own):
            logits = parts.upper.apply(with_lora(above, own, LORA), hidden, valid=VALID)
            return jnp.sum(weights * jax.nn.log_softmax(logits))

        return jax.grad(total)(own)

    params = random_params(config)
    own = random_adapters(jax.eval_shape(split_layers(config, 2).upper_params, params))
    found = [gradient(params, own, layer) for layer in (config.num_layers - 1, config.num_layers)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), *found)
    assert min(float(np.abs(x).max()) for x in jax.tree.leaves(found[0])) > 1e-3


def test_half_precision_keeps_the_logits_in_float32():
    config = TransformerConfig(**SIZES, num_layers=2, dtype="bfloat16", tied=True)
    lm, parts = models.transformer(config), split_layers(config, 2)
    params = random_params(config)

    @jax.jit
    def run(params):
        hidden = parts.lower(params, TOKENS, valid=VALID)
        found = parts.upper.apply(parts.upper_params(params), hidden, valid=VALID)
        in_full = models.transformer(dataclasses.replace(config, dtype=None))
        ways = (found, lm.apply(params, TOKENS, valid=VALID))
        return ways, in_full.apply(params, TOKENS, valid=VALID)

    ways, expected = run(params)
    assert all(logits.dtype == jnp.float32 for logits in ways)
    ours, plain = (np.abs(logits - expected).max() for logits in ways)
    assert ours < 2 * plain
    assert plain < 0.1


def test_members_share_the_product_with_the_vocabulary():
    # With a large vocabulary, which is most of the work, eight members cost little more than one.
    config = TransformerConfig(
        vocab_size=4000, max_length=32, width=64, num_layers=2, num_heads=2, tied=True
    )
    params = jax.eval_shape(models.transformer(config).init, jax.random.key(0))
    tokens = jnp.ones((4, 32), int)

    def flops(layer: int, num: int) -> float:
        parts = split_layers(config, layer)

        def step(params, own):
            hidden = parts.lower(params, tokens)
            above = parts.upper_params(params)
            loss = lambda own: jnp.sum(
                documents.log_prob(
                    parts.upper.apply(with_lora(above, own, LORA), hidden), tokens, tokens == 1
                )
            )
            return jax.vmap(jax.grad(loss))(own)

        draw = jax.vmap(partial(models.init_lora, lora=LORA), in_axes=(0, None))
        above = jax.eval_shape(parts.upper_params, params)
        own = jax.eval_shape(draw, jax.random.split(jax.random.key(2), num), above)
        # Counted before the program is optimised, because compiling it takes long.
        return jax.jit(step).lower(params, own).cost_analysis()["flops"]

    shared, whole = ([flops(layer, num) for num in (1, 8)] for layer in (2, 1))
    assert whole[1] > 5 * whole[0]
    assert shared[1] < 0.4 * whole[1]
    assert shared[1] < 2.5 * whole[0]


def test_refuses_adapters_elsewhere():
    config = CONFIGS["GPT-2's"]
    parts = split_layers(config, config.num_layers)
    hidden = jnp.zeros((1, 6, 8 + config.hidden_width))

    def run(targets, cut):
        lora = LoraConfig(rank=1, targets=targets)
        params = random_params(config)
        base = parts.upper_params(params) if cut else params
        member = with_lora(base, models.init_lora(jax.random.key(0), base, lora), lora)
        return member, parts.upper.apply(member, hidden)

    with pytest.raises(ValueError, match="that alone may have adapters, found mlp_out, query"):
        jax.eval_shape(lambda: run(("query", "mlp_out"), True))
    with pytest.raises(ValueError, match="found mlp_out of 2 blocks"):
        jax.eval_shape(lambda: run(("mlp_out",), False))
    member, _ = jax.eval_shape(lambda: run(("mlp_out",), True))
    for wrong in (parts.upper_params, lambda params: parts.lower(params, TOKENS)):
        with pytest.raises(ValueError, match="cut the base"):
            jax.eval_shape(wrong, member)
