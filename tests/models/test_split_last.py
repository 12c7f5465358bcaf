"""The cut below the last block's mlp_out: adapters there share the product with the vocabulary."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import documents, models
from shatter.models import LoraConfig, Rope, TransformerConfig, merge_lora, split_layers, with_lora

SIZES = {"vocab_size": 7, "max_length": 6, "width": 8, "num_heads": 2}
CONFIGS = {
    "GPT-2's": TransformerConfig(**SIZES, num_layers=2, tied=True),
    "Llama's": TransformerConfig(
        **SIZES, num_layers=2, rope=Rope(), norm="rms", gated=True, remat=True
    ),
    "one block, a head with a bias": TransformerConfig(**SIZES, num_layers=1, tied=False),
}
LORA = LoraConfig(rank=2, alpha=3.0, targets=("mlp_out",))
TOKENS = np.array([[1, 2, 3, 4, 5, 6], [0, 0, 6, 5, 4, 0]])
VALID = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]], bool)


def random_params(config: TransformerConfig):
    """Weights of which none is 0 or 1, biases and scales of norms included."""
    params = models.transformer(config).init(jax.random.key(0))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, noisy)


def random_adapters(params, num: int | None = None):
    def one(key):
        start = models.init_lora(key, params, LORA)
        return jax.tree.map(lambda x: x + 0.5 * jax.random.normal(key, x.shape), start)

    key = jax.random.key(2)
    return one(key) if num is None else jax.vmap(one)(jax.random.split(key, num))


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_whole_model_with_and_without_adapters(name: str, float64):
    config = CONFIGS[name]
    lm, parts = models.transformer(config), split_layers(config, config.num_layers)

    @jax.jit
    def run():
        params = random_params(config)
        above = parts.upper_params(params)
        own = random_adapters(above)
        hidden = parts.lower(params, TOKENS, valid=VALID)
        spread = lambda x: jnp.zeros((config.num_layers, *x.shape[1:])).at[-1].set(x[0])
        ours, whole = with_lora(above, own, LORA), jax.tree.map(spread, own)
        whole = merge_lora(params, whole, LORA)
        found = [
            parts.upper.apply(ours, hidden, valid=VALID),
            parts.upper.features(ours, hidden, valid=VALID),
            parts.upper.apply(above, hidden[0]),  # any leading axes, and the base itself
        ]
        expected = [
            lm.apply(whole, TOKENS, valid=VALID),
            lm.features(whole, TOKENS, valid=VALID),
            lm.apply(params, TOKENS[0]),
        ]
        return hidden, found, expected

    hidden, found, expected = run()
    assert hidden.shape == (2, 6, 8 + config.hidden_width)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), found, expected)
    assert np.abs(found[0][0] - found[2]).max() > 0.01


@pytest.mark.parametrize("name", ["GPT-2's", "Llama's"])
def test_gradients_of_adapters_are_those_above_a_cut_below_the_block(name: str, float64):
    config = CONFIGS[name]
    weights = np.random.default_rng(0).normal(size=(2, 6, 7))

    @partial(jax.jit, static_argnums=1)
    def gradient(params, layer):
        parts = split_layers(config, layer)
        above, hidden = parts.upper_params(params), parts.lower(params, TOKENS, valid=VALID)

        def total(own):
            logits = parts.upper.apply(with_lora(above, own, LORA), hidden, valid=VALID)
            return jnp.sum(weights * jax.nn.log_softmax(logits))

        return jax.grad(total)(random_adapters(above))

    params = jax.jit(lambda: random_params(config))()
    found = [gradient(params, layer) for layer in (config.num_layers - 1, config.num_layers)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), *found)
    assert min(float(jnp.abs(x).max()) for x in jax.tree.leaves(found[0])) > 1e-3


def test_half_precision_keeps_the_logits_in_float32():
    config = TransformerConfig(**SIZES, num_layers=2, dtype="bfloat16", tied=True)
    lm, parts = models.transformer(config), split_layers(config, 2)

    @jax.jit
    def run():
        params = lm.init(jax.random.key(0))
        hidden = parts.lower(params, TOKENS, valid=VALID)
        found = parts.upper.apply(parts.upper_params(params), hidden, valid=VALID)
        in_full = models.transformer(dataclasses.replace(config, dtype=None))
        ways = (found, lm.apply(params, TOKENS, valid=VALID))
        return ways, in_full.apply(params, TOKENS, valid=VALID)

    ways, expected = run()
    assert all(logits.dtype == jnp.float32 for logits in ways)
    ours, plain = (np.abs(logits - expected).max() for logits in ways)
    assert ours < 2 * plain
    assert plain < 0.1


def test_members_share_the_product_with_the_vocabulary():
    # At a vocabulary that is most of the work, eight members cost little more than one.
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

        own = jax.eval_shape(lambda p: random_adapters(parts.upper_params(p), num), params)
        compiled = jax.jit(step).lower(params, own).compile()
        return compiled.cost_analysis()["flops"]

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
