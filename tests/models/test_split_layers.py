"""A transformer cut below a block: the parts are the whole, and members share the lower part."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import models
from shatter.models import Rope, TransformerConfig, split_layers

pytestmark = pytest.mark.slow  # takes long to compile

SIZES = {"vocab_size": 7, "max_length": 6, "width": 8, "num_layers": 3, "num_heads": 2}
CONFIGS = {
    "learned positions, tied": TransformerConfig(**SIZES, tied=True),
    "rotary positions": TransformerConfig(**SIZES, rope=Rope(), norm="rms", gated=True),
    "windows": TransformerConfig(
        **SIZES,
        rope=Rope(),
        norm="rms",
        gated=True,
        post_norms=True,
        norm_offset=True,
        scaled_embedding=True,
        window=2,
        full_layers=(1,),
        local_theta=10.0,
    ),
    "remat": TransformerConfig(**SIZES, remat=True),
}
TOKENS = np.array([[1, 2, 3, 4, 5, 6], [0, 0, 6, 5, 4, 0]])
VALID = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]], bool)


def random_params(config: TransformerConfig) -> Any:
    """Drawn by numpy, because compiling jax's generator takes longer than all else here."""
    shapes = jax.eval_shape(models.transformer(config).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.array(0.4 * rng.standard_normal(leaf.shape)), shapes)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("learned positions, tied", 1),
        ("rotary positions", 2),
        ("windows", 1),
        ("windows", 2),
        ("remat", 1),
    ],
)
def test_the_parts_are_the_whole(name: str, layer: int, float64):
    config = CONFIGS[name]
    lm, parts = models.transformer(config), split_layers(config, layer)

    @jax.jit
    def run(params):
        hidden = parts.lower(params, TOKENS, valid=VALID)
        above = parts.upper_params(params)
        found = [
            parts.upper.apply(above, hidden, valid=VALID),
            parts.upper.features(above, hidden, valid=VALID),
            parts.upper.apply(above, hidden[0]),  # any leading axes, no padding
        ]
        expected = [
            lm.apply(params, TOKENS, valid=VALID),
            lm.features(params, TOKENS, valid=VALID),
            lm.apply(params, TOKENS[0]),
        ]
        return hidden, found, expected

    hidden, found, expected = run(random_params(config))
    assert hidden.shape == (2, 6, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)


def test_gradients_of_the_upper_parameters_are_those_of_the_whole(float64):
    config = CONFIGS["rotary positions"]
    lm, parts = models.transformer(config), split_layers(config, 2)
    weights = np.random.default_rng(1).normal(size=(2, 6, 7))

    @jax.jit
    def run(params):
        whole = jax.grad(lambda p: jnp.sum(weights * lm.apply(p, TOKENS, valid=VALID)))(params)
        hidden = parts.lower(params, TOKENS, valid=VALID)
        upper = jax.grad(lambda p: jnp.sum(weights * parts.upper.apply(p, hidden, valid=VALID)))
        return whole, upper(parts.upper_params(params))

    whole, found = run(random_params(config))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[2:], atol=1e-12),
        found["params"]["blocks"],
        whole["params"]["blocks"],
    )


def test_members_share_the_lower_part():
    # Under vmap, work that is the same for all members is done once.
    config = CONFIGS["rotary positions"]
    parts = split_layers(config, 2)
    params = jax.eval_shape(models.transformer(config).init, jax.random.key(0))
    lora = models.LoraConfig(rank=1)
    own = jax.eval_shape(
        lambda params: jax.vmap(
            lambda key: models.init_lora(key, parts.upper_params(params), lora)
        )(jax.random.split(jax.random.key(1), 4)),
        params,
    )

    def member(params, own):
        hidden = parts.lower(params, TOKENS, valid=VALID)
        above = models.with_lora(parts.upper_params(params), own, lora)
        return parts.upper.apply(above, hidden, valid=VALID)

    # Counted before the program is optimised, because compiling it takes long.
    flops = lambda f, *args: jax.jit(f).lower(*args).cost_analysis()["flops"]
    one = flops(lambda p, o: member(p, jax.tree.map(lambda leaf: leaf[0], o)), params, own)
    four = flops(jax.vmap(member, in_axes=(None, 0)), params, own)
    assert four < 2.5 * one


@pytest.mark.parametrize("layer", [0, 4])
def test_refuses_a_block_that_is_not_there(layer: int):
    with pytest.raises(ValueError, match=r"layer must be in \[1, 3\]"):
        split_layers(CONFIGS["remat"], layer)
