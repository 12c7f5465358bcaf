"""Rejection sampling: the law of accepted samples, the rate, and giving up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter import documents
from shatter.inference import rejection_sample
from shatter.models import tabular

N = 20_000
V, L, EOS, BETA = 3, 3, 0, 0.8
LM = tabular(vocab_size=V, max_length=L)
PROMPT = jnp.array([0])


def reward(tokens):
    """Returns rewards of at most 1; documents with a 2 in the last place are forbidden."""
    waves = jnp.sin(tokens[..., 1:] @ jnp.array([3.0, 1.0, 2.0], tokens.dtype).astype(float))
    return jnp.where(tokens[..., -1] == 2, -jnp.inf, waves)


@pytest.mark.slow
def test_posterior_over_documents(float64: None):
    """20,000 draws against p0 exp(r / beta) / Z by enumeration: every document within 4 standard
    errors, and so the share of tries that are accepted, Z exp(-bound).
    """
    params = LM.init(jax.random.key(3))
    tokens, mask = documents.enumerate_documents(vocab_size=V, max_length=L, eos=EOS)

    @jax.jit
    def run(keys, params):
        def propose(key):
            drawn = documents.sample(LM, params, key, PROMPT, num_samples=1, max_length=L, eos=EOS)
            return {"tokens": drawn.tokens[0]}

        one = lambda key: rejection_sample(
            key,
            propose,
            lambda x: reward(x["tokens"]) / BETA,
            log_bound=1 / BETA,
            max_tries=1_000,
        )
        exact = documents.document_log_probs(LM, params, tokens, mask) + reward(tokens) / BETA
        return jax.vmap(one)(keys), exact

    found, log_joint = run(jax.random.split(jax.random.key(0), N), params)
    assert np.asarray(found.accepted).all()
    joint = np.exp(log_joint)
    z, p = joint.sum(), joint / joint.sum()
    counts = (np.asarray(found.sample["tokens"])[:, None] == np.asarray(tokens)).all(-1).sum(0)
    assert counts.sum() == N
    assert (np.abs(counts - N * p) <= 4 * np.sqrt(N * p * (1 - p))).all()
    assert (counts[np.asarray(tokens)[:, -1] == 2] == 0).all()

    rate = z * np.exp(-1 / BETA)
    tries = np.asarray(found.num_tries)
    assert 0.1 < rate < 0.9
    assert abs(tries.mean() - 1 / rate) < 4 * np.sqrt((1 - rate) / rate**2 / N)
    assert abs((tries == 1).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / N)


P = np.array([0.5, 0.2, 0.0, 0.3])


def bounded(key, log_bound):
    """Samples from the uniform law on four points with at most three tries."""
    propose = lambda key: jax.random.randint(key, (), 0, 4)
    log_weight = lambda x: jnp.log(4 * jnp.asarray(P, jnp.float32))[x]
    return rejection_sample(key, propose, log_weight, log_bound=log_bound, max_tries=3)


many = jax.jit(jax.vmap(bounded, in_axes=(0, None)))


def test_giving_up():
    """A sample is accepted within three tries with probability 1 - (1 - a)^3."""
    found = jax.tree.map(np.asarray, many(jax.random.split(jax.random.key(1), N), np.log(8.0)))
    accepted, tries = found.accepted, found.num_tries
    share = 1 - (1 - 1 / 8) ** 3
    assert abs(accepted.mean() - share) < 4 * np.sqrt(share * (1 - share) / N)
    assert (tries[~accepted] == 3).all() and set(tries[accepted]) == {1, 2, 3}
    assert (found.sample[accepted] != 2).all()
    # A last proposal, drawn from the uniform law and rejected.
    rejected = np.bincount(found.sample[~accepted], minlength=4)
    law = (1 - 4 * P / 8) / 4 / (1 - 1 / 8)
    total = rejected.sum()
    assert (np.abs(rejected - total * law) <= 4 * np.sqrt(total * law * (1 - law))).all()


@pytest.mark.slow
def test_a_bound_too_low():
    """The samples have the law min(P, g bound), normalised; under checkify it is an error."""
    keys = jax.random.split(jax.random.key(2), N)
    found = jax.tree.map(np.asarray, many(keys, 0.0))
    law = np.minimum(P, 0.25) / np.minimum(P, 0.25).sum()
    counts = np.bincount(found.sample[found.accepted], minlength=4)
    total = counts.sum()
    assert (np.abs(counts - total * law) <= 4 * np.sqrt(total * law * (1 - law))).all()

    @jax.jit
    @checkify.checkify
    def checked(keys, log_bound):
        return jax.lax.map(lambda key: bounded(key, log_bound), keys)

    checked(keys, np.log(2.0))[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match="nats above log_bound"):
        checked(keys, 0.0)[0].throw()


def test_wrong_arguments_raise():
    key, propose = jax.random.key(0), lambda key: jax.random.uniform(key, (2,))
    with pytest.raises(ValueError, match="max_tries >= 1, found 0"):
        rejection_sample(key, propose, jnp.sum, log_bound=2.0, max_tries=0)
    with pytest.raises(AssertionError):
        rejection_sample(key, propose, lambda x: x, log_bound=1.0, max_tries=2)
