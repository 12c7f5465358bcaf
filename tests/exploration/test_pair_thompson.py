from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.exploration import double_thompson, double_thompson_sampled, greedy

LOG_PROBS = np.array([[0.5, -1.0, 0.0, -2.0], [-3.0, 1.0, 0.2, 0.0], [0.3, 0.4, -1.0, -0.5]])


def frequencies(arm, log_probs, *, num_keys, **arguments):
    """How often each ordered pair came, `[N, N]`."""
    draw = jax.vmap(partial(arm, **arguments), in_axes=(0, None))
    keys = jax.random.split(jax.random.key(0), num_keys)
    pairs = np.asarray(jax.jit(draw)(keys, jnp.asarray(log_probs, jnp.float32)))
    table = np.zeros((log_probs.shape[1],) * 2)
    np.add.at(table, tuple(pairs.T), 1 / num_keys)
    return table


def assert_law(actual, law, num_keys):
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-6)
    assert np.all(np.abs(actual - law) <= 4.5 * np.sqrt(law * (1 - law) / num_keys) + 1e-12)


@pytest.mark.slow
def test_a_member_for_each_response_is_the_mixture_for_all():
    # Exact: members are drawn anew, so the average over pairs of members is a product of averages.
    weights = np.exp(LOG_PROBS)
    laws = weights / weights.sum(axis=1, keepdims=True)
    by_members = np.mean([np.outer(first, second) for first in laws for second in laws], axis=0)
    by_mixture = np.outer(laws.mean(axis=0), laws.mean(axis=0))
    np.testing.assert_allclose(by_members, by_mixture, rtol=1e-14)
    # One member for both responses has another law: they are equal more often.
    by_one_member = np.mean([np.outer(law, law) for law in laws], axis=0)
    assert np.trace(by_one_member) > np.trace(by_mixture) + 0.05
    draw = partial(frequencies, log_probs=LOG_PROBS, num_keys=20_000, distinct=False)
    assert_law(draw(double_thompson_sampled), by_mixture, 20_000)
    assert_law(draw(greedy), by_mixture, 20_000)


@pytest.mark.slow
def test_the_best_of_a_member_has_the_law_of_being_best():
    # Member 2 has two best candidates. How much better they are does not matter.
    log_probs = np.array([[5.0, 1, 2, 3], [-1, 0.5, 0, -9], [2, 0, 1, 2], [0, 0.01, 0, 0]])
    best = np.array([1.5, 2, 0, 0.5]) / 4
    actual = frequencies(double_thompson, log_probs, num_keys=20_000, distinct=False)
    assert_law(actual, np.outer(best, best), 20_000)


@pytest.mark.slow
def test_a_response_is_redrawn_thirty_times():
    # One of 20 members prefers 1, the others 0: after 0 the second response is 1 unless every
    # draw was 0 again, and then it is 1, 2 or 3.
    num_keys = 100_000
    members = np.zeros((20, 4))
    members[:19, 0] = members[19, 1] = 1
    actual = frequencies(double_thompson, members, num_keys=num_keys)
    chance = lambda redraws: 0.95 * 0.95 ** (redraws + 1) * 2 / 3
    spread = np.sqrt(chance(30) * (1 - chance(30)) / num_keys)
    assert abs(actual[0, 2] + actual[0, 3] - chance(30)) < 4.5 * spread
    # There are enough draws to notice one redraw more or less.
    assert min(chance(29) - chance(30), chance(30) - chance(31)) > 6 * spread
    np.testing.assert_array_equal(actual[1, 2:], 0)
