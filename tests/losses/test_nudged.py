import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter import documents, models
from shatter.losses import forward_kl_loss, nudged_reinforce_loss, reinforce_loss

pytestmark = pytest.mark.usefixtures("float64")

VOCAB, LENGTH, EOS = 3, 2, 0
LM = models.tabular(vocab_size=VOCAB, max_length=LENGTH)
TOKENS, MASK = documents.enumerate_documents(vocab_size=VOCAB, max_length=LENGTH, eos=EOS)
PARAMS, ANCHOR = np.random.default_rng(0).normal(size=(2, 1, 4, VOCAB))
REWARDS = np.random.default_rng(1).normal(size=len(TOKENS))
WINS = 1 / (1 + np.exp(REWARDS[None] - REWARDS[:, None]))  # row over column


def paths():
    """Of every document its prefixes and the token after each: rows of the table, tokens."""
    found = []
    for tokens, mask in zip(np.asarray(TOKENS), np.asarray(MASK), strict=True):
        response = tokens[mask]
        rows = [0, 1 + response[0]][: len(response)]
        found.append(list(zip(rows, response, strict=True)))
    return found


def laws(params):
    rows = np.exp(params[0]) / np.exp(params[0]).sum(-1, keepdims=True)
    return rows, np.array([np.prod([rows[p, t] for p, t in path]) for path in paths()])


def expected(beta):
    """The value and the gradient in the table's logits, by hand: no nudge appears in them."""
    rows, law = laws(PARAMS)
    anchor, _ = laws(ANCHOR)
    kl = (anchor * np.log(anchor / rows)).sum(-1)
    gains = WINS @ law - 0.5
    value, slope = -law @ gains, np.zeros_like(PARAMS[0])
    for path, mass, gain in zip(paths(), law, gains, strict=True):
        for row, token in path:
            slope[row] -= mass * gain * (np.eye(VOCAB)[token] - rows[row])
            slope[row] += mass * beta * (rows[row] - anchor[row])
            value += mass * beta * kl[row]
    return value, slope[None]


@functools.partial(jax.jit, static_argnames=("first_wins",))
def mean_loss(params, beta, nudge, first_wins=True):
    """Over all pairs of samples of the policy as it is; either response may be the one scored."""

    def loss(params):
        logits = LM.apply(params, TOKENS)
        log_probs = documents.log_prob(logits, TOKENS, MASK)
        kls = forward_kl_loss(LM.apply(jnp.asarray(ANCHOR), TOKENS), logits, MASK)
        law = jax.lax.stop_gradient(jnp.exp(log_probs))
        first = jnp.repeat(jnp.arange(len(TOKENS)), len(TOKENS))
        other = jnp.tile(jnp.arange(len(TOKENS)), len(TOKENS))
        scored, wins = (first, jnp.asarray(WINS)) if first_wins else (other, 1 - jnp.asarray(WINS))
        losses = nudged_reinforce_loss(
            log_probs[scored], wins.ravel(), kls[scored], beta=beta, nudge=nudge
        )
        return jnp.sum(law[first] * law[other] * losses)

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("first_wins", [True, False])
def test_the_expected_gradient_is_that_of_the_policy_step(beta, first_wins):
    value, slope = mean_loss(PARAMS, beta, 0.0, first_wins=first_wins)
    by_hand = expected(beta)
    np.testing.assert_allclose(value, by_hand[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(slope, by_hand[1], rtol=1e-11, atol=1e-15)


@pytest.mark.slow
def test_the_first_part_is_the_slope_of_the_win_rate_over_the_policy_as_it_is():
    law = lambda params: jnp.exp(documents.document_log_probs(LM, params, TOKENS, MASK))
    frozen = law(jnp.asarray(PARAMS))
    slope = jax.jit(jax.grad(lambda params: law(params) @ jnp.asarray(WINS) @ frozen))(PARAMS)
    np.testing.assert_allclose(mean_loss(PARAMS, 0.0, 0.0)[1], -slope, atol=1e-15)


def test_the_nudge_drops_out_of_the_expected_gradient():
    plain, nudged = mean_loss(PARAMS, 0.7, 0.0), mean_loss(PARAMS, 0.7, 0.3)
    np.testing.assert_allclose(nudged[1], plain[1], atol=1e-15)
    np.testing.assert_allclose(nudged[0], plain[0] - 0.3, rtol=1e-13)


def test_one_sample_is_raised_by_the_nudge_and_pulled_to_the_anchor():
    log_probs, wins, kls = np.log([0.2, 0.5, 0.9]), np.array([0.1, 0.5, 1.0]), np.array([0.0, 2, 3])
    total = lambda *x: (jnp.sum(losses := nudged_reinforce_loss(*x, beta=0.5, nudge=0.3)), losses)
    run = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    (by_log_prob, by_win, by_kl), losses = run(log_probs, wins, kls)
    np.testing.assert_allclose(losses, -(wins - 0.2) + 0.5 * kls, rtol=1e-13)
    np.testing.assert_allclose(by_log_prob, -(wins - 0.2), rtol=1e-13)  # a loser of .5 is raised
    np.testing.assert_array_equal(by_win, 0.0)
    np.testing.assert_allclose(by_kl, 0.5, rtol=1e-15)
    plain = reinforce_loss(log_probs, wins, 0.5)
    np.testing.assert_allclose(nudged_reinforce_loss(log_probs, wins, 0 * kls, beta=2.0), plain)


def test_bad_input_is_refused():
    some = jnp.zeros(2)
    with pytest.raises(AssertionError):
        nudged_reinforce_loss(some, jnp.zeros(3), some, beta=1.0)
    with pytest.raises(AssertionError):
        nudged_reinforce_loss(jnp.zeros(2, int), some, some, beta=1.0)
    checked = checkify.checkify(functools.partial(nudged_reinforce_loss, beta=1.0))
    for wrong in (jnp.nan, 1.5, -0.1):
        error, _ = checked(some, jnp.array([0.5, wrong]), some)
        with pytest.raises(checkify.JaxRuntimeError, match="win_probs must be from 0 to 1, but 1"):
            error.throw()
