import jax
import numpy as np
import pytest

from experiments.common.didactic import check_documents, fit_law, make_world, open_logits
from shatter import documents, numerics
from shatter.cli.common.binary import UsageError


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tabular", "transformer"])
def test_a_model_is_fitted_to_a_law(kind):
    world = make_world(kind, vocab_size=3, max_length=2)
    keys = jax.random.split(jax.random.key(0))
    target = documents.document_log_probs(world.table, world.table.init(keys[0]), *world.space)

    @jax.jit
    def kl(key):
        start = world.lm.init(key)
        laws = [start, fit_law(world, start, target)]
        laws = [documents.document_log_probs(world.lm, params, *world.space) for params in laws]
        return [numerics.kl_divergence(target, law) for law in laws]

    before, after = kl(keys[1])
    assert after < 0.05 * before
    assert len(world.space[0]) == 7  # of at most two tokens, one of them EOS
    np.testing.assert_allclose(np.exp(target).sum(), 1.0, rtol=1e-5)


def test_a_space_too_large_is_refused():
    check_documents(4, 4, most=256)
    with pytest.raises(UsageError, match=r"must be at most 255, .* found 4 \*\* 4 = 256"):
        check_documents(4, 4, most=255)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vocab_size", "max_length"),
    [(3, 1), *[pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [(4, 3), (2, 4)]]],
)
def test_a_table_has_its_law_without_looking_up_prefixes(vocab_size, max_length, float64):
    world = make_world("tabular", vocab_size=vocab_size, max_length=max_length)
    params = world.table.init(jax.random.key(0))
    looked_up = lambda params: documents.document_log_probs(world.table, params, *world.space)
    np.testing.assert_allclose(world.log_probs(params), looked_up(params), rtol=1e-12)
    jacobian = jax.jacrev(looked_up)(params)
    np.testing.assert_allclose(jax.jacrev(world.log_probs)(params), jacobian, atol=1e-12)
    # Only logits after prefixes that have not ended matter.
    matters = np.flatnonzero(np.any(np.asarray(jacobian) != 0, axis=0).ravel())
    np.testing.assert_array_equal(np.sort(open_logits(vocab_size, max_length)), matters)


@pytest.mark.slow
@pytest.mark.parametrize(("vocab_size", "max_length"), [(3, 2), (4, 3), (2, 4), (3, 1)])
def test_a_transformer_has_its_law_from_the_longest_prefixes(vocab_size, max_length, float64):
    world = make_world("transformer", vocab_size=vocab_size, max_length=max_length)
    params = world.lm.init(jax.random.key(0))
    every = lambda params: documents.document_log_probs(world.lm, params, *world.space)
    np.testing.assert_allclose(world.log_probs(params), every(params), rtol=1e-10)
    last = lambda law: jax.grad(lambda params: law(params)[-2])(params)
    grads = last(every), last(world.log_probs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), *grads)
