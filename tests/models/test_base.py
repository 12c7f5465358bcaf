"""Language models made from other flax modules by `from_flax`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from shatter import documents
from shatter.models import from_flax

VOCAB_SIZE = 4


class Cumulative(nn.Module):
    """The next token depends on the sum of the embeddings so far."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCAB_SIZE, 3, name="embedding")(tokens)
        return nn.Dense(VOCAB_SIZE, name="head")(jnp.cumsum(x, axis=-2))


class Convolution(nn.Module):
    """The next token depends on the last two."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Conv(8, kernel_size=(2,), padding="CAUSAL")(nn.one_hot(tokens, VOCAB_SIZE))
        return nn.Dense(VOCAB_SIZE)(jnp.tanh(x))


class Counting(nn.Module):
    """Logits that count the valid tokens so far."""

    @nn.compact
    def __call__(self, tokens: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (VOCAB_SIZE,))
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        return jnp.einsum("...t,v->...tv", jnp.cumsum(valid, axis=-1), scale)


class ModernCumulative(nnx.Module):
    def __init__(self, vocab_size: int, *, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(vocab_size, 3, rngs=rngs)
        self.head = nnx.Linear(3, vocab_size, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.head(jnp.cumsum(self.embedding(tokens), axis=-2))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_foreign_module_scores_as_by_hand(kind: str):
    modules = {
        "linen": Cumulative(),
        "nnx": nnx.bridge.ToLinen(ModernCumulative, args=(VOCAB_SIZE,)),
    }
    lm = from_flax(modules[kind])
    params = lm.init(jax.random.key(0))
    tokens = np.array([[0, 3, 1, 2], [2, 2, 0, 1]])
    mask = np.array([[False, True, True, True], [False, False, True, False]])
    found = jax.jit(lambda p: documents.log_prob(lm.apply(p, jnp.array(tokens)), tokens, mask))(
        params
    )
    embedding, kernel, bias = (
        next(np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.shape == shape)
        for shape in [(VOCAB_SIZE, 3), (3, VOCAB_SIZE), (VOCAB_SIZE,)]
    )
    logits = np.cumsum(embedding[tokens], axis=1) @ kernel + bias
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    for row, expected in enumerate([(1, 2, 3), (2,)]):
        by_hand = sum(np.log(probs[row, t - 1, tokens[row, t]]) for t in expected)
        assert found[row] == pytest.approx(by_hand, rel=1e-5)


def test_foreign_module_samples():
    """The log-probs of sampling are those of scoring, and samples differ."""
    lm = from_flax(Convolution())
    params = lm.init(jax.random.key(0))

    @jax.jit
    def run(params, key):
        drawn = documents.sample(
            lm, params, key, jnp.array([1, 2]), num_samples=64, max_length=3, eos=0
        )
        logits = lm.apply(params, drawn.tokens)
        return drawn, documents.log_prob(logits, drawn.tokens, drawn.mask)

    drawn, scored = run(params, jax.random.key(1))
    np.testing.assert_allclose(drawn.log_probs, scored, rtol=1e-5)
    assert len(np.unique(np.asarray(drawn.tokens), axis=0)) > 10


def test_valid_reaches_a_module_that_takes_it():
    lm = from_flax(Counting())
    params = lm.init(jax.random.key(0))
    valid = jnp.array([[False, True, True], [True, True, False]])
    logits = lm.apply(params, jnp.zeros((2, 3), int), valid=valid)
    np.testing.assert_array_equal(logits[..., 0], [[0, 1, 2], [1, 2, 2]])


def test_padding_without_valid_is_refused():
    lm = from_flax(Cumulative())
    params = lm.init(jax.random.key(0))
    with pytest.raises(TypeError, match=r"Cumulative.__call__ takes no `valid`"):
        lm.apply(params, jnp.zeros((1, 3), int), valid=jnp.ones((1, 3), bool))


def test_nnx_module_is_refused_with_the_name_of_its_wrapper():
    with pytest.raises(TypeError, match=r"flax\.nnx\.bridge\.ToLinen"):
        from_flax(ModernCumulative(VOCAB_SIZE, rngs=nnx.Rngs(0)))


def test_module_class_is_refused():
    with pytest.raises(TypeError, match="an instance"):
        from_flax(Cumulative)


def test_float_tokens_are_refused():
    lm = from_flax(Cumulative())
    with pytest.raises(AssertionError):
        lm.apply(lm.init(jax.random.key(0)), jnp.zeros((1, 3)))
