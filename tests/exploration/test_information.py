import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from shatter.exploration import (
    infomax,
    information_gain,
    law_infomax,
    law_information_gain,
    log_ratio_variance,
    mass_weighted_variance,
    variance,
)

LOG_PROBS = np.random.default_rng(0).normal(scale=2.0, size=(5, 6))


def entropy(p, axis):
    return -np.sum(p * np.log(p), axis=axis)


def choice_probs(log_probs):
    """`[M, N, N, 2]`: the first is chosen, the second is chosen."""
    odds = np.exp(log_probs[:, :, None] - log_probs[:, None, :])
    return np.stack([odds / (1 + odds), 1 / (1 + odds)], axis=-1)


def test_information_gain_is_the_entropy_that_members_do_not_share(float64):
    outcomes = choice_probs(LOG_PROBS)
    expected = entropy(outcomes.mean(axis=0), -1) - entropy(outcomes, -1).mean(axis=0)
    actual = np.asarray(jax.jit(information_gain)(LOG_PROBS))
    np.testing.assert_allclose(actual, expected, atol=1e-14)
    np.testing.assert_allclose(actual, actual.T, atol=1e-15)
    np.testing.assert_array_equal(np.diagonal(actual), 0)


def test_information_gain_is_the_expected_drop_in_entropy_over_hypotheses(float64):
    # Each member is a hypothesis, all equally likely; an answer turns them into a posterior.
    outcomes = choice_probs(LOG_PROBS)
    evidence = outcomes.mean(axis=0)
    posterior = outcomes / outcomes.sum(axis=0)
    drop = np.log(5) - np.sum(evidence * entropy(posterior, 0), axis=-1)
    np.testing.assert_allclose(jax.jit(information_gain)(LOG_PROBS), drop, atol=1e-14)


def test_information_gain_is_at_least_twice_the_variance(float64):
    gain = np.asarray(jax.jit(information_gain)(LOG_PROBS))
    spread = choice_probs(LOG_PROBS)[..., 0].var(axis=0)
    away = ~np.eye(6, dtype=bool)
    assert np.all(gain[away] > 2 * spread[away])
    near = np.asarray(jax.jit(information_gain)(1e-3 * LOG_PROBS))  # where gain and variance meet
    spread = choice_probs(1e-3 * LOG_PROBS)[..., 0].var(axis=0)
    np.testing.assert_allclose(near[away], 2 * spread[away], rtol=1e-5)


def test_information_gain_of_members_that_agree_is_nil():
    agree = np.stack([LOG_PROBS[0]] * 3).astype(np.float32)
    np.testing.assert_allclose(jax.jit(information_gain)(agree), np.zeros((6, 6)), atol=1e-7)


def test_information_gain_of_opposed_members_is_one_bit():
    log_probs = np.array([[0.0, -1e4, -1e30], [-1e4, 0.0, 0.0]], np.float32)
    gain = jax.jit(information_gain)(log_probs)
    np.testing.assert_allclose(gain[0, 1], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gain[0, 2], np.log(2), rtol=1e-6)
    assert np.isfinite(gain).all()


def test_information_gain_of_an_impossible_document(float64):
    gain = jax.jit(information_gain)(jnp.array([[0.0, -jnp.inf], [0.0, 0.0]]))
    outcomes = np.array([[1.0, 0.0], [0.5, 0.5]])  # of the members
    shared = outcomes.mean(axis=0)
    expected = -np.sum(shared * np.log(shared)) - 0.5 * np.log(2)
    np.testing.assert_allclose(gain[0, 1], expected, rtol=1e-12)


def test_information_gain_has_finite_gradients(float64):
    total = jax.jit(lambda log_probs: jnp.sum(jnp.triu(information_gain(log_probs))))
    # The clip at 0 has a kink on the diagonal, where the gain does not move.
    check_grads(total, (LOG_PROBS,), order=1, modes=["rev"])
    extreme = jnp.array([[0.0, -1e30, -800.0], [-1e4, 0.0, -1e30], [0.0, 0.0, 0.0]])
    assert np.isfinite(jax.jit(jax.grad(total))(extreme)).all()
    agree = jnp.stack([jnp.asarray(LOG_PROBS[0])] * 3)
    assert np.isfinite(jax.jit(jax.grad(total))(agree)).all()


def test_information_gain_wants_a_matrix():
    with pytest.raises(AssertionError, match="rank"):
        information_gain(jnp.zeros(3))


def scores_of(arm, log_probs):
    p = choice_probs(log_probs)
    if arm is infomax:
        return entropy(p.mean(axis=0), -1) - entropy(p, -1).mean(axis=0)
    if arm is variance:
        return p[..., 0].var(axis=0)
    if arm is law_infomax:
        return law_gain(log_probs, log_probs)
    spread = (log_probs[:, :, None] - log_probs[:, None, :]).var(axis=0)
    if arm is log_ratio_variance:
        return spread
    mixture, first = softmax(log_probs).mean(axis=0), p[..., 0].mean(axis=0)
    return spread * first * (1 - first) * np.outer(mixture, mixture) ** 0.25


def softmax(log_probs):
    weights = np.exp(log_probs)
    return weights / weights.sum(axis=1, keepdims=True)


def law_gain(log_probs, laws):
    """Mutual information of answer and document, from the table of member, answer, document."""
    told = choice_probs(log_probs)  # [M, N, N, 2]
    table = told[..., None] * softmax(laws)[:, None, None, None, :] / len(laws)
    joint = table.sum(axis=0)  # [N, N, 2, X]: the member is not seen
    apart = joint.sum(axis=-1, keepdims=True) * joint.sum(axis=-2, keepdims=True)
    return np.sum(joint * np.log(joint / apart), axis=(-2, -1))


@pytest.mark.slow
def test_information_about_the_law_is_the_mutual_information_of_answer_and_document(float64):
    laws = np.random.default_rng(5).normal(scale=1.5, size=(5, 9))
    gain = jax.jit(law_information_gain)
    found = np.asarray(gain(LOG_PROBS, laws))
    np.testing.assert_allclose(found, law_gain(LOG_PROBS, laws), atol=1e-14)
    np.testing.assert_allclose(found, found.T, atol=1e-15)
    assert np.all(found <= np.asarray(information_gain(LOG_PROBS)) + 1e-14)
    shifts = np.random.default_rng(6).normal(scale=9, size=(2, 5, 1))
    np.testing.assert_allclose(gain(LOG_PROBS + shifts[0], laws + shifts[1]), found, atol=1e-13)
    # A document that gives the member away tells all, one that all say alike tells nothing.
    sure = np.where(np.eye(5, 9) > 0, 0.0, -np.inf)
    np.testing.assert_allclose(gain(LOG_PROBS, sure), information_gain(LOG_PROBS), atol=1e-14)
    alike = np.broadcast_to(laws[:1], laws.shape)
    np.testing.assert_allclose(gain(LOG_PROBS, alike), 0.0, atol=1e-14)
    total = jax.jit(lambda u, v: jnp.sum(jnp.triu(law_information_gain(u, v), 1)))
    check_grads(total, (LOG_PROBS[:3, :3], laws[:3, :4]), order=1, modes=["rev"])


def test_the_document_may_be_any_of_all_documents(float64):
    laws = np.random.default_rng(5).normal(scale=1.5, size=(5, 9))
    ask = jax.jit(lambda key, laws: law_infomax(key, LOG_PROBS, laws=laws))
    pair = ask(jax.random.key(0), laws)
    scores = law_gain(LOG_PROBS, laws)
    assert {*pair.tolist()} == {*np.unravel_index(scores.argmax(), scores.shape)}
    pair = ask(jax.random.key(0), np.where(np.arange(9) == 4, np.nan, laws))
    scores = law_gain(LOG_PROBS, np.delete(laws, 4, axis=1))
    assert {*pair.tolist()} == {*np.unravel_index(scores.argmax(), scores.shape)}


@pytest.mark.parametrize(
    "arm", [infomax, law_infomax, log_ratio_variance, mass_weighted_variance, variance]
)
def test_the_arms_take_the_best_pair_and_then_the_largest_sum(arm, float64):
    tables = np.random.default_rng(1).normal(scale=2.0, size=(40, 5, 6))
    keys = jax.random.split(jax.random.key(0), 40)
    choose = jax.jit(jax.vmap(lambda key, table: arm(key, table, num_responses=3)))
    for table, responses in zip(tables, np.asarray(choose(keys, tables)), strict=True):
        scores = scores_of(arm, table)
        pair = np.unravel_index(scores.argmax(), scores.shape)
        assert {*responses[:2].tolist()} == {*pair}
        sums = scores[list(pair)].sum(axis=0)
        sums[list(pair)] = -1
        assert responses[2] == sums.argmax()


def test_the_scores_are_three_different_ones(float64):
    # All members are sure that 0 beats 1, though by very different odds: asking teaches nothing,
    # and only the log-ratio varies. About (2, 3) they really disagree.
    log_probs = jnp.array([[9.0, -9.0, 0.7, 0.0], [40.0, -20.0, 0.0, 0.7], [99.0, -40.0, 0.0, 0.0]])
    pair = lambda arm: {*np.asarray(jax.jit(arm)(jax.random.key(0), log_probs)).tolist()}
    assert pair(infomax) == pair(variance) == {2, 3}
    assert pair(log_ratio_variance) == {0, 1}
