"""Too long documents, and tokens for which the cache is full, are refused and never cut off."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.models import LoraConfig, TransformerConfig, init_lora, split_layers, transformer
from shatter.models import with_lora as beside

CONFIG = TransformerConfig(vocab_size=5, max_length=4, width=4, num_layers=2, num_heads=2)
SHALLOW = dataclasses.replace(CONFIG, num_layers=1)
LM = transformer(CONFIG)
SHAPES = jax.eval_shape(LM.init, jax.random.key(0))
PARAMS = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), SHAPES)


def tokens(length: int, batch: int = 2) -> np.ndarray:
    return np.ones((batch, length), np.int32)


def with_adapters(params, tokens, **keywords):
    lora = LoraConfig(rank=1)
    own = init_lora(jax.random.key(0), params, lora)
    return LM.apply(beside(params, own, lora), tokens, **keywords)


@pytest.mark.parametrize(
    "function",
    [
        LM.apply,
        LM.features,
        with_adapters,
        split_layers(CONFIG, 1).lower,
        split_layers(CONFIG, 2).lower,
        lambda params, tokens: LM.decode(params, LM.init_cache(2, 9), tokens),
    ],
    ids=["apply", "features", "adapters", "lower", "lowest", "decode"],
)
def test_a_shape_that_is_too_long(function):
    """It is refused while tracing, so that no compiled program can run past the end."""
    jax.eval_shape(function, PARAMS, tokens(4))
    with pytest.raises(ValueError, match="found 5 tokens, over max_length 4"):
        jax.eval_shape(function, PARAMS, tokens(5))


def test_more_tokens_than_slots():
    decode = lambda valid: LM.decode(PARAMS, LM.init_cache(2, 3), tokens(4), valid=valid)
    for valid in (None, np.zeros((2, 4), bool)):
        with pytest.raises(ValueError, match="found 4 tokens for a cache of 3 slots"):
            jax.eval_shape(decode, valid)


@pytest.mark.slow
def test_known_values_that_are_too_long():
    """Outside of jit, padding may exceed the number of positions, and text may not."""
    valid = np.ones((2, 6), bool)
    valid[0, :2] = valid[1, 4:] = False
    shallow = split_layers(CONFIG, 1).upper_params(PARAMS)
    assert transformer(SHALLOW).apply(shallow, tokens(6), valid=valid).shape == (2, 6, 5)
    valid[1, 4] = True
    message = "a document has 5 tokens, over max_length 4"
    for function in (LM.apply, LM.features, split_layers(CONFIG, 1).lower):
        with pytest.raises(ValueError, match=message):
            function(PARAMS, tokens(6), valid=valid)
    with pytest.raises(ValueError, match=r"expected 0 <= token < 5, found between 7 and 7"):
        LM.apply(PARAMS, 7 * tokens(3))


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (5, "the cache of 5 slots is full: found 5 in use and 1 more"),
        (9, "a document has 5 tokens, over max_length 4"),
    ],
)
def test_a_step_beyond_the_cache_or_the_positions(slots: int, message: str):
    """Five slots are in use, one of them by padding; there may be more slots than positions."""
    in_use = jnp.broadcast_to((jnp.arange(slots) > 0) & (jnp.arange(slots) < 5), (2, slots))
    cache = LM.init_cache(2, slots)._replace(valid=in_use, length=jnp.array(5))
    with pytest.raises(ValueError, match=message):
        LM.decode(PARAMS, cache, tokens(1))
