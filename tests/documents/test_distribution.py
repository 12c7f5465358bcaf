"""The language model as a distrax distribution."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import documents
from shatter.models import tabular

distrax = pytest.importorskip("distrax")

V, L, EOS = 3, 2, 1
PROMPT = (2, 0)
LM = tabular(vocab_size=V, max_length=1 + L, num_prompts=V)


def make_distribution(params) -> documents.DocumentDistribution:
    return documents.DocumentDistribution(
        LM, params, jnp.array(PROMPT), vocab_size=V, max_length=L, eos=EOS
    )


@pytest.fixture
def params(float64: None) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.array(rng.standard_normal(jax.eval_shape(LM.init, jax.random.key(0)).shape))


@jax.jit
def score(params) -> tuple[jax.Array, jax.Array]:
    tokens, mask = documents.enumerate_documents(vocab_size=V, max_length=L, prompt=PROMPT, eos=EOS)
    return tokens, documents.document_log_probs(LM, params, tokens, mask)


def exact(params) -> tuple[np.ndarray, np.ndarray]:
    """Returns every document after the prompt and its log-prob."""
    tokens, log_probs = score(params)
    return np.asarray(tokens), np.asarray(log_probs)


def test_it_is_a_distrax_distribution(params):
    distribution = make_distribution(params)
    assert isinstance(distribution, distrax.Distribution)
    assert distribution.event_shape == (4,)
    assert distribution.batch_shape == ()


def test_without_distrax_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distrax", None)
    monkeypatch.delitem(sys.modules, "shatter.documents.distribution", raising=False)
    message = (
        r"needs distrax, which cannot be imported .*: pip install 'shatter-lm\[distributions\]'"
    )
    with pytest.raises(ImportError, match=message):
        from shatter.documents import DocumentDistribution  # noqa: F401


def test_log_prob_is_that_of_scoring(params):
    tokens, log_probs = exact(params)
    found = jax.jit(lambda p, x: make_distribution(p).log_prob(x))(
        params, jnp.array(tokens[:, None])
    )
    np.testing.assert_allclose(found, log_probs[:, None], atol=1e-14)
    assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-13)


def test_what_follows_eos_does_not_count(params):
    """The responses (1, 0) and (1, 2) are both the document that ends at once."""
    tokens = jnp.array([[2, 0, 1, 1], [2, 0, 1, 0], [2, 0, 1, 2]])
    found = np.asarray(jax.jit(lambda p: make_distribution(p).log_prob(tokens))(params))
    everything, log_probs = exact(params)
    place = everything.tolist().index([2, 0, 1, 1])
    np.testing.assert_allclose(found, log_probs[place], atol=1e-14)


def test_a_document_after_another_prompt_is_impossible(params):
    tokens = jnp.array([[0, 0, 1, 1], [2, 1, 1, 1]])
    found = jax.jit(lambda p: make_distribution(p).log_prob(tokens))(params)
    np.testing.assert_array_equal(np.exp(found), 0.0)


def test_samples_follow_the_law(params):
    """A frequency in 20,000 samples has a standard error below .0036; the bound is five of them."""
    run = jax.jit(lambda p, key: make_distribution(p).sample_and_log_prob(
        seed=key, sample_shape=(200, 100)
    ))  # fmt: skip
    tokens, log_probs = run(params, jax.random.key(0))
    assert tokens.shape == (200, 100, 4)
    assert log_probs.shape == (200, 100)
    everything, law = exact(params)
    found = (np.asarray(tokens)[:, :, None] == everything).all(axis=-1)
    np.testing.assert_array_equal(found.sum(axis=-1), 1)
    np.testing.assert_allclose(log_probs, law[found.argmax(axis=-1)], atol=1e-12)
    assert np.abs(found.mean(axis=(0, 1)) - np.exp(law)).max() < 0.018
    assert np.abs(1 / len(law) - np.exp(law)).max() > 0.1  # a uniform law would be seen


@pytest.mark.parametrize(("sample_shape", "leading"), [((), ()), (3, (3,)), ((2, 3), (2, 3))])
def test_sample_shapes(params, sample_shape, leading: tuple[int, ...]):
    """With the same key, `sample` and `sample_and_log_prob` return the same documents."""
    key = jax.random.key(0)

    def run(params):
        distribution = make_distribution(params)
        alone = distribution.sample(seed=key, sample_shape=sample_shape)
        return alone, distribution.sample_and_log_prob(seed=key, sample_shape=sample_shape)

    alone, (tokens, log_probs) = jax.eval_shape(run, params)
    assert alone.shape == tokens.shape == (*leading, 4)
    assert log_probs.shape == leading


def test_entropy_is_exact(params):
    _, law = exact(params)
    found = jax.jit(lambda p: make_distribution(p).entropy())(params)
    assert found == pytest.approx(-(np.exp(law) * law).sum(), abs=1e-12)


@pytest.mark.slow
def test_distributions_pass_through_jit_and_vmap(params):
    """As arguments of a jitted function, and stacked over members as its result."""
    members = jnp.array([params, 2 * params])
    keys = jax.random.split(jax.random.key(0), 2)
    stacked = jax.vmap(make_distribution)(members)

    def draw(distribution, key):
        return distribution.sample_and_log_prob(seed=key)

    tokens, log_probs = jax.jit(jax.vmap(draw))(stacked, keys)
    run = jax.jit(draw)
    for m in range(2):
        alone = run(make_distribution(members[m]), keys[m])
        np.testing.assert_array_equal(tokens[m], alone[0])
        np.testing.assert_allclose(log_probs[m], alone[1], atol=1e-12)
    assert len(jax.tree.leaves(stacked)) == 2  # params and prompt


def test_a_batch_of_prompts_is_refused(params):
    with pytest.raises(AssertionError):
        documents.DocumentDistribution(LM, params, jnp.array([PROMPT]), vocab_size=V, max_length=L)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'DocumentDistributions'"):
        documents.DocumentDistributions  # noqa: B018
