"""Responses and queries of every arm are valid and differ, whatever log-probs it sees.

Log-probs are drawn by hypothesis: -inf and -1e30, ties, huge and equal numbers, NaN. Shapes are few
and all arms of a shape are one program, which is compiled once.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shatter import exploration

pytestmark = pytest.mark.slow  # takes long to compile

OTHERS = ("Belief", "PairArm", "QueryArm", "distinct", "query_variance", "shrinkage")
OTHERS += ("v_optimal_batch",)  # a case of its own, below
NAMES = [name for name in exploration.__all__ if name not in OTHERS]
NAMES = [
    name for name in NAMES if not name.endswith(("_candidates", "information_gain", "_belief"))
]
QUERY_ARMS = [name for name in NAMES if name.endswith(("_queries", "_choices"))]
ARMS = [name for name in NAMES if name not in QUERY_ARMS]

# Of an arm: members, candidates, responses; of a pool: members, queries, slots, queries to ask.
SHAPES = [(1, 2, 2), (1, 5, 3), (4, 4, 4), (3, 8, 2)]
POOLS = [(1, 2, 2, 2), (3, 5, 3, 2)]
EDGES = [0.0, 1.0, -np.inf, -1e30, 1e30, -1e5, 1e5, -88.0, -104.0, -6e4, -1e-30]
UNKNOWN = [*EDGES, np.nan, np.inf]
few = settings(derandomize=True, deadline=None, max_examples=40)


def log_probs(shape, edges):
    """Arrays of edges and ordinary numbers, alike or not."""
    ordinary = st.floats(-30.0, 0.0, width=32)
    number = st.one_of(st.sampled_from(edges), st.sampled_from([-1.0, -2.0]), ordinary)
    size = int(np.prod(shape))
    mixed = st.lists(number, min_size=size, max_size=size)
    alike = number.map(lambda value: [value] * size)
    return st.one_of(mixed, alike).map(lambda x: np.array(x, np.float32).reshape(shape))


def masks(shape):
    size = int(np.prod(shape))
    bits = st.lists(st.booleans(), min_size=size, max_size=size)
    return bits.map(lambda bits: np.array(bits).reshape(shape))


@cache
def all_arms(num_responses, dtype):
    @jax.jit
    def run(key, log_probs, valid):
        ask = {"valid": valid, "num_responses": num_responses}
        seen = log_probs.astype(dtype)
        chosen = {name: getattr(exploration, name)(key, seen, **ask) for name in ARMS}
        rows = jnp.arange(log_probs.shape[1])[None]
        batch = exploration.v_optimal_batch(
            key, seen, rows, valid=valid[None], num_responses=num_responses
        )
        chosen["v_optimal_batch"] = batch[0]
        chosen["ucb 0"] = exploration.ucb(key, seen, **ask, coefficient=0.0)
        chosen["boltzmann 1e-30"] = exploration.boltzmann(key, seen, **ask, temperature=1e-30)
        return chosen

    return run


@cache
def all_query_arms(num_queries, dtype):
    @jax.jit
    def run(key, log_probs, valid):
        ask = {"valid": valid, "num_queries": num_queries}
        seen = log_probs.astype(dtype)
        chosen = {name: getattr(exploration, name)(key, seen, **ask) for name in QUERY_ARMS}
        cold = exploration.boltzmann_queries(key, seen, **ask, temperature=1e-30)
        return {**chosen, "boltzmann_queries 1e-30": cold}

    return run


def check(chosen, usable, number):
    """All that can be chosen are, each once; where there are fewer than wanted, some repeat."""
    for name, indices in chosen.items():
        indices = np.asarray(indices)
        assert indices.shape == (number,), name
        assert np.issubdtype(indices.dtype, np.integer), name
        if usable.any():
            assert usable[indices].all(), (name, indices)
            assert len({*indices.tolist()}) == min(number, usable.sum()), (name, indices)
        else:
            np.testing.assert_array_equal(indices, 0, err_msg=name)


@pytest.mark.parametrize(
    ("shape", "dtype"), [*((shape, "float32") for shape in SHAPES), (SHAPES[-1], "float16")]
)
def test_responses_are_valid_and_differ(shape, dtype):
    *table, num_responses = shape

    @few
    @given(log_probs(table, UNKNOWN), masks(table[1:]), st.integers(0, 2**31))
    def ask(log_probs, valid, seed):
        chosen = all_arms(num_responses, dtype)(jax.random.key(seed), log_probs, valid)
        check(chosen, valid, num_responses)

    ask()


@pytest.mark.parametrize("pool", POOLS)
def test_queries_can_be_asked_and_differ(pool):
    *table, num_queries = pool

    @few
    @given(log_probs(table, UNKNOWN), masks(table[1:]), st.integers(0, 2**31))
    def ask(log_probs, valid, seed):
        chosen = all_query_arms(num_queries, "float32")(jax.random.key(seed), log_probs, valid)
        check(chosen, valid.sum(axis=1) >= 2, num_queries)

    ask()


information_gain = jax.jit(exploration.information_gain)


@jax.jit
def gains_of_pairs(log_probs):
    return exploration.law_information_gain(log_probs, log_probs), information_gain(log_probs)


@few
@given(log_probs((3, 5), EDGES))
def test_the_gain_about_the_law_is_at_most_that_about_the_member(log_probs):
    about_law, about_member = map(np.asarray, gains_of_pairs(log_probs))
    np.testing.assert_allclose(about_law, about_law.T, atol=1e-6)
    assert about_law.min() >= 0.0
    assert np.all(about_law <= about_member + 1e-5)


@few
@given(log_probs((3, 5), EDGES))
def test_information_gain_is_symmetric_finite_and_between_0_and_log_2(log_probs):
    gain = np.asarray(information_gain(log_probs))
    assert np.isfinite(gain).all()
    np.testing.assert_allclose(gain, gain.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(gain), 0.0, atol=1e-6)
    assert gain.min() >= 0.0
    assert gain.max() <= np.log(2.0) + 1e-6


@jax.jit
def gains_of_queries(log_probs, valid):
    gain = exploration.query_information_gain(log_probs, valid=valid)
    even = jnp.full((2, 3), 1.0 / 3.0)
    again = exploration.conditional_information_gain(log_probs, even, valid=valid)
    joint = exploration.joint_information_gain(log_probs, valid=valid)
    return gain, again, joint, exploration.query_variance(log_probs, valid=valid)


@few
@given(log_probs((3, 4, 3), EDGES), masks((4, 3)))
def test_gains_of_queries_are_finite_and_between_twice_the_variance_and_log_m(log_probs, valid):
    gain, again, joint, variance = map(np.asarray, gains_of_queries(log_probs, valid))
    assert np.all((variance >= 0.0) & (gain >= 2.0 * variance - 1e-6))
    assert np.all(gain <= joint + 1e-5) and joint <= min(np.log(3.0), gain.sum()) + 1e-5
    np.testing.assert_allclose(again, gain, atol=1e-5)
    np.testing.assert_array_equal(gain[valid.sum(axis=1) < 2], 0.0)


def test_what_one_member_excludes_is_above_or_below_all_others_by_the_coefficient():
    """The limit of mean + c std as one log-prob of M falls: up where c sqrt(M - 1) > 1."""
    log_probs = np.log(np.full((3, 3), 1.0 / 3.0, np.float32))
    log_probs[0, 1] = -np.inf
    choose = jax.jit(lambda c: exploration.ucb(jax.random.key(0), log_probs, coefficient=c)[0])
    assert choose(1.0) == 1
    assert choose(0.5) != 1 and choose(0.0) != 1


def test_a_temperature_not_above_zero_is_refused():
    for temperature in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            exploration.boltzmann(jax.random.key(0), jnp.zeros((1, 3)), temperature=temperature)
